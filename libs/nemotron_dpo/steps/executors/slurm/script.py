"""Write the batch script of a plan: Slurm's directives, what this job is, one line a stage. What was typed is quoted."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nemotron_dpo.steps.compile.stages import Plan
from nemotron_dpo.steps.executors.shared.path_map import PathMap
from nemotron_dpo.steps.executors.shared.script import clear_way, makes_line
from nemotron_dpo.steps.executors.slurm.keys import seconds_of
from nemotron_dpo.steps.executors.slurm.settings import SlurmSettings

# Slurm may be up to a minute early with the signal; saving a large policy takes its time.
_LEAD_SECONDS = 120
_HERE = Path(__file__).parent


@dataclass(frozen=True)
class SlurmJobFacts:
    """Where a job lies on the cluster and how wide it is. `image` is the squash file, if it runs in a container."""

    name: str
    folder: str
    work: str
    checkpoints: str
    config: str
    num_nodes: int
    processes_per_node: int
    environment_names: tuple[str, ...]
    image: str | None


def directives(settings: SlurmSettings, name: str, *, nodes: int, gpus: int | None) -> list[str]:
    """The options that every script of ours gives Slurm, one directive each."""
    given = {
        "job-name": name,
        "account": settings.account,
        "nodes": str(nodes),
        "ntasks-per-node": "1",
        "gpus-per-node": None if gpus is None else str(gpus),
        "open-mode": "append",
    }
    return [f"#SBATCH --{option}={value}" for option, value in given.items() if value is not None]


def job_script(plan: Plan, settings: SlurmSettings, facts: SlurmJobFacts, paths: PathMap) -> str:
    """The script that runs the stages of `plan` one after the other, each as a job step."""
    parts = [
        "#!/bin/bash",
        *job_directives(settings, facts),
        "{ set +x; } 2>/dev/null # a trace would show secrets",
        *variables(settings, facts),
        (_HERE / "job.sh").read_text(encoding="utf-8"),
        clear_way(),
        "start",
        *settings.setup_lines,
        *_stage_lines(plan, facts, paths),
        'state done 0 ""',
    ]
    return "\n".join(parts) + "\n"


def lead_seconds(time: str | None) -> int:
    """How long before its end a job is told; a quarter of a short one."""
    return min(_LEAD_SECONDS, seconds_of(time) // 4) if time else _LEAD_SECONDS


def job_directives(settings: SlurmSettings, facts: SlurmJobFacts) -> list[str]:
    """The options of a job's own script."""
    gpus = facts.processes_per_node if settings.has_gpus else None
    given = {
        "partition": settings.partition,
        "cpus-per-task": settings.cpus_per_node,
        "time": settings.time,
        "mem": settings.mem,
        "signal": f"B:USR1@{lead_seconds(settings.time)}",
    }
    lines = directives(settings, facts.name, nodes=facts.num_nodes, gpus=gpus)
    lines += [f"#SBATCH --{option}={value}" for option, value in given.items() if value is not None]
    return [*lines, *([f"#SBATCH --{settings.exclusive}"] if settings.exclusive else []), "#SBATCH --requeue"]


def variables(settings: SlurmSettings, facts: SlurmJobFacts) -> list[str]:
    """Shell variables that job.sh reads, and what of the environment is no secret."""
    values = {
        "job": facts.folder,
        "folder": facts.work,
        "checkpoints": facts.checkpoints,
        "num_nodes": str(facts.num_nodes),
        "processes_per_node": str(facts.processes_per_node),
        "has_environment": "yes" if facts.environment_names else "no",
    }
    lines = [f"{name}={shlex.quote(value)}" for name, value in values.items()]
    lines.append(f"step_options=({shlex.join(_step_options(settings, facts))})")
    lines.append('export NEMO_RUN_DIR="$job"')
    if settings.job_root:
        lines.append(f"export HF_HOME=${{HF_HOME:-{shlex.quote(settings.job_root + '/huggingface')}}}")
    if programs := _programs(settings):
        lines.append(f"export PATH={shlex.quote(programs)}:$PATH")
    return lines


def _step_options(settings: SlurmSettings, facts: SlurmJobFacts) -> list[str]:
    options = [f"--cpus-per-task={settings.cpus_per_node}"] if settings.cpus_per_node else []
    if facts.image is None:
        return options
    shared = [folder for folder in (settings.job_root or facts.folder, settings.workspace) if folder]
    mounts = [*(f"{folder}:{folder}" for folder in shared), *settings.mounts]
    options += [f"--container-image={facts.image}", f"--container-mounts={','.join(mounts)}", "--no-container-mount-home"]
    options += [f"--container-workdir={settings.workspace}"] if settings.workspace else []
    names = ["NEMO_RUN_DIR", *(["HF_HOME"] if settings.job_root else []), *facts.environment_names]
    return [*options, f"--container-env={','.join(dict.fromkeys(names))}"]


def _programs(settings: SlurmSettings) -> str | None:
    """The folder of our programs: in a container the image's own, else the workspace's, or ours where nodes share it."""
    if settings.container_image:
        return None
    if settings.workspace:
        return f"{settings.workspace}/.venv/bin"
    return os.path.dirname(os.path.abspath(sys.executable)) if settings.tunnel == "local" else None


def _stage_lines(plan: Plan, facts: SlurmJobFacts, paths: PathMap) -> Iterator[str]:
    if plan.prelude is not None and paths.of(str(plan.prelude.target)) != str(plan.prelude.target):
        yield f"mkdir -p -- {shlex.quote(paths.of(str(plan.prelude.scratch)))}"
        for number, (name, argv) in enumerate(plan.prelude.commands, start=1):
            yield _stage_line(f"0.{number}", f"tiny-sft: {name}", "1", paths.command(argv))
    for number, stage in enumerate(plan.stages, start=1):
        assert set(stage.env) <= {"OMP_NUM_THREADS"}  # which depends on the node
        command = paths.command(stage.argv[stage.num_launcher_words :])
        nodes = str(facts.num_nodes) if stage.num_launcher_words else "1"
        yield makes_line(plan, stage, paths)
        yield _stage_line(str(number), stage.name, nodes, command, launched=bool(stage.num_launcher_words))


def _stage_line(number: str, name: str, nodes: str, command: Sequence[str], *, launched: bool = False) -> str:
    launcher = ['dpo-torchrun "${rendezvous[@]}"'] if launched else []
    return " ".join(["stage", number, shlex.quote(name), nodes, *launcher, shlex.join(command)])
