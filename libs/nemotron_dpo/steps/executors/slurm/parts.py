"""Cut the stages of a plan into jobs, so that GPUs are held by what runs a model, and not by what comes before and after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nemotron_dpo.steps.compile.programs import COMPUTE
from nemotron_dpo.steps.compile.stages import Stage
from nemotron_dpo.steps.executors.slurm.asked import Asked, with_gpus, without_gpus
from nemotron_dpo.steps.executors.slurm.settings import SlurmSettings

MAIN, BEFORE, AFTER = "job", "before", "after"


@dataclass(frozen=True)
class JobPart:
    """The stages of one job, each with its number in the plan; `name` is MAIN, BEFORE or AFTER."""

    name: str
    stages: tuple[tuple[int, Stage], ...]
    asked: Asked
    is_first: bool
    is_last: bool

    @property
    def script(self) -> str:
        """The name of its script."""
        return f"{self.name}.sh"

    @property
    def secrets(self) -> str:
        """The name of the file with its variables."""
        return "env.sh" if self.name == MAIN else f"{self.name}-env.sh"

    def called(self, job: str) -> str:
        """What Slurm calls it, where the whole is called `job`."""
        return job if self.name == MAIN else f"{job}-{self.name}"


def parts_of(stages: Sequence[Stage], settings: SlurmSettings, *, nodes: int, processes: int) -> tuple[JobPart, ...]:
    """The jobs of `stages`: all in one, unless the profile names a partition for those that run no model."""
    numbered = tuple(enumerate(stages, start=1))
    models = [number for number, stage in numbered if stage.program in COMPUTE]
    wide, narrow = with_gpus(settings, nodes, processes), without_gpus(settings)
    if settings.cpu is None:
        return (JobPart(MAIN, numbered, wide, is_first=True, is_last=True),)
    if not models:
        return (JobPart(MAIN, numbered, narrow, is_first=True, is_last=True),)
    cut = {
        BEFORE: numbered[: models[0] - 1],
        MAIN: numbered[models[0] - 1 : models[-1]],
        AFTER: numbered[models[-1] :],
    }
    there = [name for name, some in cut.items() if some]
    return tuple(
        JobPart(name, cut[name], wide if name == MAIN else narrow, is_first=name == there[0], is_last=name == there[-1])
        for name in there
    )


def holds_idle_gpus(parts: Sequence[JobPart]) -> list[str]:
    """The names of the stages that run no model in a job that has GPUs."""
    having = [part for part in parts if part.asked.gpus]
    return [stage.name for part in having for _, stage in part.stages if stage.program not in COMPUTE | _BETWEEN]


_BETWEEN = {"mixture"}  # it takes seconds, and stands between two that need the GPUs
