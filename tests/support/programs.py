"""Run the real executables, as a user's shell would."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import orjson

ROOT = Path(__file__).resolve().parents[2]
BIN = ROOT / "bin"


def command(program: str, *arguments: object) -> list[str]:
    """argv of `program` (a name like "dpo-train") from this checkout, with this interpreter."""
    return [sys.executable, str(BIN / f"{program.replace('-', '_')}.py"), *map(str, arguments)]


def run(program: str, *arguments: object, **options: object) -> subprocess.CompletedProcess[bytes]:
    """Run `program` to its end, capturing output; options go to subprocess.run."""
    return subprocess.run(command(program, *arguments), capture_output=True, timeout=300, **options)  # type: ignore[call-overload]


def check(program: str, *arguments: object, **options: object) -> subprocess.CompletedProcess[bytes]:
    """As `run`, and it must succeed."""
    done = run(program, *arguments, **options)
    assert done.returncode == 0, done.stderr.decode()
    return done


def torchrun(processes: int, program: str, *arguments: object) -> None:
    """Run `program` as that many local processes and let it succeed."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    argv = [sys.executable, *launch, *command(program, *arguments)[1:]]
    done = subprocess.run(argv, capture_output=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr.decode()


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
