"""The first batch is scored again: what differs from its reference is named, in the units of the stream."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from nemotron_dpo.errors import UserError
from nemotron_dpo.policy.rows import pack_row
from nemotron_dpo.training import proof
from nemotron_dpo.training.batches import PairBatch
from support import small


def batch_of(members: tuple[int, ...], scored: list[float]) -> PairBatch:
    """Pairs whose chosen responses have 2 tokens and whose rejected ones have 1."""
    ids = [np.array([5], np.int32)] * len(members)
    row = pack_row(ids, [np.array([6, 7], np.int32)] * len(members), ids)
    return PairBatch(row, torch.tensor(scored), members)


def test_the_token_that_differs_most_is_found() -> None:
    scored = [-1.0, -2.0, -3.0, -4.0, -5.0, -6.0]
    cases = {
        (4, "chosen", 1): [-1.5, -2.0, -3.0, -4.25, -5.0, -6.0],
        (4, "rejected", 1): [-1.0, -2.0, -2.5, -4.0, -5.0, -6.25],
        (9, "chosen", 2): [-1.0, -2.125, -3.0, -4.0, -4.5, -6.0],
        (9, "rejected", 1): [-1.0, -2.0, -3.0, -4.0, -5.125, float("nan")],
    }
    for due, now in cases.items():
        found = proof._of_rank([batch_of((4, 9), scored)], [torch.tensor(now)])
        assert found.largest is not None
        assert (found.largest.pair, found.largest.side, found.largest.token) == due
        assert (found.num_tokens, found.num_different) == (6, 2)
    found = proof._of_rank([batch_of((4, 9), scored)], [torch.tensor(scored)])
    assert (found.squares, found.num_different) == (0.0, 0)


def differing(monkeypatch: pytest.MonkeyPatch, nats: float, precision: str | None, tokens: int = 1) -> list[str]:
    """What is said where so many of 100 tokens differ by so much."""
    largest = proof.Difference(nats, 1, "chosen", 3, -2.0 - nats, -2.0) if nats else None
    found = proof.Differences(largest, tokens * nats**2, 100, tokens if nats else 0)
    monkeypatch.setattr(proof, "_differences", lambda *given: [found, proof.Differences(None, 0.0, 0, 0)])
    monkeypatch.setattr(proof.parallel, "world_size", lambda: 1)
    pairs: Any = SimpleNamespace(ref_chosen=(), pair_ids=[b"", b"\xab" * 16], place=lambda row: f"line {row + 1} of the input")
    settings: Any = SimpleNamespace(gate_precision=precision, num_steps=1)
    said: list[str] = []
    proof.prove(None, pairs, settings, said.append)  # type: ignore[arg-type] - nothing asks the policy here
    return said


def test_rounding_is_allowed_within_a_bound_and_said_where_none_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    where = f"token 3 of the chosen response of pair {'ab' * 16} (line 2 of the input)"
    assert differing(monkeypatch, 0.0, "float32") == []
    assert differing(monkeypatch, 0.5, "bfloat16") == []
    assert differing(monkeypatch, 0.5, None) == [], "where the reference is another policy there is nothing to prove"
    (line,) = differing(monkeypatch, 1e-4, "float32")
    assert line.startswith("warning: 1 of 100 tokens of the first batch differ from their reference, by 1e-05 nats rms, ")
    assert f"most of all {where}: -2.0001 now, -2 when scored: in float32 one process gives the same bits" in line
    for nats, precision, tokens in (
        (0.01, "float32", 1),
        (9.0, "bfloat16", 1),
        (0.5, "bfloat16", 50),
        (float("inf"), "float32", 1),
    ):
        with pytest.raises(UserError, match=r"token 3 of the chosen response .* are allowed in .*: score the pairs again"):
            differing(monkeypatch, nats, precision, tokens)


@pytest.mark.usefixtures("megatron")
def test_row_layout_is_that_of_scores() -> None:
    """An independent look at which value of a packed row is which token."""
    pairs = small.random_pairs(4, seed=3)
    row = pack_row(pairs.prompts, pairs.chosen, pairs.rejected)
    scored = -torch.arange(len(row.targets_R), dtype=torch.float32)
    start = len(pairs.chosen[0]) + len(pairs.rejected[0]) + len(pairs.chosen[1])
    now = scored.clone()
    now[start + len(pairs.rejected[1]) - 1] -= 1.0
    found = proof._of_rank([PairBatch(row, scored, (10, 11, 12, 13))], [now])
    assert found.largest is not None
    assert (found.largest.pair, found.largest.side, found.largest.token) == (11, "rejected", len(pairs.rejected[1]))
