"""The local executor: run the stages of a plan one after the other on this machine, and leave no process behind."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from nemotron_dpo.errors import UserError
from nemotron_dpo.steps.plan import Plan, Stage

# torchrun gives its workers 30 s to end before it kills them.
GRACE_SECONDS = 35


class StageFailed(Exception):
    """A stage ended badly; it has said why itself. `status` is what a shell would call its exit status."""

    def __init__(self, stage: str, status: int) -> None:
        super().__init__(stage)
        self.stage = stage
        self.status = status

    def __str__(self) -> str:
        if self.status <= 128:
            return f"{self.stage} failed (exit {self.status}); it said why above"
        name = signal.Signals(self.status - 128).name if self.status - 128 in set(signal.Signals) else self.status - 128
        hint = ": out of memory?" if self.status == 137 else ""
        return f"{self.stage} was killed by {name} (exit {self.status}){hint}"


def run_plan(plan: Plan, env: Mapping[str, str]) -> None:
    """Run what the cache lacks, then the stages, with `env` added to the environment. Raises StageFailed at the first."""
    if plan.prelude is not None:
        with _only_one(plan.prelude.target):
            if not plan.prelude.is_cached:
                shutil.rmtree(plan.prelude.scratch, ignore_errors=True)
                plan.prelude.scratch.mkdir(parents=True)
                for name, argv in plan.prelude.commands:
                    run_stage(Stage(f"tiny-sft: {name}", argv), env)
    for stage in plan.stages:
        run_stage(stage, env)


def run_stage(stage: Stage, env: Mapping[str, str]) -> None:
    """Run one stage to its end; an interrupt or SIGTERM reaches it and everything it started before it is raised here."""
    try:
        process = subprocess.Popen(
            stage.argv, stdin=subprocess.DEVNULL, env={**os.environ, **env, **stage.env}, process_group=0
        )
    except FileNotFoundError:
        remedy = "is nemotron-dpo installed in this Python?"
        raise UserError(f"{stage.name}: no such program", source=stage.argv[0], remedy=remedy) from None
    try:
        status = process.wait()
    except BaseException as stop:
        _end(process, signal.SIGINT if isinstance(stop, KeyboardInterrupt) else signal.SIGTERM)
        raise
    if status != 0:
        raise StageFailed(stage.name, status if status > 0 else 128 - status)


def detach(log: Path) -> int:
    """Go on in a background process that writes to `log`: its id in the first process, 0 in the background one."""
    sys.stdout.flush()
    sys.stderr.flush()
    if child := os.fork():
        return child
    os.setsid()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    null = os.open(os.devnull, os.O_RDONLY)
    for target, source in ((0, null), (1, descriptor), (2, descriptor)):
        os.dup2(source, target)
    return 0


def _end(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Pass the signal on to the stage's group, wait for its tree to end, kill what does not."""
    import psutil

    family = [process.pid, *_descendants(process.pid)]
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
    try:
        process.wait(GRACE_SECONDS)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        family += _descendants(process.pid)
    for pid in family:
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def _descendants(pid: int) -> list[int]:
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    return []


@contextlib.contextmanager
def _only_one(target: Path) -> Iterator[None]:
    """Hold the lock beside `target`: a second run waits for the first one's result instead of making it again."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.with_name(f".{target.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
