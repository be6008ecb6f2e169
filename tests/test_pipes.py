"""The chain as Unix pipes: what DESIGN's example promises, and what a dying producer leaves behind."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support import forks
from support.forking_python import forking_programs
from support.programs import ROOT, check, command, error_line, execute, losses, run

pytestmark = pytest.mark.slow

DATA = ROOT / "configs" / "rl" / "nemo_rl" / "dpo" / "data"


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded tiny model, untrained, with its tokenizer."""
    folder = tmp_path_factory.mktemp("policy") / "tiny"
    argv = [sys.executable, "-m", "nemotron_dpo.steps.tiny_policy", DATA / "train.jsonl", "-o", folder]
    execute(list(map(str, argv))).check_returncode()
    return folder


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., list[str]]]:
    """argv of a program and its arguments for a shell, which is a fork where that can be had."""
    if not forks.can_fork(os.environ):
        yield command
        return
    with forking_programs(tmp_path_factory.mktemp("forks")) as folder:
        yield lambda *words: [str(folder / "python"), *command(*words)[1:]]


def shell(*stages: list[str], tail: str = "") -> subprocess.CompletedProcess[bytes]:
    """Run the stages as one bash pipeline with pipefail."""
    line = " | ".join(shlex.join(stage) for stage in stages) + tail
    return subprocess.run(["bash", "-o", "pipefail", "-c", line], capture_output=True, timeout=300)


@pytest.mark.slow
def test_the_pipeline_works_as_written(stage: Callable[..., list[str]], policy: Path, tmp_path: Path) -> None:
    train = ("policy.precision=float32", "policy.train_global_batch_size=8", "dpo.max_num_steps=2")
    length = "policy.max_total_sequence_length=512"
    done = shell(
        stage("preference-tokenize", DATA / "train.jsonl", "-o", "-", "--tokenizer", policy, "--limit", 32),
        stage("ref-logprobs", "-", "-o", "-", "--policy", policy, "--precision", "float32"),
        ["tee", str(tmp_path / "scored.arrow")],
        stage("dpo-train", "-", "--policy", policy, "--run-dir", tmp_path / "run", *train, length),
    )
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout == b""
    assert len(losses(tmp_path / "run")) == 2
    assert (tmp_path / "run" / "input.arrow").read_bytes() == (tmp_path / "scored.arrow").read_bytes()
    check("ckpt-export", tmp_path / "run", "-o", tmp_path / "hf", "--to", "hf")


def test_a_producer_that_fails_makes_the_consumer_fail_and_name_it(
    stage: Callable[..., list[str]], policy: Path, tmp_path: Path
) -> None:
    rows = (DATA / "train.jsonl").read_text().splitlines()[:40]
    (tmp_path / "broken.jsonl").write_text("\n".join([*rows, '{"prompt": ']) + "\n")
    done = shell(
        stage("preference-tokenize", tmp_path / "broken.jsonl", "-o", "-", "--tokenizer", policy),
        stage("ref-logprobs", "-", "-o", tmp_path / "scored.arrow", "--policy", policy),
    )
    lines = done.stderr.decode().splitlines()
    assert done.returncode == 1
    assert any(line.startswith("preference-tokenize: error: ") and "broken.jsonl:41" in line for line in lines), lines
    assert any(line.startswith("ref-logprobs: error: <stdin>: ") for line in lines), lines
    assert len(lines) == 2, lines
    assert [path.name for path in tmp_path.iterdir()] == ["broken.jsonl"]


def test_a_killed_producer_is_named(stage: Callable[..., list[str]], policy: Path, tmp_path: Path) -> None:
    check("preference-tokenize", DATA / "train.jsonl", "-o", tmp_path / "pairs.arrow", "--tokenizer", policy)
    size = (tmp_path / "pairs.arrow").stat().st_size
    done = shell(
        ["head", "-c", str(size // 2), str(tmp_path / "pairs.arrow")],
        stage("ref-logprobs", "-", "-o", tmp_path / "scored.arrow", "--policy", policy),
    )
    assert b"the stream from preference-tokenize" in done.stderr
    assert b"preference-tokenize failed or was killed; run it again" in done.stderr
    assert not (tmp_path / "scored.arrow").exists()


def test_a_reader_that_leaves_early_is_one_line(stage: Callable[..., list[str]], policy: Path) -> None:
    tokenize = stage("preference-tokenize", *([DATA / "train.jsonl"] * 20), "-o", "-", "--tokenizer", policy)
    done = shell(tokenize, ["head", "-c", "100"], tail=" > /dev/null")
    assert done.returncode == 1
    assert done.stderr.decode().splitlines() == ["preference-tokenize: error: <stdout>: the reader closed the pipe early"]


def test_half_a_stream_leaves_no_run_folder(policy: Path, tmp_path: Path) -> None:
    check("preference-tokenize", DATA / "train.jsonl", "-o", tmp_path / "pairs.arrow", "--tokenizer", policy)
    half = (tmp_path / "pairs.arrow").read_bytes()[:-300]
    done = run("dpo-train", "-", "--policy", policy, "--run-dir", tmp_path / "run", input=half)
    assert error_line(done, "dpo-train").startswith("<stdin>: the stream from preference-tokenize")
    assert not (tmp_path / "run").exists()
