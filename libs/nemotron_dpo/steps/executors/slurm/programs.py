"""Where nodes find the programs of the stages: in a workspace, in the container's image, or where ours lie."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

from nemotron_dpo.steps.compile.programs import executable
from nemotron_dpo.steps.compile.stages import Plan
from nemotron_dpo.steps.executors.shared.path_map import PathMap
from nemotron_dpo.steps.executors.slurm.settings import SlurmSettings

_BIN = ".venv/bin"
_OURS = "preference-tokenize"  # that stands for all of them
_NAMED = 'workspace = "/..." names a checkout there with its .venv made, container_image an image that has nemotron-dpo'


def programs_on_nodes(settings: SlurmSettings) -> str | None:
    """What PATH must begin with; None in a container, and where the shell of the nodes must know."""
    if settings.container_image:
        return None
    if settings.workspace:
        return f"{settings.workspace}/{_BIN}"
    return ":".join(_folders_here()) if settings.tunnel == "local" else None


def programs_in_container(settings: SlurmSettings) -> str | None:
    """What PATH ends with in a container: the workspace's programs, where the image has none."""
    return f"{settings.workspace}/{_BIN}" if settings.container_image and settings.workspace else None


def no_programs(plan: Plan, settings: SlurmSettings, environment: Collection[str]) -> Iterator[str]:
    """Why the nodes would find no program, as far as can be known here."""
    says_how = settings.startup_commands or settings.setup_lines or "PATH" in environment
    if settings.container_image or says_how:
        return
    if settings.workspace is None and settings.tunnel == "ssh":
        yield f"{settings.source}: profile {settings.name}: nothing says where nodes find the programs: {_NAMED}"
    if settings.workspace and settings.tunnel == "local":
        names = dict.fromkeys(PathMap(()).command(stage.argv[stage.num_launcher_words :])[0] for stage in plan.stages)
        lacking = [name for name in names if not (Path(settings.workspace) / _BIN / name).exists()]
        if lacking:
            what = f"{settings.workspace}/{_BIN} lacks {', '.join(lacking)}"
            yield f"{settings.source}: profile {settings.name}: {what}: make it there by `just setup`"


def _folders_here() -> list[str]:
    """Those of our programs and of our Python, which are one in a virtual environment."""
    found = shutil.which(executable(_OURS))
    folders = [os.path.dirname(os.path.abspath(path)) for path in (found, sys.executable) if path]
    return list(dict.fromkeys(folders))
