"""nemotron-steps on the cluster of slurm_cluster.py: its profiles, and runs followed while a test does something to them."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from support.programs import Begun, begin

PROGRAM = "nemotron-steps"
SECRET = "planted-by-the-test-0123456789"
PROFILES = """
[wandb]
project = "aligned"
[base]
executor = "slurm"
account = "test"
time = 00:10:00
env_vars = {{ MY_WORD = "{secret}", OMP_NUM_THREADS = "1" }}
[forked]
extends = "base"
startup_commands = ['export PATH="{folder}/forks:$PATH"']
[two]
extends = "forked"
nodes = 2
ntasks_per_node = 1
[slow]
extends = "base"
startup_commands = ["sleep 120"]
[far]
extends = "base"
host = "login"
user = "root"
identity = "{key}"
remote_job_dir = "{folder}/remote"
workspace = "{folder}/workspace"
[far_and_bad]
extends = "far"
partition = "none"
[denied]
extends = "far"
identity = "{wrong_key}"
[nobody]
extends = "far"
host = "nobody"
[bad_partition]
extends = "base"
partition = "none"
[bad_account]
extends = "base"
account = "none"
[far_and_slow]
extends = "far"
startup_commands = ["sleep 120"]
[split]
extends = "forked"
gpus_per_node = 1
cpus_per_task = 1
cpu_partition = "interactive"
[image]
extends = "base"
remote_job_dir = "{folder}/remote"
container_image = "nvcr.io/nvidia/nemo:25.11"
build_partition = "interactive"
build_time = "00:05:00"
"""


def local_job(folder: Path) -> Path:
    (job,) = (folder / ".nemotron" / "jobs").iterdir()
    return job


def error_lines(stderr: bytes) -> list[str]:
    start = f"{PROGRAM}: error: "
    return [line.removeprefix(start) for line in stderr.decode().splitlines() if line.startswith(start)]


def started(*arguments: str, until: str, stdin: int | None = None) -> tuple[Begun, str, list[bytes]]:
    """An attached run that has said `until`: its process, the id of its job, and what it says; it reads nothing but `stdin`."""
    with open(os.devnull, "rb") as nothing:
        process, stderr = begin(PROGRAM, *arguments, stdin=nothing.fileno() if stdin is None else stdin)
    said: list[bytes] = []
    for line in stderr:
        said.append(line)
        if until in line.decode():
            break
    job_id = next(line.split()[2].decode() for line in said if b"is submitted" in line)
    threading.Thread(target=_read_on, args=(stderr, said), daemon=True).start()
    return process, job_id, said


def _read_on(stderr: BinaryIO, said: list[bytes]) -> None:
    """By chunks: a question does not end its line."""
    with stderr:
        said.extend(iter(lambda: os.read(stderr.fileno(), 1 << 16), b""))


def wait_until(holds: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)
