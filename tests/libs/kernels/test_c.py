"""The compiled kernels, as built for several kinds of CPU, against torch's operations."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from nemotron_dpo.kernels.c import attention
from nemotron_dpo.kernels.protocol import Kernels
from nemotron_dpo.kernels.scores import Scores
from nemotron_dpo.kernels.torch_ops.block_attention import block_attention
from nemotron_dpo.kernels.torch_ops.block_plan import BLOCK
from nemotron_dpo.policy.rows import Cut, PackedRow
from support.dense_attention import CASES, SCORES, check_scores
from support.policy_rows import packed

SHORT = ((5, 3, 4), (1, 1, 1), (9, 1, 6))
LONG = ((3, BLOCK, 2 * BLOCK), (BLOCK + 5, 2, 2 * BLOCK + 1), (31, 1, 32))
HEADS = [(4, 2, 16), (3, 3, 64), (6, 2, 80), (2, 1, 7), (2, 2, 130)]  # query heads, their groups, size
WIDEST = (1, 1, 512)


Three = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def inputs(row: PackedRow, heads: tuple[int, int, int], dtype: torch.dtype) -> Three:
    """Query, key and value."""
    torch.manual_seed(0)
    num_heads, num_groups, size = heads
    q, k, v = (torch.randn(row.num_tokens, 1, n, size).to(dtype) for n in (num_heads, num_groups, num_groups))
    return q.requires_grad_(), k.requires_grad_(), v.requires_grad_()


def widened(of: Three) -> Three:
    q, k, v = (x.detach().float().requires_grad_() for x in of)
    return q, k, v


def part(of: Three, mine: slice) -> Three:
    q, k, v = (x[mine].detach().requires_grad_() for x in of)
    return q, k, v


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize("lengths", [SHORT, LONG], ids=["short", "long"])
@pytest.mark.slow
def test_attention_and_its_gradient(
    c_kernels: Kernels, lengths: tuple, heads: tuple[int, int, int], dtype: torch.dtype
) -> None:
    """In bfloat16 the results are those of the same inputs in float32, rounded once."""
    row = packed(*lengths)
    of = inputs(row, heads, dtype)
    wide = widened(of)
    got, expected = c_kernels.attend(*of, row, Scores(0.2)), block_attention(*wide, row, Scores(0.2))
    slope = torch.randn(expected.shape).to(dtype)
    pairs = [(got, expected)]
    pairs += zip(torch.autograd.grad(got, of, slope), torch.autograd.grad(expected, wide, slope.float()), strict=True)
    for ours, theirs in pairs:
        assert ours.dtype is dtype
        bound = 2e-6 if dtype is torch.float32 else 2.0**-8
        assert (ours.float() - theirs).norm() <= bound * theirs.norm()


@pytest.mark.slow
def test_windows_caps_and_sinks_follow_the_rule(c_kernels: Kernels) -> None:
    for lengths in CASES:
        for number, scores in enumerate(SCORES):
            check_scores(c_kernels.attend, lengths, scores, bool(number % 2), HEADS[number % len(HEADS)])


@pytest.mark.parametrize("scores", [Scores(0.2, 40), Scores(0.2, softcap=1.5)], ids=["window", "cap"])
@pytest.mark.slow
def test_in_bfloat16_they_are_those_of_float32_rounded_once(c_kernels: Kernels, scores: Scores) -> None:
    row = packed(*LONG)
    of = inputs(row, HEADS[1], torch.bfloat16)
    wide, sinks = widened(of), torch.linspace(-1, 4, HEADS[1][0])
    got, expected = c_kernels.attend(*of, row, scores, sinks.bfloat16()), block_attention(*wide, row, scores, sinks.bfloat16())
    slope = torch.randn(expected.shape).bfloat16()
    pairs = [(got, expected)]
    pairs += zip(torch.autograd.grad(got, of, slope), torch.autograd.grad(expected, wide, slope.float()), strict=True)
    for ours, theirs in pairs:
        assert (ours.float() - theirs).norm() <= 2.0**-8 * theirs.norm()


def test_a_context_parallel_rank_attends_for_its_own_tokens(c_kernels: Kernels) -> None:
    rows = [packed(*LONG, cut=Cut(rank, 2, tokens_together=2)) for rank in range(2)]
    for row in rows:
        q, k, v = (x.detach() for x in inputs(row, HEADS[0], torch.float32))
        assert row.share is not None
        mine = row.share.tokens_L
        expected = block_attention(q[mine], k, v, row, Scores(0.25))
        assert torch.allclose(c_kernels.attend(q[mine], k, v, row, Scores(0.25)), expected, atol=1e-5)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scores", [Scores(0.2), Scores(0.2, 50, 3.0)], ids=["plain", "window and cap"])
def test_a_pair_does_not_depend_on_its_neighbours(c_kernels: Kernels, scores: Scores, dtype: torch.dtype) -> None:
    """To the last bit, nor on the number of threads."""
    row, heads = packed(*LONG), HEADS[1]
    of = inputs(row, heads, dtype)
    slope = torch.randn(row.num_tokens, 1, heads[0] * heads[2]).to(dtype)
    together = [*torch.autograd.grad(c_kernels.attend(*of, row, scores), of, slope), c_kernels.attend(*of, row, scores)]
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        for lengths, s in zip(LONG, row.segments, strict=True):
            mine = slice(s.prompt, s.end)
            own = part(of, mine)
            out = c_kernels.attend(*own, packed(lengths), scores)
            for alone, all_of in zip([*torch.autograd.grad(out, own, slope[mine]), out], together, strict=True):
                assert torch.equal(alone, all_of[mine])
    finally:
        torch.set_num_threads(threads)


def test_what_is_not_a_number_is_not_hidden(c_kernels: Kernels) -> None:
    row = packed((4, 3, 40))
    q, k, v = (x.detach() for x in inputs(row, HEADS[0], torch.float32))
    k[5] = torch.nan  # of the chosen response
    bad = c_kernels.attend(q, k, v, row, Scores(0.25)).isnan().all(-1).squeeze(1)
    assert bad.tolist() == [5 <= token < 7 for token in range(row.num_tokens)]


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("heads", [*HEADS, WIDEST], ids=str)
@pytest.mark.parametrize("lengths", [((1, 1, 1),), LONG], ids=["short", "long"])
def test_scratch_memory_suffices_and_is_written_before_it_is_read(
    c_kernels: Kernels, lengths: tuple, heads: tuple[int, int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    row, guard, made, scores = packed(*lengths), 64, [], Scores(0.2, softcap=3.0)

    def spoiled(_: str, size: int) -> torch.Tensor:
        made.append(torch.full((size + guard,), torch.nan))
        return made[-1]

    of = inputs(row, heads, dtype)
    slope = torch.randn(row.num_tokens, 1, heads[0] * heads[2]).to(dtype)
    clean = torch.autograd.grad(c_kernels.attend(*of, row, scores), of, slope)
    monkeypatch.setattr(attention, "scratch", spoiled)
    again = torch.autograd.grad(c_kernels.attend(*of, row, scores), of, slope)
    assert all(torch.equal(x, y) for x, y in zip(clean, again, strict=True))
    assert len(made) == 3
    assert all(x[-guard:].isnan().all() and not x[:-guard].isnan().all() for x in made)


def same(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    """But for few that lie between two values of bfloat16 and are rounded to the other one."""
    assert ours.dtype is theirs.dtype
    off = (ours.float() - theirs.float()).abs() > 0
    return bool(off.float().mean() < 0.01 and torch.allclose(ours.float(), theirs.float(), rtol=2.0**-6, atol=1e-6))


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("size", [12, 64, 100])
def test_layers_are_rounded_as_torch_rounds_them(c_kernels: Kernels, size: int) -> None:
    torch.manual_seed(size)
    x, grad = (torch.randn(9, 1, 2 * size) * 3).bfloat16(), torch.randn(9, 1, size).bfloat16()
    gate, up = x.chunk(2, -1)
    assert same(c_kernels.swiglu(x, None), F.silu(gate) * up)
    expected = torch.cat((torch.ops.aten.silu_backward(grad * up, gate), F.silu(gate) * grad), -1)
    assert same(c_kernels.swiglu_backward(x, grad, None), expected)
    total, more = torch.randn(5, size), torch.randn(5, size).bfloat16()
    added = total + more.float()
    c_kernels.add_rounded(total, more)
    assert torch.equal(total, added)


def test_swiglu_of_large_values(c_kernels: Kernels) -> None:
    gate = torch.tensor([-3e38, -1000, -89, -88, 0, 88, 89, 1000, 3e38, torch.nan, torch.inf]).bfloat16()
    x = torch.cat((gate, torch.ones_like(gate)))[None, None]
    assert torch.allclose(c_kernels.swiglu(x, None)[0, 0], F.silu(gate), equal_nan=True, atol=1e-30)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("size", [12, 64, 100])
def test_rms_norm(c_kernels: Kernels, size: int) -> None:
    torch.manual_seed(size)
    x, gain, grad = torch.randn(9, 1, size).bfloat16(), torch.randn(size), torch.randn(9, 1, size).bfloat16()
    x_f, gain_f = x.float().requires_grad_(), gain.clone().requires_grad_()
    expected = F.rms_norm(x_f, (size,), gain_f, 1e-5)
    out, scales = c_kernels.rms_norm(x, gain, 1e-5)
    assert same(out, expected.detach().bfloat16())
    wanted = torch.autograd.grad(expected, (x_f, gain_f), grad.float())
    dx, dgain = c_kernels.rms_norm_backward(x, gain, scales, grad, True)
    assert same(dx, wanted[0].bfloat16())
    assert dgain is not None
    assert torch.allclose(dgain, wanted[1], rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(("size", "turned"), [(16, 16), (80, 64), (40, 40)])
def test_rotary_positions(c_kernels: Kernels, size: int, turned: int) -> None:
    torch.manual_seed(size)
    x, (cosines, sines) = torch.randn(5, 1, 3, size).bfloat16(), torch.rand(2, 5, 1, 1, turned).bfloat16()
    head = x[..., :turned]
    expected = torch.cat(((head * cosines).addcmul_(head.roll(turned // 2, -1), sines, value=-1), x[..., turned:]), -1)
    assert same(c_kernels.rotate(x, cosines, sines, -1), expected)
