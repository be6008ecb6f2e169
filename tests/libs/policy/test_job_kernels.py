"""Processes of one job that compute by different kernels: what is said of them, what a stream records and who reads that."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemotron_dpo.policy.job_kernels import mixed
from nemotron_dpo.streams import open_reader
from support import small
from support.programs import check, command, execute_job


def test_each_kind_is_counted_and_named_with_its_first_rank() -> None:
    expected = "processes compute by different kernels: 3 by c 1 (from rank 0 on), 1 by torch (from rank 2 on: no compiler)"
    assert mixed([("c 1", ""), ("c 1", ""), ("torch", "no compiler"), ("c 1", "")]) == expected


@pytest.mark.multiprocess
@pytest.mark.slow
def test_a_job_records_the_kernels_of_all_its_processes(llama: Path, tmp_path: Path) -> None:
    """So that whoever reuses its scores, or trains on them by the kernels of one of its processes alone, hears of it."""
    pairs, scored, options = tmp_path / "pairs.arrow", tmp_path / "scored.arrow", ("--policy", llama, "--precision", "float32")
    small.write_pairs(pairs, small.random_pairs(8))
    program = command("ref-logprobs", pairs, "-o", scored, *options)
    done = execute_job(2, program, own={1: {"NEMOTRON_DPO_KERNELS": "torch"}})
    assert done.returncode == 0, done.stderr.decode()
    assert b"1 by torch" in done.stderr
    assert b"NEMOTRON_DPO_KERNELS" in done.stderr  # why, though it is another rank's reason
    with open_reader(scored, "scored_pairs") as reader:
        kernels = reader.info.settings["kernels"].split(", torch ")
    assert any(name.startswith("c ") for name in kernels)
    assert len(kernels) > 1
    again = check("ref-logprobs", pairs, "-o", tmp_path / "again.arrow", *options, "--reuse", scored)
    assert b"was scored by other kernels" in again.stderr
    run = (
        "--run-dir",
        tmp_path / "run",
        "policy.train_global_batch_size=4",
        "dpo.max_num_steps=1",
        "policy.max_total_sequence_length=64",
        "checkpointing.enabled=false",
    )
    trained = check("dpo-train", scored, "--policy", llama, *run, "policy.precision=float32")
    assert b"was scored by other kernels" in trained.stderr
    check("ref-logprobs", pairs, "-o", tmp_path / "own.arrow", *options)
    trained = check("dpo-train", tmp_path / "own.arrow", "--policy", llama, *run, "policy.precision=float32")
    assert b"was scored by other kernels" not in trained.stderr
