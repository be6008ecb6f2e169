"""Write the batch script of a job: Slurm's directives, what this job is, one line a stage. What was typed is quoted."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nemotron_dpo.steps.compile.stages import Plan
from nemotron_dpo.steps.executors.shared.path_map import PathMap
from nemotron_dpo.steps.executors.shared.script import clear_way, makes_line
from nemotron_dpo.steps.executors.slurm.asked import Asked, stage_directives
from nemotron_dpo.steps.executors.slurm.parts import JobPart
from nemotron_dpo.steps.executors.slurm.programs import programs_on_nodes
from nemotron_dpo.steps.executors.slurm.settings import SlurmSettings

_HERE = Path(__file__).parent
# srun no longer takes the CPUs of its job's task for its own (Slurm 22.05).
_CPUS = "${SLURM_CPUS_PER_TASK:+--cpus-per-task=$SLURM_CPUS_PER_TASK}"


@dataclass(frozen=True)
class SlurmJobFacts:
    """Where a job lies on the cluster. `image` is the squash file, if it runs in a container."""

    name: str
    folder: str
    work: str
    checkpoints: str
    config: str
    environment_names: tuple[str, ...]
    image: str | None


def job_script(plan: Plan, part: JobPart, settings: SlurmSettings, facts: SlurmJobFacts, paths: PathMap) -> str:
    """The script that runs the stages of `part` one after the other, each as a job step."""
    lines = [
        "#!/bin/bash",
        *stage_directives(settings, part.called(facts.name), part.asked),
        "{ set +x; } 2>/dev/null # a trace would show secrets",
        *variables(settings, facts, part.asked, secrets=part.secrets),
        (_HERE / "job.sh").read_text(encoding="utf-8"),
        clear_way(),
        "start",
        *settings.setup_lines,
        *_stage_lines(plan, part, facts, paths),
        'state done 0 ""' if part.is_last else 'state submitted null "its next job waits"',
    ]
    return "\n".join(lines) + "\n"


def variables(settings: SlurmSettings, facts: SlurmJobFacts, asked: Asked, *, secrets: str | None = None) -> list[str]:
    """Shell variables that job.sh reads, and what of the environment is no secret and not the profile's own."""
    values = {
        "job": facts.folder,
        "folder": facts.work,
        "checkpoints": facts.checkpoints,
        "num_nodes": str(asked.nodes),
        "processes_per_node": str(asked.processes_per_node),
        "secrets": secrets if secrets and facts.environment_names else "",
    }
    lines = [f"{name}={shlex.quote(value)}" for name, value in values.items()]
    lines.append(f"step_options=({' '.join([_CPUS, *map(shlex.quote, _container_options(settings, facts))])})")
    ours = {"NEMO_RUN_DIR": '"$job"'}
    if settings.job_root:
        ours["HF_HOME"] = f"${{HF_HOME:-{shlex.quote(settings.job_root + '/huggingface')}}}"
    if folders := programs_on_nodes(settings):
        ours["PATH"] = f"{shlex.quote(folders)}:$PATH"
    return lines + [f"export {name}={value}" for name, value in ours.items() if name not in facts.environment_names]


def _container_options(settings: SlurmSettings, facts: SlurmJobFacts) -> list[str]:
    if facts.image is None:
        return []
    shared = [folder for folder in (settings.job_root or facts.folder, settings.workspace) if folder]
    mounts = [*(f"{folder}:{folder}" for folder in shared), *settings.mounts]
    options = [f"--container-image={facts.image}", f"--container-mounts={','.join(mounts)}", "--no-container-mount-home"]
    options += [f"--container-workdir={settings.workspace}"] if settings.workspace else []
    names = ["NEMO_RUN_DIR", *(["HF_HOME"] if settings.job_root else []), *facts.environment_names]
    return [*options, f"--container-env={','.join(dict.fromkeys(names))}"]


def _stage_lines(plan: Plan, part: JobPart, facts: SlurmJobFacts, paths: PathMap) -> Iterator[str]:
    prelude = plan.prelude if part.is_first else None
    if prelude is not None and paths.of(str(prelude.target)) != str(prelude.target):
        yield f"mkdir -p -- {shlex.quote(paths.of(str(prelude.scratch)))}"
        for number, (name, argv) in enumerate(prelude.commands, start=1):
            yield _stage_line(f"0.{number}", f"tiny-sft: {name}", 1, paths.command(argv))
    for number, stage in part.stages:
        assert set(stage.env) <= {"OMP_NUM_THREADS"}  # which depends on the node
        command = paths.command(stage.argv[stage.num_launcher_words :])
        is_launched = bool(stage.num_launcher_words)
        yield makes_line(plan, stage, paths)
        yield _stage_line(str(number), stage.name, part.asked.nodes if is_launched else 1, command, launched=is_launched)


def _stage_line(number: str, name: str, nodes: int, command: Sequence[str], *, launched: bool = False) -> str:
    launcher = ['dpo-torchrun "${rendezvous[@]}"'] if launched else []
    return " ".join(["stage", number, shlex.quote(name), str(nodes), *launcher, shlex.join(command)])
