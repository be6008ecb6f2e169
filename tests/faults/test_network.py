"""No program asks the network for what it was not told to, and without any interface the end is one line."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from nemotron_dpo.steps.catalogue.manifest import configs_root
from nemotron_dpo.steps.tiny_policy import write_policy
from support.programs import command

ALONE = ("unshare", "--map-root-user", "--net")  # a network of its own, with a loopback interface that is down


def _run(argv: Sequence[str], folder: Path, *, loopback: bool = False) -> subprocess.CompletedProcess[str]:
    up = ("sh", "-c", 'ip link set lo up && exec "$@"', "sh") if loopback else ()
    return subprocess.run([*ALONE, *up, *argv], cwd=folder, capture_output=True, text=True, timeout=300)


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
    done = _run(command("preference-tokenize", "rows.jsonl", "-o", "pairs.arrow", "--tokenizer", "policy"), tmp_path)
    assert done.returncode == 0, done.stderr
    score = command("ref-logprobs", "pairs.arrow", "-o", "scored.arrow", "--policy", "policy")
    done = _run(score, tmp_path)
    line = "ref-logprobs: error: there is no loopback interface, which gloo asks for: bring it up: ip link set lo up"
    assert (done.returncode, done.stderr.splitlines()[-1]) == (1, line)
    if _run(["true"], tmp_path, loopback=True).returncode == 0:  # there is `ip`
        done = _run(score, tmp_path, loopback=True)
        assert done.returncode == 0, done.stderr
