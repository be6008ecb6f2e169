"""What a run of DPO would stumble on, found before its first stage is run."""

from __future__ import annotations

from nemotron_dpo import wiring
from nemotron_dpo.config import RunConfig, objective_names, objective_of, redact, router_refusal
from nemotron_dpo.errors import UserError
from nemotron_dpo.preferences.data_sources import absence
from nemotron_dpo.steps.compile.data_parts import data_options
from nemotron_dpo.steps.compile.row_rewards import lacks_rewards, recognised


def missing_inputs(run: RunConfig, *, look: bool = True) -> list[str]:
    """Why the plan would fail at once, a line with its remedy for each reason.

    One reason is training data that is not named. With `look`, which needs the files of the run on this machine, further
    reasons are data that does not exist, a router key that training would refuse, and a tracker whose library is missing.
    """
    lines = []
    if run.data.train.path is None and not run.data.train.parts:
        lines.append("data.train.prompt_file is not set: give data.train.prompt_file=FILE, preference JSONL")
    for name, dataset in (("train", run.data.train), *run.data.validation) if look else ():
        for part in dataset.parts or (dataset,):
            if part.path is not None and (why := absence(part.path, part.split)):
                without = "" if name == "train" else "; data.validation=null trains without validation"
                lines.append(f"{redact(part.path)}: {why}: it is the data of {_spoken(name)}{without}")
    return lines + ([*_without_rewards(run), *_unbuilt_router(run), *_missing_library(run)] if look else [])


def _without_rewards(run: RunConfig) -> list[str]:
    """The data sets without the rewards of rows that the objective needs, where no columns are named."""
    if not objective_of(run.dpo).needs.row_rewards:
        return []
    names, lines = " and ".join(objective_names(run.dpo)), []
    sets = [(name, part) for name, data in (("train", run.data.train), *run.data.validation) for part in data.parts or (data,)]
    for name, part in sets:
        named = any("-reward-key" in word for word in data_options(part))
        if part.path is not None and not named and lacks_rewards(part.path):
            what = f"{redact(part.path)}: its first rows have no rewards, which {names} needs: it is data of {_spoken(name)}"
            lines.append(f"{what}, and columns such as {recognised()} are recognised")
    return lines


def _missing_library(run: RunConfig) -> list[str]:
    """The trackers that are asked for and whose libraries are not installed, in one line."""
    try:
        wiring.check_trackers(run)
    except UserError as error:
        return [str(error)]
    return []


def _spoken(name: str) -> str:
    return name if name == "train" else f"validation {name}"


def _unbuilt_router(run: RunConfig) -> list[str]:
    """The router key that training would refuse, if any. It is known only where the policy's config can be read here."""
    from nemotron_dpo.steps.estimate.policy_architecture import policy_architecture

    try:
        routers = policy_architecture(run).routers
    except (UserError, OSError):  # the architecture is not known here: dpo-train reports the key
        return []
    refusal = router_refusal(run, routers[0].usual_coeff) if routers else None
    return [] if refusal is None else [str(refusal)]
