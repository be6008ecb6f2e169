"""float32 products keep float32 precision, whichever kernels they take."""

from __future__ import annotations

import pytest
import torch

from nemotron_dpo.kernels.torch_ops import float32_matmul as products


def test_float32_products_are_exact_to_float32_whatever_is_preferred() -> None:
    before = products._settings().fp32_precision
    torch.manual_seed(0)
    a, b = torch.randn(300, 400), torch.randn(400, 500)
    try:
        products.prefer_onednn()
        error = ((a @ b).double() - a.double() @ b.double()).abs().max()
    finally:
        products._settings().fp32_precision = before
    assert error < 1e-4  # bfloat16 would be off by 0.3


def test_kernels_that_round_are_not_preferred(monkeypatch: pytest.MonkeyPatch) -> None:
    before = products._settings().fp32_precision
    monkeypatch.setattr(products, "_is_exact", lambda: False)
    products.prefer_onednn()
    assert products._settings().fp32_precision == before


def test_rounding_is_allowed_for_bfloat16_alone_and_ends() -> None:
    before = products._settings().fp32_precision
    with products.rounding_allowed(torch.float32):
        assert products._settings().fp32_precision == before
    with products.rounding_allowed(torch.bfloat16):
        assert products._settings().fp32_precision == "bf16"
    assert products._settings().fp32_precision == before


def test_products_of_bfloat16_are_not_rounded() -> None:
    torch.manual_seed(0)
    a, b, out = torch.randn(30, 400).bfloat16(), torch.randn(50, 400).bfloat16(), torch.empty(30, 50)
    products.float_product(a, b, out)
    assert ((out.double() - a.double() @ b.double().t()).abs().max()) < 1e-4  # rounded ones are off by 0.2
