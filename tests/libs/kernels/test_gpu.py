"""What only a GPU runs: kernels, attention, log-probs and training steps there against the same on the CPU."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from nemotron_dpo.kernels import chosen
from nemotron_dpo.kernels.accumulation import add_product, add_rows
from nemotron_dpo.kernels.recurrence import causal_conv, plan, scan
from nemotron_dpo.kernels.scores import Scores
from nemotron_dpo.kernels.torch_ops.block_attention import block_attention
from nemotron_dpo.kernels.torch_ops.flash_attention import flash_attention, run_attention
from nemotron_dpo.policy.logprobs import response_logps
from nemotron_dpo.policy.rows import PackedRow
from nemotron_dpo.policy.token_values import NAMES, TokenValues
from support import small
from support.kernel_checks import CHECKS, TOLERANCE, check_members, off
from support.policy_rows import packed
from support.programs import check, losses
from support.recurrences import mamba2_inputs

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")

DTYPES = [torch.float32, torch.bfloat16]


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, device="cuda").to(dtype)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [24, 64, 2048, 5000])
@pytest.mark.parametrize("agrees", CHECKS)
def test_kernels(agrees: Any, size: int, dtype: torch.dtype) -> None:
    from nemotron_dpo.kernels.gpu import triton_kernels

    agrees(triton_kernels, "cuda", dtype, size)


def test_the_fastest_backend_is_chosen_and_what_is_slow_in_float32_is_said() -> None:
    before = chosen.use(None)
    try:
        for precision, said in (
            ("bfloat16", []),
            ("float32", ["warning: kernels: attention without FlashAttention: it takes no float32"]),
        ):
            lines: list[str] = []
            chosen.use(None)
            table = chosen.choose(precision, lines.append)
            assert table.name == "gpu"
            assert table.identity.startswith("gpu, triton ")
            assert lines == said
    finally:
        chosen.use(before)


@pytest.mark.parametrize("dtype", DTYPES)
def test_members_are_those_of_torch(dtype: torch.dtype) -> None:
    from nemotron_dpo.kernels.gpu import members

    check_members(members, "cuda", dtype)


@pytest.mark.parametrize(("attend", "dtype"), [(flash_attention, torch.bfloat16), (run_attention, torch.float32)])
@pytest.mark.parametrize("lengths", [((5, 3, 4),), ((9, 1, 6), (300, 257, 40), (1, 1, 1))])
def test_attention(lengths: tuple, attend: Any, dtype: torch.dtype) -> None:
    row = packed(*lengths)
    inputs = [draw(row.num_tokens, 1, heads, 64, dtype=dtype) for heads in (8, 2, 2)]
    slope = draw(row.num_tokens, 1, 8 * 64, dtype=dtype)
    expected, wanted = _attended(block_attention, [x.cpu().float() for x in inputs], slope.cpu().float(), row)
    got, gradients = _attended(attend, inputs, slope, row)
    assert off(got, expected) < TOLERANCE[dtype]
    for ours, theirs in zip(gradients, wanted, strict=True):
        assert off(ours, theirs) < TOLERANCE[dtype]
    for _ in range(3):
        again, once_more = _attended(attend, inputs, slope, row)
        assert torch.equal(again, got)
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(once_more, gradients, strict=True))


def _attended(attend: Any, inputs: list[torch.Tensor], slope: torch.Tensor, row: PackedRow) -> tuple:
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = attend(*leaves, row, Scores(0.125))
    return out, torch.autograd.grad(out, leaves, slope)


@pytest.mark.parametrize("dtype", DTYPES)
def test_log_probs(dtype: torch.dtype) -> None:
    hidden, weight = draw(3000, 64, dtype=dtype), draw(40000, 64, dtype=dtype)
    targets = torch.randint(40000, (3000,), device="cuda")
    wide = [x.float().requires_grad_() for x in (hidden, weight)]
    expected = torch.log_softmax(wide[0] @ wide[1].t(), 1).gather(1, targets[:, None])[:, 0]
    leaves = hidden.requires_grad_(), weight.requires_grad_()
    got = response_logps(hidden, weight, targets)
    assert off(got, expected) < TOLERANCE[dtype]
    slope = draw(3000)
    wanted = torch.autograd.grad(expected, wide, slope)
    for ours, theirs in zip(torch.autograd.grad(got, leaves, slope), wanted, strict=True):
        assert off(ours, theirs) < 3 * TOLERANCE[dtype]  # probabilities are rounded to bfloat16


@pytest.mark.parametrize("dtype", DTYPES)
def test_values_of_tokens(dtype: torch.dtype) -> None:
    hidden, weight = draw(3000, 64, dtype=dtype), draw(40000, 64, dtype=dtype)
    x = hidden.double() @ weight.double().t()
    targets = torch.where(torch.arange(3000, device="cuda") % 3 == 0, x.argmax(1), torch.randint(40000, (3000,), device="cuda"))
    values, log_p = TokenValues(NAMES), x.log_softmax(1)
    plain, asked = response_logps(hidden, weight, targets), response_logps(hidden, weight, targets, None, values)
    assert torch.equal(plain, asked)
    assert off(values.by_name["entropy"], -(log_p.exp() * log_p).sum(1)) < TOLERANCE[torch.float32] * 100  # products of TF32
    assert off(values.by_name["log_sum_squares"], (2 * log_p).logsumexp(1)) < TOLERANCE[torch.float32] * 100
    assert (values.by_name["is_most_probable"].bool() == (x.argmax(1) == targets)).float().mean() > 0.999


def test_gradients_are_added_in_float32_and_in_one_order() -> None:
    total, slope, x = draw(96, 32), draw(500, 96, dtype=torch.bfloat16), draw(500, 32, dtype=torch.bfloat16)
    expected = total + slope.float().t() @ x.float()
    add_product(total, slope, x)
    assert off(total, expected) < 1e-4
    places, rows = torch.randint(7, (5000,), device="cuda"), draw(5000, 33)
    first, second = torch.zeros(7, 33, device="cuda"), torch.zeros(7, 33, device="cuda")
    add_rows(first, places, rows)
    add_rows(second, places, rows)
    assert torch.equal(first, second)
    assert off(first, torch.zeros(7, 33).index_add_(0, places.cpu(), rows.cpu())) < 1e-5


FOREST = [(0, 130, -1), (130, 300, 0), (300, 321, 0), (321, 330, -1), (330, 331, 3), (331, 460, 3)]


def _scanned(of: Sequence[torch.Tensor], slope: torch.Tensor) -> list[torch.Tensor]:
    """The recurrence and its six gradients."""
    x, dt, A, B, C, D = (each.detach().requires_grad_() for each in of)
    y = scan(x, dt, A, B, C, D, plan(FOREST))
    return [y, *torch.autograd.grad(y, (x, dt, A, B, C, D), slope)]


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_recurrence_of_mamba2(dtype: torch.dtype) -> None:
    """Against float32 on the CPU; again, to the last bit."""
    of, slope = [x.cuda() for x in mamba2_inputs(462, (8, 64, 2, 128), dtype)], draw(462, 8, 64, dtype=dtype)
    got = _scanned(of, slope)
    for ours, theirs in zip(got, _scanned([x.cpu().float() for x in of], slope.cpu().float()), strict=True):
        assert off(ours, theirs) < 2 * TOLERANCE[dtype]
    assert all(torch.equal(again, once) for again, once in zip(_scanned(of, slope), got, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_convolution_of_a_recurrent_layer(dtype: torch.dtype) -> None:
    of, slope = [draw(462, 96, dtype=dtype), draw(96, 4, dtype=dtype), draw(96, dtype=dtype)], draw(462, 96, dtype=dtype)

    def convolved(of: Sequence[torch.Tensor], slope: torch.Tensor) -> list[torch.Tensor]:
        x, weight, bias = (each.detach().requires_grad_() for each in of)
        y = causal_conv(x, weight, bias, plan(FOREST))
        return [y, *torch.autograd.grad(y, (x, weight, bias), slope)]

    got = convolved(of, slope)
    for ours, theirs in zip(got, convolved([x.cpu().float() for x in of], slope.cpu().float()), strict=True):
        assert off(ours, theirs) < TOLERANCE[dtype]
    assert all(torch.equal(again, once) for again, once in zip(convolved(of, slope), got, strict=True))


SETTINGS = (
    "policy.train_global_batch_size=8",
    "policy.max_total_sequence_length=64",
    "policy.scheduler.warmup_steps=0",
    "policy.optimizer.lr=0.003",
    "dpo.max_num_steps=6",
    "dpo.max_num_epochs=2",
    "checkpointing.save_optimizer=true",
    "checkpointing.keep_top_k=null",
)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_runs_are_equal_to_the_last_bit_and_near_those_of_a_cpu(precision: str, tmp_path: Path) -> None:
    llama = small.write_llama(tmp_path / "llama", hidden_size=64, head_dim=16)
    small.write_pairs(tmp_path / "pairs.arrow", small.random_pairs(24, seed=11))
    curves = []
    for name, env in (("once", None), ("again", None), ("cpu", {**os.environ, "CUDA_VISIBLE_DEVICES": ""})):
        scored, run_dir = tmp_path / f"{name}.arrow", tmp_path / name
        check("ref-logprobs", tmp_path / "pairs.arrow", "-o", scored, "--policy", llama, "--precision", precision, env=env)
        every = ("checkpointing.save_period=3",)
        arguments = (scored, "--policy", llama, f"policy.precision={precision}", *SETTINGS, *every)
        check("dpo-train", *arguments, "--run-dir", run_dir, env=env)
        curves.append(losses(run_dir))
    once, again, cpu = curves
    assert once == again
    assert once == pytest.approx(cpu, abs=1e-4 if precision == "float32" else 0.05)
    assert abs(once[0] - 0.693147) < (1e-5 if precision == "float32" else 1e-2)
