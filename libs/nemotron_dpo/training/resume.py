"""What an interrupted run continues from, and whether what is found belongs to the run that is asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np
import orjson

from nemotron_dpo.errors import UserError
from nemotron_dpo.preferences.pairs import Pairs
from nemotron_dpo.sources import TRACKER, ModelSource, resolve
from nemotron_dpo.step_folders import RESUME, step_folders
from nemotron_dpo.training.record import Totals

FILE = RESUME
_FORMAT = 5
# in format 2, totals are without the state of an objective, which none had then; in 3, without what guards remember; up to 4
# there are no digests of what is written for others to read
_READ = (2, 3, 4, _FORMAT)
_SINCE_5 = ("config.yaml", "policy/latest_train_state.pt")


@dataclass(frozen=True)
class Identity:
    """What makes two runs the same run. `fixed` settings decide the updates; `free` ones only their number and what is watched.

    `data` and `policy` are digests of the pairs and of the initial weights; settings are named by their dotted keys. `kernels`
    is what computed: by others the run is the same but for the last bits of its numbers ("" where it was not recorded).
    """

    data: str
    policy: str
    fixed: dict[str, Any] = field(default_factory=dict)
    free: dict[str, Any] = field(default_factory=dict)
    validation: dict[str, str] = field(default_factory=dict)
    kernels: str = ""


@dataclass(frozen=True)
class ResumeState:
    """Everything the rest of a run depends on, beside what its command line says again.

    `policy` holds the weights, `optimizer` the moments, master weights and step count; the rest is written to resume.json.
    The order of the pairs is a function of (seed, epoch) and the learning rate one of the step, and nothing is drawn at random
    while training; so the step stands for both, and no generator's state is kept.
    """

    folder: Path
    step: int
    totals: Totals
    identity: Identity

    @property
    def policy(self) -> ModelSource:
        """The checkpoint_megatron of the step's weights."""
        return resolve(self.folder / "policy")

    @property
    def optimizer(self) -> Path:
        """The folder of the optimizer's state."""
        return self.folder / "optimizer"

    def write(self) -> None:
        """Write what is no tensor into the step folder, which has all other files, with digests that tie them to it."""
        tree = {"format": _FORMAT, "step": self.step, "totals": asdict(self.totals), "identity": asdict(self.identity)}
        tree["files"] = {str(path.relative_to(self.folder)): _sha256(path) for path in _tied(self.folder)}
        (self.folder / FILE).write_bytes(orjson.dumps({**tree, "digest": _digest(tree)}, option=orjson.OPT_INDENT_2))

    @classmethod
    def read(cls, folder: Path) -> ResumeState:
        """The state of a step folder. Raises UserError where it is not, in one piece, what was saved."""
        path, remedy = folder / FILE, f"without {folder.name} the run goes on from the checkpoint before it"
        try:
            tree = orjson.loads(path.read_bytes())
            if tree["format"] not in _READ:
                what = f"has format {tree['format']}; this program reads {_READ[0]} to {_FORMAT}"
                raise UserError(what, source=path, remedy="resume it with the version that saved it")
            if tree.pop("digest") != _digest(tree):
                raise UserError("was changed since it was saved: its digest differs", source=path, remedy=remedy)
            tree["totals"].pop("first_loss", None)  # of format 2
            state = cls(folder, tree["step"], Totals(**tree["totals"]), Identity(**tree["identity"]))
            saved = dict(tree["files"])
            if not (
                type(state.step) is int and _are_like(state.totals, Totals()) and _are_like(state.identity, Identity("", ""))
            ):
                raise TypeError("a field is of another kind")
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError):
            raise UserError("is damaged", source=path, remedy=remedy) from None
        if folder.name != f"step_{state.step}":
            raise UserError(f"is of step {state.step}", source=path, remedy=remedy)
        _check_files(folder, saved, state.step, remedy)
        return state


def _are_like(given: Totals | Identity, usual: Totals | Identity) -> bool:
    """Whether every field of `given` is of the kind that it has in `usual`: a text, a mapping or a number."""
    number = (int, float, NoneType)
    kinds = {name: type(value) if isinstance(value, str | dict) else number for name, value in asdict(usual).items()}
    return all(isinstance(value, kinds[name]) for name, value in asdict(given).items())


