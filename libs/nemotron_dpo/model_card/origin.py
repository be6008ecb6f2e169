"""Which run a policy is of, as far as the folders around it say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemotron_dpo.documents import yaml_mapping
from nemotron_dpo.errors import UserError
from nemotron_dpo.run_state import read_facts
from nemotron_dpo.step_folders import RESUME, measured, policy_of, refuse_changed, step_of


@dataclass(frozen=True)
class Origin:
    """A step of a run: its number, the settings of the run, what was measured, run.json and job.yaml, where there are any."""

    step: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    measured: Mapping[str, float | None] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    record: Mapping[str, Any] = field(default_factory=dict)

    def setting(self, path: str) -> Any:
        """The value of a dotted key; None where it is not known."""
        value: Any = self.settings
        for part in path.split("."):
            if not isinstance(value, Mapping) or part not in value:
                return None
            value = value[part]
        return value


def origin_of(policy: Path) -> Origin:
    """The origin of the policy in the folder `policy`: one of a step, or one that a job exported. Empty for any other.

    Raises UserError where what was saved with the step can be told to be damaged.
    """
    step = _step_folder(policy.resolve())
    if step is None:
        return Origin()
    run = step.parent.parent if step.parent.name == "checkpoints" else step.parent
    for name in ("config.yaml", "training_info.json"):
        refuse_changed(step / name)
    settings = yaml_mapping(step / "config.yaml")
    try:
        figures = measured(step)
    except UserError:  # damaged: the card then has no figures
        figures = {}
    job = next((folder for folder in (run.parent, run.parent.parent) if (folder / "job.yaml").is_file()), None)
    return Origin(step_of(step), settings, figures, read_facts(run), yaml_mapping(job / "job.yaml") if job else {})


def _step_folder(policy: Path) -> Path | None:
    """The step_N folder that holds `policy`, or that of the run of the job that holds it."""
    for folder in (policy, *policy.parents[:3]):
        says = any((folder / name).is_file() for name in ("training_info.json", RESUME))
        if folder.name.removeprefix("step_").isdigit() and says:
            return folder
        number = policy.name.removeprefix("iter_")
        if (folder / "job.yaml").is_file() and number.isdigit():
            try:
                found = policy_of(folder, str(int(number)))
            except UserError:  # the step was removed since
                return None
            return found.parent if found else None
    return None
