"""torch's two ways of attention against a dense mask written out by hand from the rule."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch

from nemotron_dpo.kernels.scores import Scores
from nemotron_dpo.kernels.torch_ops import flash_attention
from nemotron_dpo.kernels.torch_ops.block_attention import block_attention
from nemotron_dpo.kernels.torch_ops.block_plan import BLOCK
from nemotron_dpo.kernels.torch_ops.flash_attention import run_attention
from nemotron_dpo.policy.rows import Cut, PackedRow
from support.dense_attention import CASES, EDGE, LENGTHS, LONG, SCORES, check_scores, dense, visible_by_the_rule
from support.policy_rows import packed

HEADS, GROUPS, SIZE = 4, 2, 16


def random_inputs(row: PackedRow) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(len(row.input_ids_S), 1, n, SIZE, requires_grad=True) for n in (HEADS, GROUPS, GROUPS)]


@pytest.mark.parametrize("attend", [block_attention, run_attention])
@pytest.mark.parametrize("lengths", [*LENGTHS, LONG, EDGE])
def test_values_and_gradients_follow_the_rule(attend: Any, lengths: tuple[tuple[int, int, int], ...]) -> None:
    row = packed(*lengths)
    q, k, v = random_inputs(row)
    weight = torch.randn(len(row.input_ids_S), 1, HEADS * SIZE)
    expected = dense(q, k, v, row, Scores(0.25))
    wanted = torch.autograd.grad((expected * weight).sum(), (q, k, v))
    got = attend(q, k, v, row, Scores(0.25))
    assert torch.allclose(got, expected, atol=1e-5)
    for ours, theirs in zip(torch.autograd.grad((got * weight).sum(), (q, k, v)), wanted, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("attend", [block_attention, run_attention])
@pytest.mark.slow
def test_windows_caps_and_sinks_follow_the_rule(attend: Any) -> None:
    for lengths in CASES:
        for number, scores in enumerate(SCORES):
            check_scores(attend, lengths, scores, bool(number % 2), (HEADS, GROUPS, SIZE))


def test_bfloat16_is_rounded_at_the_end_alone() -> None:
    """Scores and probabilities stay float32: what float32 gives for the same inputs, rounded once."""
    row = packed(*LONG)
    q, k, v = (x.detach().bfloat16() for x in random_inputs(row))
    expected = dense(q.float(), k.float(), v.float(), row, Scores(0.25))
    got = block_attention(q, k, v, row, Scores(0.25))
    assert got.dtype is torch.bfloat16
    assert (got.float() - expected).norm() <= 2.0**-8 * expected.norm()


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("window", [None, 1, 3, 8, 20])
def test_flash_attention_is_given_every_key_that_is_seen(window: int | None, size: int, lengths: tuple) -> None:
    """Of each run the last query sees all keys, and each before it one less; of these, each the last of its window."""
    for rank in range(size):
        row = packed(*lengths, cut=Cut(rank, size))
        held = torch.arange(row.num_tokens) if row.share is None else row.share.tokens_L
        places, (queries, keys, most_queries, most_keys) = flash_attention._plan(row, torch.device("cpu"), window)
        seen = torch.zeros(len(held), row.num_tokens, dtype=torch.bool)
        for (first, last), (start, stop) in zip(pairwise(queries.tolist()), pairwise(keys.tolist()), strict=True):
            assert last - first <= most_queries
            assert stop - start <= most_keys
            for query in range(first, last):
                behind = stop - (last - 1 - query)
                seen[query, places[start if window is None else max(start, behind - window) : behind]] = True
        assert torch.equal(seen, visible_by_the_rule(row, window)[held])


@pytest.mark.parametrize("attend", [block_attention, run_attention])
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("size", [2, 3])
def test_context_parallel_ranks_attend_for_their_own_tokens(attend, size: int, lengths: tuple) -> None:
    rows = [packed(*lengths, cut=Cut(rank, size, tokens_together=2)) for rank in range(size)]
    held: list[int] = []
    for row in rows:
        assert row.share is not None
        q, k, v = (x.detach() for x in random_inputs(row))
        mine = row.share.tokens_L
        assert torch.allclose(attend(q[mine], k, v, row, Scores(0.25)), dense(q, k, v, row, Scores(0.25))[mine], atol=1e-5)
        held += mine.tolist()
    assert sorted(held) == list(range(rows[0].num_tokens))
    assert rows[0].num_tokens % (4 * size) == 0


@pytest.mark.parametrize("lengths", [LENGTHS[2], EDGE, LONG])
@pytest.mark.parametrize("window", [None, BLOCK + 40])
def test_a_pair_does_not_depend_on_its_neighbours(window: int | None, lengths: tuple[tuple[int, int, int], ...]) -> None:
    """To the last bit: the reference is scored in other rows than the policy is trained in."""
    scores = Scores(0.25, window)
    row = packed(*lengths)
    q, k, v = (x.detach() for x in random_inputs(row))
    together = block_attention(q, k, v, row, scores)
    for pair, s in zip(lengths, row.segments, strict=True):
        mine = slice(s.prompt, s.end)
        alone = block_attention(q[mine], k[mine], v[mine], packed(pair), scores)
        assert torch.equal(alone, together[mine])


def test_positions_of_the_rejected_response_restart_at_the_prompts_end() -> None:
    row = packed((2, 3, 2), (1, 1, 2))
    assert row.positions_S.tolist() == [0, 1, 2, 3, 4, 2, 3, 0, 1, 1, 2]
    assert row.predictors_R.tolist() == [1, 2, 3, 1, 5, 7, 7, 9]
    assert row.response_R.tolist() == [0, 0, 0, 1, 1, 2, 3, 3]


def test_gradients_outlive_the_next_call() -> None:
    """What is worked in is used again by the next layer; what is returned is not."""
    row = packed(*LENGTHS[2])
    q, k, v = random_inputs(row)
    grads = torch.autograd.grad(block_attention(q, k, v, row, Scores(0.25)).sum(), (q, k, v))
    before = [grad.clone() for grad in grads]
    torch.autograd.grad(block_attention(q * 2, k, v * 3, row, Scores(0.25)).square().sum(), (q, k, v))
    assert all(torch.equal(grad, kept) for grad, kept in zip(grads, before, strict=True))
