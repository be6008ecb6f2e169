"""nemotron-steps on the cluster of slurm_cluster.py: its profiles, and runs followed while a test does something to them."""

from __future__ import annotations

import os
import re
from pathlib import Path

from support.followed import PROGRAM, Said
from support.programs import Begun, begin

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


def started(*arguments: str, until: str, stdin: int | None = None) -> tuple[Begun, str, Said]:
    """An attached run that has said `until`: its process, the id of its job, and what it says; it reads nothing but `stdin`."""
    with open(os.devnull, "rb") as nothing:
        process, stderr = begin(PROGRAM, *arguments, stdin=nothing.fileno() if stdin is None else stdin)
    said = Said(stderr)
    said.wait_for(until)
    (job_id,) = re.findall(r"job (\S+) is submitted", said.so_far())
    return process, job_id, said
