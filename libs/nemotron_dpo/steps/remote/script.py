"""The script that each node runs of each stage: the profile's own commands around the stage's."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

_HERE = Path(__file__).parent


def task_script(folder: str, config: str, startup_commands: Sequence[str], run_command: str) -> str:
    """The script, whose words are the stage's command, for the job in `folder`; `config` is what {config} stands for."""
    run = run_command.replace("{script}", '"$@"').replace("{config}", shlex.quote(config))
    start_up = ["set -eo pipefail", *startup_commands, "set +e"] if startup_commands else []
    parts = [
        "#!/bin/bash",
        f"job={shlex.quote(folder)}",
        f"run_stage() {{ {run}; }}",
        *start_up,
        (_HERE / "task.sh").read_text(encoding="utf-8"),
    ]
    return "\n".join(parts)
