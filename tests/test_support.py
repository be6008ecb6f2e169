"""What the tests themselves lean on: loops that name each case, and forked programs that are what started ones are."""

from __future__ import annotations

import inspect
import os
from pathlib import Path

import numpy as np
import pytest

from nemotron_dpo.streams import open_reader
from support import forks, small
from support.cases import each
from support.programs import check, metrics

forking = pytest.mark.skipif(not forks.can_fork(os.environ), reason="programs start cold here")


def test_each_goes_through_all_cases_and_names_those_that_fail() -> None:
    seen = []

    @each("left, right", [(1, 1), (2, 3), (4, 4), (5, 6)])
    @each("sign", [1, -1])
    def compared(left: int, right: int, sign: int, fixture: str) -> None:
        seen.append((left, sign, fixture))
        assert sign < 0 or left == right

    with pytest.raises(BaseExceptionGroup) as caught:
        compared(fixture="f")
    assert seen == [(left, sign, "f") for left in (1, 2, 4, 5) for sign in (1, -1)]
    assert [one.__notes__ for one in caught.value.exceptions] == [["case: left=2, right=3"], ["case: left=5, right=6"]]
    inner = [one for group in caught.value.exceptions if isinstance(group, BaseExceptionGroup) for one in group.exceptions]
    assert [one.__notes__ for one in inner] == [["case: sign=1"]] * 2
    assert list(inspect.signature(compared).parameters) == ["fixture"]


def _chain(folder: Path, policy: Path, *, cold: bool) -> Path:
    """Score, train and export into `folder`."""
    folder.mkdir()
    pairs = small.write_pairs(folder / "pairs.arrow", small.random_pairs(8, seed=3))
    precise = ("policy.precision=float32", "policy.train_global_batch_size=8", "policy.scheduler.warmup_steps=0")
    steps = ("dpo.max_num_steps=2", "policy.max_total_sequence_length=64", "policy.optimizer.lr=0.003", "dpo.max_num_epochs=2")
    scores = ("-o", folder / "scored.arrow", "--policy", policy, "--precision", "float32")
    check("ref-logprobs", pairs, *scores, cold=cold)
    check("dpo-train", folder / "scored.arrow", "--policy", policy, "--run-dir", folder / "run", *precise, *steps, cold=cold)
    check("ckpt-export", folder / "run", "-o", folder / "hf", "--to", "hf", "--precision", "float32", cold=cold)
    return folder


@forking
@pytest.mark.slow
def test_a_forked_program_computes_what_a_started_one_does(llama: Path, tmp_path: Path) -> None:
    """To the last bit: scores, metrics that are no times, weights."""
    cold, forked = (_chain(tmp_path / str(how), llama, cold=how) for how in (True, False))
    for side in ("ref_chosen_logps", "ref_rejected_logps"):
        values = []
        for folder in (cold, forked):
            with open_reader(folder / "scored.arrow", "scored_pairs") as reader:
                values.append(np.concatenate(reader.read_all()[side].to_pylist()))
        assert values[0].tobytes() == values[1].tobytes()
    records = [[{k: v for k, v in one.items() if not _is_time(k)} for one in metrics(f / "run")] for f in (cold, forked)]
    assert records[0] == records[1]
    assert len(records[0]) >= 2
    weights = [(folder / "hf" / "model.safetensors").read_bytes() for folder in (cold, forked)]
    assert weights[0] == weights[1]


def _is_time(name: str) -> bool:
    return any(word in name for word in ("time", "second", "per_sec", "memory", "throughput", "timestamp", "tokens_per"))
