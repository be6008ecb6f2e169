"""The norm and gate behind a gated delta net, against their definition in float64."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from nemotron_dpo.kernels.normed_gate import normed_gate

EPS = 1e-3


def test_it_and_its_gradients_are_those_of_the_definition() -> None:
    """In bfloat16 what comes out is rounded once, and gradients once each; that of the gain is of all tokens and heads."""
    for dtype, bound in ((torch.float32, 2e-6), (torch.bfloat16, 2.0**-8)):
        torch.manual_seed(0)
        y, z = (torch.randn(7, 3, 12).to(dtype).requires_grad_() for _ in range(2))
        gain = (torch.rand(12) + 0.5).requires_grad_()
        slope = torch.randn(7, 3, 12).to(dtype)
        wide = [x.detach().double().requires_grad_() for x in (y, z, gain)]
        normed = wide[0] * (wide[0].square().mean(-1, keepdim=True) + EPS).rsqrt()
        due = normed * wide[2] * F.silu(wide[1])
        found = normed_gate(y, z, gain, EPS)
        pairs = [(found, due)]
        pairs += zip(
            torch.autograd.grad(found, (y, z, gain), slope), torch.autograd.grad(due, wide, slope.double()), strict=True
        )
        for number, (ours, theirs) in enumerate(pairs):
            assert ours.dtype is (torch.float32 if number == 3 else dtype)
            assert (ours.double() - theirs).norm() <= bound * theirs.norm(), (dtype, number)


def test_a_frozen_gain_has_no_gradient() -> None:
    y, z, gain = torch.randn(2, 1, 4, requires_grad=True), torch.randn(2, 1, 4), torch.ones(4)
    normed_gate(y, z, gain, EPS).sum().backward()
    assert y.grad is not None
    assert gain.grad is None
