"""Where there is no CUDA, what megatron-core makes on "cuda" and moves there is on the CPU, in every thread."""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from nemotron_dpo.policy.patches import MAKERS

pytestmark = [
    pytest.mark.usefixtures("megatron"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device that is named"),
]
HERE = torch.ones(2, 2)
# how each is called; the others take a size
ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "as_tensor": ([1.0],),
    "empty_strided": ((2, 2), (2, 1)),
    "full": ((2,), 1.0),
    "linspace": (0, 1, 3),
    "randint": (4, (2,)),
    "tensor": ([1.0],),
    "tril_indices": (2, 2),
    "triu_indices": (2, 2),
    "new_full": ((2,), 1.0),
    "new_tensor": ([1.0],),
}


def _maker(target: str) -> Callable[..., torch.Tensor]:
    """The function of that name; of one like a tensor, or of a tensor, with the tensor."""
    name = target.removeprefix("torch:").removeprefix("Tensor.")
    arguments = (HERE, 1.0) if name == "full_like" else (HERE,) if name.endswith("_like") else ARGUMENTS.get(name, (2,))
    made = getattr(HERE if "Tensor." in target else torch, name)
    return lambda **options: made(*arguments, **options)


@pytest.mark.parametrize("device", ["cuda", "cuda:0", torch.device("cuda"), torch.device("cuda", 1)], ids=repr)
def test_what_is_made_on_a_gpu_is_made_on_the_cpu(device: object):
    for target in MAKERS:
        made = _maker(target)
        assert made(device=device).device.type == "cpu", target
        assert made(device="meta").device.type == "meta", target
        assert made().dtype == made(device=device).dtype, target


def test_what_is_moved_to_a_gpu_stays():
    assert HERE.cuda() is HERE
    assert HERE.cuda(0, non_blocking=True) is HERE
    assert HERE.to("cuda") is HERE
    assert HERE.to(device="cuda:1", dtype=torch.float64).dtype == torch.float64
    assert HERE.to(torch.device("cuda"), torch.bfloat16).dtype == torch.bfloat16
    assert HERE.to("meta").device.type == "meta"
    assert HERE.to(torch.float64).dtype == torch.float64
    assert HERE.to(torch.empty(0, dtype=torch.float16)).dtype == torch.float16
    module = torch.nn.Linear(2, 2)
    assert module.to("cuda").weight.device.type == module.cuda().weight.device.type == "cpu"


def test_a_tensor_has_the_type_that_optimizers_look_for():
    parameter = torch.nn.Parameter(HERE.to(torch.bfloat16))
    assert (parameter.type(), HERE.type()) == ("torch.cuda.BFloat16Tensor", "torch.cuda.FloatTensor")
    assert HERE.type(torch.float64).dtype == HERE.type("torch.DoubleTensor").dtype == torch.float64


def test_it_holds_in_every_thread():
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.zeros, 1, device="cuda").result().device.type == "cpu"


def test_a_default_device_is_heeded_still():
    """transformers makes its models on "meta" so, and fills them later."""
    for target in MAKERS:
        due = "meta" if "_like" not in target and "Tensor." not in target else "cpu"
        with torch.device("meta"):
            assert _maker(target)().device.type == due, target
            assert _maker(target)(device="cuda").device.type == "cpu", target


def test_gradients_pass_through_what_is_moved():
    start = torch.ones(2, requires_grad=True)
    (start.to("cuda", torch.float64) * torch.tensor([2.0, 3.0], device="cuda")).sum().backward()
    assert start.grad is not None
    assert start.grad.tolist() == [2.0, 3.0]


def test_no_operation_passes_through_python():
    """A torch function mode would be asked at each operation and each attribute of a tensor."""
    assert not torch.overrides._get_current_function_mode_stack()


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD])
def test_an_optimizer_does_not_import_the_compiler(kind: Callable[..., torch.optim.Optimizer], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "torch._dynamo", None)  # to import it is an error
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = kind([weight], lr=0.5)
    weight.sum().backward()
    optimizer.step()
    assert weight.requires_grad
    assert weight.lt(0.6).all()
    optimizer.zero_grad()
    optimizer.load_state_dict(optimizer.state_dict())
    assert weight.grad is None
