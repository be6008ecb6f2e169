"""Products of bfloat16 by float32 copies, where a CPU has none that is fast."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from nemotron_dpo.kernels.torch_ops import bfloat16_matmul
from nemotron_dpo.kernels.torch_ops.bfloat16_matmul import by_float32, rounded_product

# For each capability that torch may be asked for, and none: how many products are overwritten, and the capability. torch reads
# it when it is first needed, so a fork for each will do.
OVERWRITTEN = """
import os, torch
from nemotron_dpo.policy.device import redirect
before = torch.matmul, torch.Tensor.matmul, torch.nn.functional.linear
for asked in ("avx2", "default", ""):
    if (pid := os.fork()) == 0:
        os.environ |= {"ATEN_CPU_CAPABILITY": asked} if asked else {}
        redirect()
        x = torch.ones(2, 2, dtype=torch.bfloat16)
        assert (x @ x).dtype is torch.matmul(x, x).dtype is torch.bfloat16
        after = torch.matmul, torch.Tensor.matmul, torch.nn.functional.linear
        print(sum(a is not b for a, b in zip(before, after)), torch.backends.cpu.get_cpu_capability(), flush=True)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
"""
X, W = torch.randn(3, 5, 48).bfloat16(), torch.randn(32, 48).bfloat16()


def test_a_product_is_rounded_once():
    due = (X.double() @ W.double().t()).float()
    found = by_float32(torch.matmul)(X, W.t())
    assert found.dtype is torch.bfloat16
    torch.testing.assert_close(found, due.bfloat16(), rtol=2**-8, atol=2e-3)  # a sum in float32 may fall on the other side
    assert (found.float() - due).abs().max() <= due.abs().max() * 2**-8
    bias = torch.randn(32).bfloat16()
    torch.testing.assert_close(by_float32(F.linear)(X, W, bias), (due + bias).bfloat16(), rtol=2**-8, atol=2e-3)
    assert torch.equal(by_float32(F.linear)(X, W, None), found)


def test_gradients_are_those_of_the_product():
    given = torch.randn(3, 5, 32).bfloat16()
    grads = []
    for multiply in (torch.matmul, by_float32(torch.matmul)):
        x, w = X.clone().requires_grad_(), W.clone().requires_grad_()
        multiply(x, w.t()).backward(given)
        grads.append((x.grad, w.grad))
    for theirs, ours in zip(*grads, strict=True):
        assert ours is not None
        assert ours.dtype is torch.bfloat16
        torch.testing.assert_close(ours, theirs, rtol=2**-6, atol=2e-2)


def test_other_precisions_and_places_are_left_alone():
    seen = []

    def multiply(*factors: torch.Tensor, **options: object) -> torch.Tensor:
        seen.append([factor.dtype for factor in factors])
        return torch.matmul(*factors, **options)

    product, meta = by_float32(multiply), torch.device("meta")
    product(X.float(), W.t().float())
    product(X.half(), W.t().half())
    product(X.to(meta), W.t().to(meta))
    product(X, W.t(), out=torch.empty(3, 5, 32, dtype=torch.bfloat16))
    assert [dtypes[0] for dtypes in seen] == [torch.float32, torch.float16, torch.bfloat16, torch.bfloat16]
    with pytest.raises(RuntimeError, match="dtype"):
        product(X, W.t().float())
    assert torch.equal(by_float32(torch.matmul)(input=X, other=W.t()), torch.matmul(X, W.t()))
    assert torch.equal(by_float32(F.linear)(X, weight=W), F.linear(X, weight=W))


def test_what_is_no_tensor_has_its_own_product():
    class Mine:
        def __rmatmul__(self, left: object) -> str:
            return "mine"

    assert by_float32(torch.Tensor.__matmul__)(X, Mine()) is NotImplemented


@pytest.mark.parametrize("is_slow", [False, True])
def test_a_sum_of_gradients_takes_the_same(is_slow: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bfloat16_matmul, "is_slow", lambda: is_slow)
    out = torch.empty(5, 32, dtype=torch.bfloat16)
    assert rounded_product(X[0], W.t(), out) is out
    torch.testing.assert_close(out, (X[0].double() @ W.double().t()).bfloat16(), rtol=2**-7, atol=1e-2)
    wide = torch.empty(5, 32)
    assert torch.equal(rounded_product(X[0].float(), W.t().float(), wide), X[0].float() @ W.t().float())


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="other CPUs are not asked")
def test_it_is_for_cpus_without_avx512():
    environment = {name: value for name, value in os.environ.items() if name != "ATEN_CPU_CAPABILITY"}
    done = subprocess.run([sys.executable, "-c", OVERWRITTEN], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    for asked, line in zip(("avx2", "default", None), done.stdout.splitlines(), strict=True):
        overwritten, capability = line.split()
        assert int(overwritten) == (0 if capability.startswith("AVX512") else 3), (done.stdout, done.stderr)
        assert asked is None or capability.startswith(asked.upper()), capability
