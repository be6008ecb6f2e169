"""Which earlier training is the beginning of a longer one: the same stage, of the same settings but for its length.

Stages of one family differ in nothing but how long they train, and in what they save and log on the way. The cache notes for
each family the folders where its stages worked, `FAMILY.lengths`. What went on from a beginning is kept under a key of its
own: a learning rate that follows the length of the run was that of a shorter one at first, and other steps were saved.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import orjson

from nemotron_dpo.run_state import read_facts, state_of
from nemotron_dpo.step_folders import step_folders, step_of
from nemotron_dpo.steps.compile import stage_cache
from nemotron_dpo.steps.compile.digests import Digests
from nemotron_dpo.steps.compile.stage_keys import stage_key
from nemotron_dpo.steps.compile.stages import Plan, Stage

_OPTIMIZER = "optimizer"  # the folder of a step that can be gone on from
CONFIG = "train.yaml"


@dataclass(frozen=True)
class Beginning:
    """Training in `folder` that was to take `num_steps` steps in at most `num_epochs` passes, under the cache's `key`."""

    key: str
    folder: str
    num_steps: int
    num_epochs: int

    @property
    def last(self) -> Path | None:
        """Its newest step; None where it has none any more."""
        steps = step_folders(Path(self.folder) / "checkpoints")
        return steps[-1] if steps else None

    @property
    def step(self) -> int:
        """The number of that step, 0 where there is none."""
        return step_of(self.last) if self.last else 0

    @property
    def can_go_on(self) -> bool:
        """Whether that step has all that is needed to go on from it."""
        return self.last is not None and (self.last / _OPTIMIZER).is_dir()

    def longer(self, key: str) -> str:
        """The key of what goes on from here where `key` is that of training from the first step."""
        return hashlib.sha256(f"{key}\0{self.key}\0{self.step}".encode()).hexdigest()[:32]


def family_of(plan: Plan, stage: Stage, made: Mapping[str, str], digests: Digests, env: Mapping[str, str]) -> str | None:
    """What stages share that differ in their length alone; None for a stage without a length, or without a key."""
    if stage.length is None:
        return None
    return stage_key(replace(plan, files={**plan.files, CONFIG: stage.length.settings}), stage, made, digests, env)


def note(family: str, key: str, stage: Stage) -> None:
    """Note that the stage of `key` works in its folder, or was taken there."""
    assert stage.length is not None
    (folder,) = stage.outputs
    here = Beginning(key, str(folder), stage.length.num_steps, stage.length.num_epochs)
    others = [one for one in _noted(family) if one.folder != here.folder and Path(one.folder).is_dir()]
    stage_cache.note(_file(family), orjson.dumps([asdict(one) for one in (*others, here)], option=orjson.OPT_INDENT_2))


def gone_on(family: str, stage: Stage) -> stage_cache.CacheEntry | None:
    """What the cache has of a stage of this length that was not trained from its first step, the newest."""
    length = stage.length
    assert length is not None
    same = [one for one in _noted(family) if (one.num_steps, one.num_epochs) == (length.num_steps, length.num_epochs)]
    return next((entry for one in reversed(same) if (entry := stage_cache.find(one.key, stage.outputs))), None)


def beginning_of(family: str, stage: Stage) -> Beginning | None:
    """The training that got furthest of those that are no longer than `stage` and not being written; None where none is left.

    Of equals one that can be gone on from, and of these the newest.
    """
    length = stage.length
    assert length is not None
    shorter = [one for one in _noted(family) if one.num_steps <= length.num_steps and one.num_epochs <= length.num_epochs]
    usable = [one for one in shorter if one.step and stage_cache.is_of_job(Path(one.folder)) and not _is_running(one)]
    return max(reversed(usable), key=lambda one: (one.can_go_on, one.step), default=None)


def _is_running(one: Beginning) -> bool:
    return state_of(read_facts(Path(one.folder))) == "running"


def _file(family: str) -> Path:
    return stage_cache.CACHE / f"{family}.lengths"


def _noted(family: str) -> list[Beginning]:
    try:
        return [Beginning(**one) for one in orjson.loads(_file(family).read_bytes())]
    except (FileNotFoundError, orjson.JSONDecodeError, TypeError):  # a damaged note is none
        return []
