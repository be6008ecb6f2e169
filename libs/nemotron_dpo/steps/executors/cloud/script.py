"""Write the script that every node of a job runs: what this job is, one line a stage. What was typed is quoted."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nemotron_dpo.steps.compile.stages import Plan
from nemotron_dpo.steps.executors.cloud.settings import CloudSettings
from nemotron_dpo.steps.executors.shared.path_map import PathMap
from nemotron_dpo.steps.executors.shared.script import clear_way, makes_line

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class CloudJobFacts:
    """Where a job lies on the nodes' storage and how wide it is."""

    name: str
    folder: str
    num_nodes: int
    processes_per_node: int


def job_script(plan: Plan, settings: CloudSettings, facts: CloudJobFacts, paths: PathMap) -> str:
    """The script that runs the stages of `plan` one after the other."""
    parts = [
        "#!/bin/bash",
        "{ set +x; } 2>/dev/null # a trace would show secrets",
        *_variables(settings, facts),
        (_HERE / "job.sh").read_text(encoding="utf-8"),
        clear_way(),
        "start",
        *settings.setup_lines,
        *_stage_lines(plan, facts, paths),
    ]
    return "\n".join(parts) + "\n"


def _variables(settings: CloudSettings, facts: CloudJobFacts) -> Iterator[str]:
    values = {
        "job_name": facts.name,
        "job": facts.folder,
        "folder": settings.workspace or facts.folder,
        "num_nodes": str(facts.num_nodes),
        "processes_per_node": str(facts.processes_per_node),
    }
    yield from (f"{name}={shlex.quote(value)}" for name, value in values.items())
    yield 'export NEMO_RUN_DIR="$job"'
    yield f"export HF_HOME=${{HF_HOME:-{shlex.quote(settings.job_root + '/huggingface')}}}"
    if settings.workspace:
        yield f"export PATH={shlex.quote(settings.workspace + '/.venv/bin')}:$PATH"


def _stage_lines(plan: Plan, facts: CloudJobFacts, paths: PathMap) -> Iterator[str]:
    if plan.prelude is not None:
        yield f"mkdir -p -- {shlex.quote(paths.of(str(plan.prelude.scratch)))}"
        for number, (name, argv) in enumerate(plan.prelude.commands, start=1):
            yield _stage_line(f"0.{number}", f"tiny-sft: {name}", 1, paths.command(argv))
    for number, stage in enumerate(plan.stages, start=1):
        command = paths.command(stage.argv[stage.num_launcher_words :])
        is_launched = bool(stage.num_launcher_words)
        yield makes_line(plan, stage, paths)
        yield _stage_line(str(number), stage.name, facts.num_nodes if is_launched else 1, command, is_launched)


def _stage_line(number: str, name: str, nodes: int, command: Sequence[str], is_launched: bool = False) -> str:
    launcher = ['dpo-torchrun "${rendezvous[@]}"'] if is_launched else []
    return " ".join(["stage", number, shlex.quote(name), str(nodes), *launcher, shlex.join(command)])
