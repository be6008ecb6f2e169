"""dpo-train over two hosts: torchrun meets by its c10d rendezvous, gloo talks over the network between them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import small
from support.forking_python import forks_first
from support.programs import check, command, losses
from support.two_hosts import COUNT, Hosts, two_hosts

SETTINGS = (
    "policy.precision=float32",
    "policy.train_global_batch_size=8",
    "policy.max_total_sequence_length=64",
    "policy.scheduler.warmup_steps=0",
    "policy.optimizer.lr=0.003",
    "dpo.reference_policy_kl_penalty=0.3",
    "dpo.max_num_steps=5",
    "dpo.max_num_epochs=2",
)


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    with two_hosts() as up:
        yield up


def on_every_host(hosts: Hosts, find: str, program: str, *arguments: object) -> list[tuple[int, str]]:
    """(status, stderr) of each host's torchrun, one process a host, where the shell command `find` finds our programs."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "eth0"}
    meet = ["--nnodes", COUNT, "--nproc-per-node", 1, "--rdzv-backend", "c10d", "--rdzv-endpoint", "node1:29500"]
    argv = ["sh", "-c", f'{find}; exec dpo-torchrun "$@"', "sh", *meet, "--no-python", *command(program, *arguments)]
    lines = [hosts.command(index + 1, argv) for index in range(COUNT)]
    started = [subprocess.Popen(line, env=environment, stderr=subprocess.PIPE, text=True) for line in lines]
    try:
        said = [process.communicate(timeout=120)[1] for process in started]
        return [(process.returncode, text) for process, text in zip(started, said, strict=True)]
    finally:
        for process in started:
            process.kill()


@pytest.mark.slow
@pytest.mark.multiprocess
def test_two_hosts_give_the_single_process_curve(hosts: Hosts, llama: Path, tmp_path: Path) -> None:
    pairs = small.write_pairs(tmp_path / "pairs.arrow", small.random_pairs(24, seed=11))
    scored = tmp_path / "scored.arrow"
    check("ref-logprobs", pairs, "-o", scored, "--policy", llama, "--precision", "float32")
    check("dpo-train", scored, "--policy", llama, "--run-dir", tmp_path / "one", *SETTINGS)
    with forks_first(tmp_path / "forks") as find:
        ends = on_every_host(hosts, find, "dpo-train", scored, "--policy", llama, "--run-dir", tmp_path / "two", *SETTINGS)
    assert [status for status, _ in ends] == [0, 0], ends
    assert len(losses(tmp_path / "two")) == 5
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
