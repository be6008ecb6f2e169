"""Run nemotron-steps in the environment that has NeMo-Run, against a fake service."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemotron_dpo.steps.catalogue.manifest import configs_root
from support import forks
from support.followed import Said
from support.launch_venv import launch_environment, launch_python
from support.programs import BIN

DATA = configs_root() / "rl" / "nemo_rl" / "dpo" / "data" / "train.jsonl"


@dataclass(frozen=True)
class Runs:
    """A working folder whose env.toml has profiles for the service whose records are in `service`."""

    folder: Path
    service: Path
    env: dict[str, str]

    def command(self, *arguments: object) -> list[str]:
        return [launch_python(), str(BIN / "nemotron_steps.py"), *map(str, arguments)]

    def options(self, **env: str) -> dict[str, Any]:
        secrets = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY")
        inherited = {name: value for name, value in os.environ.items() if name not in secrets}
        own = {"HF_TOKEN_PATH": "/nonexistent", "NEMORUN_HOME": str(self.folder / "nemo_run")}
        return {"cwd": self.folder, "env": {**inherited, **launch_environment(), **own, **self.env, **env}}

    def run(self, *arguments: object, through: Path | str = "", **env: str) -> subprocess.CompletedProcess[bytes]:
        """Run it to its end; `through` is a Python file that runs the file it is given."""
        (interpreter, *rest), options, python = self.command(*arguments), self.options(**env), _python()
        argv = [interpreter, *([str(through)] if through else []), *rest]
        if forks.can_fork(options["env"], python):
            return forks.run(argv, input=b"", timeout=200, python=python, **options)
        return subprocess.run(argv, capture_output=True, timeout=200, stdin=subprocess.DEVNULL, **options)

    def start(self, *arguments: object, until: str) -> Started:
        """An attached run that has said `until`."""
        argv, options, python = self.command(*arguments), self.options(), _python()
        out, err = os.pipe()
        with open(err, "wb") as stderr, open(os.devnull, "r+b") as nothing:
            if forks.can_fork(options["env"], python):
                descriptors = (nothing.fileno(), nothing.fileno(), err)
                started = Started(forks.start(argv, *descriptors, python=python, **options), out)
            else:
                started = Started(subprocess.Popen[bytes](argv, stdin=nothing, stdout=nothing, stderr=stderr, **options), out)
        started.said.wait_for(until)
        return started

    def requests(self) -> list[dict]:
        """Every request that the service got."""
        path = self.service / "requests.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def records(self) -> list[Path]:
        """The local folders of runs."""
        jobs = self.folder / ".nemotron" / "jobs"
        return list(jobs.iterdir()) if jobs.exists() else []


def _python() -> forks.Python:
    """That of the environment. NeMo-Run and Lepton's client look at variables where they are imported, and log by loguru."""
    executors = tuple(f"nemotron_dpo.steps.executors.{name}.executor" for name in ("lepton", "dgxcloud"))
    first = ("omegaconf._impl", "jinja2", "nemotron_dpo.steps.compile.planners", *executors)  # what submits computes nothing
    return forks.Python(launch_python(), tuple(launch_environment().items()), ("nemo_run", "leptonai", "loguru"), first)


class Started:
    """A run that goes on, and what it says."""

    def __init__(self, process: subprocess.Popen[bytes] | forks.Fork, stderr: int) -> None:
        self.process, self.said = process, Said(open(stderr, "rb"))  # noqa: SIM115 - which closes it

    def wait(self) -> int:
        """Its status, once all is said."""
        status = self.process.wait(90)
        self.said.whole()
        return status


def prepare_folder(folder: Path, profiles: str) -> None:
    """A working folder with env.toml, and the workspace that jobs find on their storage."""
    workspace = folder / "workspace"
    workspace.mkdir()
    (workspace / ".venv").symlink_to(sys.prefix)
    (workspace / "configs").symlink_to(configs_root())
    (folder / "storage").mkdir()
    (folder / "env.toml").write_text(profiles)


def watched_command_lines(stop: threading.Event) -> Iterator[str]:
    """The command line of every process on this machine, until `stop`."""
    while not stop.wait(0.02):
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                yield path.read_bytes().decode(errors="replace").replace("\0", " ")
            except OSError:
                continue  # it has just ended
