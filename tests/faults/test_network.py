"""No program asks the network for what it was not told to, and without any interface the end is one line."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from nemotron_dpo.steps.catalogue.manifest import configs_root
from nemotron_dpo.steps.tiny_policy import write_policy
from support.forking_python import forks_first

ALONE = ("unshare", "--map-root-user", "--net")  # a network of its own, with a loopback interface that is down


def _run(argv: Sequence[str], folder: Path, find: str = ":", *, loopback: bool = False) -> subprocess.CompletedProcess[str]:
    up = "ip link set lo up && " if loopback else ""
    line = [*ALONE, "sh", "-c", f'{find}; {up}exec "$@"', "sh", *argv]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(line, cwd=folder, capture_output=True, text=True, timeout=300, env={**os.environ, "PATH": path})


@pytest.mark.slow
def test_the_chain_without_a_network(tmp_path: Path) -> None:
    try:
        usable = _run(["true"], tmp_path).returncode == 0
    except FileNotFoundError:
        usable = False
    if not usable:
        pytest.skip("a network namespace of one's own is not allowed here")
    rows = (configs_root() / "rl" / "nemo_rl" / "dpo" / "data" / "train.jsonl").read_text().splitlines()[:4]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows) + "\n")
    write_policy([tmp_path / "rows.jsonl"], tmp_path / "policy")
    enters = os.geteuid() == 0  # else the process that forks may not enter such a network
    with forks_first(tmp_path / "forks") if enters else contextlib.nullcontext(":") as find:
        tokenize = ("preference-tokenize", "rows.jsonl", "-o", "pairs.arrow", "--tokenizer", "policy")
        done = _run(tokenize, tmp_path, find)
        assert done.returncode == 0, done.stderr
        score = ("ref-logprobs", "pairs.arrow", "-o", "scored.arrow", "--policy", "policy")
        done = _run(score, tmp_path, find)
        line = "ref-logprobs: error: there is no loopback interface, which gloo asks for: bring it up: ip link set lo up"
        assert (done.returncode, done.stderr.splitlines()[-1]) == (1, line)
        if _run(["true"], tmp_path, loopback=True).returncode == 0:  # there is `ip`
            done = _run(score, tmp_path, find, loopback=True)
            assert done.returncode == 0, done.stderr
