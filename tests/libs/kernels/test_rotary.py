"""Rotary positions against megatron-core's own, values and gradients."""

from __future__ import annotations

import pytest
import torch
from megatron.core.models.common.embeddings.rope_utils import _apply_rotary_pos_emb_bshd

from nemotron_dpo.kernels.rotary import rotate


@pytest.fixture(autouse=True, params=["kernels", "torch"])
def _kernels_or_torch(request: pytest.FixtureRequest) -> None:
    if request.param == "torch":
        request.getfixturevalue("torch_alone")


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.bfloat16, 2.0**-6)])
@pytest.mark.parametrize("rotated", [16, 8])
def test_values_and_gradients_equal_megatron_core(rotated: int, dtype: torch.dtype, bound: float) -> None:
    torch.manual_seed(rotated)
    x, slope = torch.randn(5, 1, 3, 16).to(dtype).requires_grad_(), torch.randn(5, 1, 3, 16).to(dtype)
    half = torch.rand(5, 1, 1, rotated // 2) * 6
    angles = torch.cat((half, half), -1)
    expected, got = _apply_rotary_pos_emb_bshd(x, angles), rotate(x, angles)
    assert torch.allclose(got, expected, atol=bound)
    (wanted,), (ours,) = (torch.autograd.grad(out, x, slope) for out in (expected, got))
    assert torch.allclose(ours, wanted, atol=bound)


def test_angles_of_another_row_are_not_mistaken_for_the_last() -> None:
    x = torch.randn(4, 1, 1, 8)
    for angles in (torch.zeros(4, 1, 1, 8), torch.ones(4, 1, 1, 8)):
        assert torch.allclose(rotate(x, angles), _apply_rotary_pos_emb_bshd(x, angles), atol=1e-6)


def test_megatron_core_is_not_compiled_here_either() -> None:
    """This module imports it as it is collected, and what it does must be what it does in our programs."""
    from megatron.core.jit import jit_fuser

    def fusion() -> None: ...

    assert jit_fuser(fusion) is fusion
