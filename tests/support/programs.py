"""Run the real executables, as a user's shell would.

Most are forks of a process that has imported torch and megatron-core already; `cold=True` starts a new Python.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from support import forks

ROOT = Path(__file__).resolve().parents[2]
BIN = ROOT / "bin"
Done = subprocess.CompletedProcess[bytes]
Begun = forks.Fork | subprocess.Popen[bytes]  # with a pid, send_signal(number) and wait(timeout)


def command(program: str, *arguments: object) -> list[str]:
    """argv of `program` (a name like "dpo-train") from this checkout, with this interpreter."""
    return [sys.executable, str(BIN / f"{program.replace('-', '_')}.py"), *map(str, arguments)]


def run(program: str, *arguments: object, cold: bool = False, **options: Any) -> Done:
    """Run `program` to its end, capturing output; options go to subprocess.run."""
    return execute(command(program, *arguments), cold=cold, **options)


def execute(argv: Sequence[str], *, cold: bool = False, **options: Any) -> Done:
    """Run `argv`, a Python file of this checkout and its arguments under this interpreter, as `run` does.

    `cold` is in a Python of its own, and so is what a fork could not honour: a preexec_fn, or variables that are read at start.
    """
    if cold or options.keys() - {"cwd", "env", "input"} or not forks.can_fork(options.get("env") or os.environ):
        return subprocess.run(argv, capture_output=True, timeout=300, **options)
    return forks.run(argv, **options)


def run_with_small_files(limit: int, program: str, *arguments: object, **options: Any) -> Done:
    """As `run`, where no file can have more than `limit` bytes."""
    script = Path(__file__).with_name("small_files.py")
    return execute([sys.executable, str(script), str(limit), *command(program, *arguments)[1:]], **options)


def begin(program: str, *arguments: object, stdin: int = 0, env: Mapping[str, str] | None = None) -> tuple[Begun, BinaryIO]:
    """Start `program`, and what it says on stderr; `stdin` is a descriptor."""
    argv = command(program, *arguments)
    said, stderr = os.pipe()
    try:
        if forks.can_fork(env or os.environ):
            return forks.start(argv, stdin, 1, stderr, env=env), open(said, "rb")
        return subprocess.Popen(argv, stdin=stdin, stderr=stderr, env=env), open(said, "rb")
    finally:
        os.close(stderr)


def check(program: str, *arguments: object, **options: Any) -> Done:
    """As `run`, and it must succeed."""
    done = run(program, *arguments, **options)
    assert done.returncode == 0, done.stderr.decode()
    return done


def torchrun(processes: int, program: str, *arguments: object, launched: bool = False) -> None:
    """Run `program` as that many local processes, as `execute_job` does, and let it succeed."""
    done = execute_job(processes, command(program, *arguments), launched=launched)
    assert done.returncode == 0, done.stderr.decode()


def execute_job(
    processes: int, argv: Sequence[str], *, launched: bool = False, own: Mapping[int, Mapping[str, str]] | None = None
) -> Done:
    """Run `argv` as that many processes of a job: its first status that is not 0, and what all of them said.

    `launched` is under torchrun's own agent; else the processes hear of each other as from any other launcher, and a rank may
    have variables of its `own`.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # as torchrun sets it
    if launched:
        job = ("--standalone", "--nproc-per-node", processes, "--no-python")
        return execute(command("dpo-torchrun", *job, *argv), env=environment)
    environment |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = [
        {**environment, "RANK": str(rank), "LOCAL_RANK": str(rank), **(own or {}).get(rank, {})} for rank in range(processes)
    ]
    with ThreadPoolExecutor(processes) as pool:
        done = list(pool.map(lambda rank: execute(argv, env=rank), ranks))
    status = next((one.returncode for one in done if one.returncode), 0)
    stdout, stderr = (b"".join(said) for said in zip(*((one.stdout, one.stderr) for one in done), strict=True))
    return subprocess.CompletedProcess(argv, status, stdout, stderr)


def free_port() -> int:
    """A port of the loopback interface that nobody listens on, just now, below those that the kernel hands out to others."""
    while True:
        port = random.SystemRandom().randrange(20000, 32000)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


def records(run_dir: Path) -> list[dict]:
    """The records of a run's metrics.jsonl."""
    return [orjson.loads(line) for line in (run_dir / "metrics.jsonl").read_bytes().splitlines()]


def metrics(run_dir: Path) -> list[dict]:
    """Those that are of the policy: of steps and validations, not of how long a checkpoint took."""
    return [record for record in records(run_dir) if any(name.endswith("/loss") for name in record)]


def losses(run_dir: Path) -> list[float]:
    """The training loss of every step."""
    return [record["train/loss"] for record in metrics(run_dir) if "train/loss" in record]


def error_line(done: Done, program: str) -> str:
    """The one line a failed program must have written, without `program: error: `."""
    heard = tuple(
        f"{program}: {word}" for word in ("warning", "noise floor", "scoring", "tokenizing", "training", "validation")
    )
    lines = [line for line in done.stderr.decode().splitlines() if not line.startswith(heard)]
    assert len(lines) == 1, done.stderr.decode()
    assert lines[0].startswith(f"{program}: error: "), lines[0]
    return lines[0].removeprefix(f"{program}: error: ")