def _tied(folder: Path) -> list[Path]:
    """The files whose digests tie a step together; some of them list the digests of all others."""
    wanted = ("training_info.json", f"policy/{TRACKER}", "policy/iter_*/integrity.json", "optimizer/integrity.json", *_SINCE_5)
    return sorted(path for pattern in wanted for path in folder.glob(pattern))


def _check_files(folder: Path, saved: Mapping[str, str], step: int, remedy: str) -> None:
    """Raise UserError unless the files of a step folder are those that were saved together, and no others."""
    found = {str(path.relative_to(folder)): path for path in _tied(folder)}
    for name in sorted({*saved, *(found.keys() - _SINCE_5)}):
        if name not in found:
            raise UserError("is missing", source=folder / name, remedy=remedy)
        if name not in saved or _sha256(found[name]) != saved[name]:
            raise UserError(f"is not what was saved with step {step}", source=folder / name, remedy=remedy)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _digest(tree: Mapping[str, Any]) -> str:
    return hashlib.sha256(orjson.dumps(tree, option=orjson.OPT_SORT_KEYS)).hexdigest()


def newest(checkpoint_dir: Path) -> Path | None:
    """The newest step folder, from which a run goes on; None where there is none.

    Raises UserError where it was saved without the optimizer's state: going on from it would be another run.
    """
    folders = step_folders(checkpoint_dir)
    if folders and not (folders[-1] / FILE).is_file():
        raise UserError(
            f"holds the checkpoints of an earlier run, and {folders[-1].name} has no optimizer state to resume from",
            source=checkpoint_dir,
            remedy="start again in another folder (with checkpointing.save_optimizer=true it could be resumed)",
        )
    return folders[-1] if folders else None


def check_identity(saved: Identity, given: Identity, folder: Path) -> list[str]:
    """A line for each change that the updates so far do not depend on. Raises UserError for any other change."""
    for what, before, now in (("policy", saved.policy, given.policy), ("INPUT", saved.data, given.data)):
        if before != now:
            remedy = "give it that one, or start in another folder"
            raise UserError(f"was trained {_TRAINED[what]} than this {what}", source=folder, remedy=remedy)
    changed = _changes(saved.fixed, given.fixed)
    if changed:
        remedy = f"set {'them' if len(changed) > 1 else 'it'} back, or start in another folder"
        raise UserError(f"belongs to a run with other settings: {'; '.join(changed)}", source=folder, remedy=remedy)
    others = [f"validation {name} is another set than before" for name in _differing(saved.validation, given.validation)]
    if saved.kernels and saved.kernels != given.kernels:
        others.append(f"kernels were {saved.kernels}, are {given.kernels}: from here on numbers are rounded otherwise")
    return [f"{change}: the rest of the run follows the new value" for change in _changes(saved.free, given.free)] + others


def digest(pairs: Pairs, *, with_rewards: bool = False) -> str:
    """sha256 of all ids and reference log-probs, in the order of the file; of the rows' rewards where training uses them."""
    whole = hashlib.sha256()
    for column in (pairs.prompt, pairs.chosen, pairs.rejected, pairs.ref_chosen, pairs.ref_rejected):
        if column is not None:
            whole.update(np.ascontiguousarray(column.lengths, dtype=np.int64).data)
            for values in column.by_part():
                whole.update(np.ascontiguousarray(values).data)
    if with_rewards:
        whole.update(np.stack([pairs.chosen_reward, pairs.rejected_reward]).data)
    return f"sha256:{whole.hexdigest()}"


_TRAINED = {"policy": "from another initial policy", "INPUT": "on other pairs"}


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [f"{key} was {_shown(before.get(key))}, is {_shown(now.get(key))}" for key in _differing(before, now)]


def _differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    now = orjson.loads(orjson.dumps(now))  # as it would have been read back: tuples are lists
    return sorted(key for key in {*before, *now} if before.get(key) != now.get(key))


def _shown(value: Any) -> str:
    return orjson.dumps(value).decode()
