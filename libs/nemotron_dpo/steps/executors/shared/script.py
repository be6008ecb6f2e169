"""What the scripts of all executors share: what a node runs of each stage, and how an interrupted stage begins again."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from nemotron_dpo.steps.compile.stages import Plan, Stage
from nemotron_dpo.steps.executors.shared.path_map import PathMap

_HERE = Path(__file__).parent


def task_script(
    folder: str, config: str, startup_commands: Sequence[str], run_command: str, programs: str | None = None
) -> str:
    """The script, whose words are the stage's command, for the job in `folder`; `config` is what {config} stands for.

    In the folder `programs` are programs that are used where there are no others.
    """
    run = run_command.replace("{script}", '"$@"').replace("{config}", shlex.quote(config))
    start_up = ["set -eo pipefail", *startup_commands, "set +e"] if startup_commands else []
    parts = [
        "#!/bin/bash",
        f"job={shlex.quote(folder)}",
        *([f"export PATH=$PATH:{shlex.quote(programs)}"] if programs else []),
        f"run_stage() {{ {run}; }}",
        *start_up,
        (_HERE / "task.sh").read_text(encoding="utf-8"),
    ]
    return "\n".join(parts)


def clear_way() -> str:
    """The shell function of that name."""
    return (_HERE / "clear_way.sh").read_text(encoding="utf-8")


def makes_line(plan: Plan, stage: Stage, paths: PathMap) -> str:
    """What `stage` makes and would not write over, in a shell's words; training goes on in its folder."""
    made = [paths.of(str(path)) for path in stage.outputs if path != plan.run_dir]
    return f"makes=({shlex.join(made)})"
