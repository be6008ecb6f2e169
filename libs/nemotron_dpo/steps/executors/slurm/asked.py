"""What one job asks of Slurm, as the directives of its script: with the GPUs of a run, or without any."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nemotron_dpo.steps.executors.slurm.keys import seconds_of
from nemotron_dpo.steps.executors.slurm.settings import SlurmSettings

# Enough to feed a GPU, and what nodes have: those of most clusters have 8 to 28 for each of their GPUs.
CPUS_PER_GPU = 8
# Slurm may be up to a minute early with the signal; saving a large policy takes its time.
_LEAD_SECONDS = 120


@dataclass(frozen=True)
class Asked:
    """One job on `nodes`, each with `processes_per_node`, `gpus` and `cpus`; None leaves it to the cluster.

    Where the CPUs are `guessed`, and not the profile's, they may be more than nodes have.
    """

    partition: str | None
    time: str | None
    mem: str | None = None
    exclusive: str | None = None
    nodes: int = 1
    processes_per_node: int = 1
    gpus: int | None = None
    cpus: int | None = None
    guessed: bool = False


def with_gpus(settings: SlurmSettings, nodes: int, processes: int) -> Asked:
    """What stages ask for that run a model in `processes` on each of `nodes`."""
    return Asked(
        settings.partition,
        settings.time,
        settings.mem,
        settings.exclusive,
        nodes,
        processes,
        gpus=processes if settings.has_gpus else None,
        cpus=_cpus(settings, processes),
        guessed=settings.cpus_per_task is None,
    )


def without_gpus(settings: SlurmSettings) -> Asked:
    """What everything else asks for: a job of the profile's cpu_partition, else one of its partition."""
    cpu = settings.cpu
    return Asked(cpu.partition, cpu.time, cpu.mem, cpus=cpu.cpus) if cpu else Asked(settings.partition, settings.time)


def directives(settings: SlurmSettings, name: str, asked: Asked) -> list[str]:
    """One line for each option. One task a node owns the CPUs of all its processes: torchrun starts these."""
    given = {
        "job-name": name,
        "account": settings.account,
        "nodes": asked.nodes,
        "ntasks-per-node": 1,
        "gpus-per-node": asked.gpus,
        "open-mode": "append",
        "partition": asked.partition,
        "cpus-per-task": asked.cpus,
        "time": asked.time,
        "mem": asked.mem,
    }
    return lines({option: value for option, value in given.items() if value is not None})


def stage_directives(settings: SlurmSettings, name: str, asked: Asked) -> list[str]:
    """As directives, of a job that runs stages: it is told before its end, and can be started again."""
    told = {"signal": f"B:USR1@{lead_seconds(asked.time)}"}
    alone = [f"#SBATCH --{asked.exclusive}"] if asked.exclusive else []
    return [*directives(settings, name, asked), *lines(told), *alone, "#SBATCH --requeue"]


def lead_seconds(time: str | None) -> int:
    """How long before its end a job is told; a quarter of a short one."""
    return min(_LEAD_SECONDS, seconds_of(time) // 4) if time else _LEAD_SECONDS


def lines(options: Mapping[str, object]) -> list[str]:
    """The directives of `options`."""
    return [f"#SBATCH --{option}={value}" for option, value in options.items()]


def _cpus(settings: SlurmSettings, processes: int) -> int | None:
    """The CPUs of a node's task. Nodes that are the job's alone give all of theirs."""
    if settings.cpus_per_task == 0:
        return None
    if settings.cpus_per_task is not None:
        return (settings.tasks_per_node or 1) * settings.cpus_per_task
    if settings.exclusive == "exclusive":
        return None
    each = CPUS_PER_GPU if settings.has_gpus else 1
    return each * processes if each * processes > 1 else None
