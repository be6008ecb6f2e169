"""Run the real executables, as a user's shell would.

Most are forks of a process that has imported torch and megatron-core already; `cold=True` starts a new Python.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import orjson

from support import forks

ROOT = Path(__file__).resolve().parents[2]
BIN = ROOT / "bin"


def command(program: str, *arguments: object) -> list[str]:
    """argv of `program` (a name like "dpo-train") from this checkout, with this interpreter."""
    return [sys.executable, str(BIN / f"{program.replace('-', '_')}.py"), *map(str, arguments)]


def run(program: str, *arguments: object, cold: bool = False, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """Run `program` to its end, capturing output; options go to subprocess.run."""
    return execute(command(program, *arguments), cold=cold, **options)


def execute(argv: Sequence[str], *, cold: bool = False, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """Run `argv`, a Python file of this checkout and its arguments under this interpreter, as `run` does.

    `cold` is in a Python of its own, and so is what a fork could not honour: a preexec_fn, or variables that are read at start.
    """
    if cold or options.keys() - {"cwd", "env", "input"} or not forks.can_fork(options.get("env") or os.environ):
        return subprocess.run(argv, capture_output=True, timeout=300, **options)
    return forks.run(argv, **options)


def check(program: str, *arguments: object, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """As `run`, and it must succeed."""
    done = run(program, *arguments, **options)
    assert done.returncode == 0, done.stderr.decode()
    return done


def torchrun(processes: int, program: str, *arguments: object, cold: bool = False) -> None:
    """Run `program` as that many local processes and let it succeed.

    `cold` is under torchrun; else the processes are forks that are told of each other as by any launcher.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if cold or not forks.can_fork(environment):
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        argv = [sys.executable, *launch, *command(program, *arguments)[1:]]
        done = subprocess.run(argv, capture_output=True, timeout=300, env=environment)
        assert done.returncode == 0, done.stderr.decode()
        return
    job = {**environment, "WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1"}
    job["MASTER_PORT"] = str(free_port())
    ranks = [{**job, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
    argv = command(program, *arguments)
    with ThreadPoolExecutor(processes) as pool:
        done = list(pool.map(lambda one: forks.run(argv, env=one), ranks))
    assert [one.returncode for one in done] == [0] * processes, b"".join(one.stderr for one in done).decode()


def free_port() -> int:
    """A port of the loopback interface that nobody listens on, just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def metrics(run_dir: Path) -> list[dict]:
    """The records of a run's metrics.jsonl."""
    return [orjson.loads(line) for line in (run_dir / "metrics.jsonl").read_bytes().splitlines()]


def losses(run_dir: Path) -> list[float]:
    """The training loss of every step."""
    return [record["train/loss"] for record in metrics(run_dir) if "train/loss" in record]


def error_line(done: subprocess.CompletedProcess[bytes], program: str) -> str:
    """The one line a failed program must have written, without `program: error: `."""
    heard = (f"{program}: warning", f"{program}: noise floor")
    lines = [line for line in done.stderr.decode().splitlines() if not line.startswith(heard)]
    assert len(lines) == 1, done.stderr.decode()
    assert lines[0].startswith(f"{program}: error: "), lines[0]
    return lines[0].removeprefix(f"{program}: error: ")
