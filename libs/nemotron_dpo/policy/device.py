"""Let megatron-core, which is written for CUDA, run on a CPU.

megatron-core names the device "cuda" in its own source. Where there is no CUDA, `redirect()` maps that name to the CPU:
device arguments, `.cuda()` and `.to("cuda")`, the tensor type names its optimizers compare against, the current device and
stream, synchronisation, and the CUDA random state. Each function that takes such a name is overwritten; otherwise the same
code runs on a CPU and on GPUs. A torch function mode would do it in one place, and costs two microseconds at every operation
and attribute of a tensor, a tenth of a small policy's step. torch.compile, which megatron-core applies to small fusions on
import, is switched off on both, and optimizers do not import torch's compiler. Where a CPU multiplies bfloat16 slowly, its
products go by float32 copies.
"""

from __future__ import annotations

import functools
import inspect
import logging
import os
import resource
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from nemotron_dpo.kernels.torch_ops.bfloat16_matmul import by_float32, is_slow
from nemotron_dpo.policy.patches import MAKERS, PRODUCTS, SHIELDED, STEPS, overwrite, present
from nemotron_dpo.versions import require_triton

_CPU = torch.device("cpu")
_redirected = False


def device() -> torch.device:
    """The device this process computes on: its own GPU, or the CPU."""
    if not torch.cuda.is_available():
        return _CPU
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def to_device(array: np.ndarray) -> torch.Tensor:
    """The array as a tensor on this process's device. The host does not wait for the copy to a GPU."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device(), non_blocking=True) if torch.cuda.is_available() else tensor


def peak_memory() -> dict[str, float]:
    """The most bytes that this process's tensors ever took on its GPU, as a metric; on a CPU the most of the whole process."""
    if not torch.cuda.is_available():
        return {"memory/train/max_resident_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0}
    return {"memory/train/max_allocated_bytes": float(torch.cuda.max_memory_allocated())}


def name() -> str:
    """This process's GPU by its name, or `CPU`."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def redirect() -> None:
    """Prepare this process for megatron-core; call once, before importing it. Idempotent.

    Raises UserError if torch lacks a function that is to be replaced, or if Triton, which megatron-core needs, is missing.
    """
    global _redirected
    if _redirected:
        return
    require_triton()
    _redirected = True
    overwrite("torch:compile", _eager)  # compiling would also double the time to start
    for target in SHIELDED:
        overwrite(target, inspect.unwrap(present(target)))
    for target in STEPS:
        overwrite(target, torch.no_grad()(inspect.unwrap(present(target))))  # as the wrapper has it
    if torch.cuda.is_available():
        torch.cuda.set_device(device())
        return
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # hides its note on missing CUDA tools
    overwrite("torch.cuda:current_device", lambda: _CPU)
    overwrite("torch.cuda:current_stream", lambda device=None: None)
    overwrite("torch.cuda:synchronize", lambda device=None: None)
    overwrite("torch.cuda:empty_cache", lambda: None)
    overwrite("torch.cuda:get_rng_state", lambda device="cuda": torch.get_rng_state())
    overwrite("torch.cuda:set_rng_state", lambda new_state, device="cuda": torch.set_rng_state(new_state))
    with torch.device("meta"):
        torch.empty(0)  # now torch knows its own makers by identity: to what it does not know it gives no default device
    for target in MAKERS:
        overwrite(target, _on_cpu(present(target)))
    for target in PRODUCTS if is_slow() else ():
        overwrite(target, by_float32(present(target)))
    overwrite("torch:Tensor.cuda", lambda tensor, *_, **__: tensor)
    overwrite("torch:Tensor.to", _moved(torch.Tensor.to))
    overwrite("torch:Tensor.type", _typed(torch.Tensor.type))


def without_cuda_random_state() -> None:
    """On a CPU, give megatron-core's recomputation, which saves and restores the CUDA random state, an empty one."""
    random = "megatron.core.tensor_parallel.random"
    overwrite(f"{random}:_get_cuda_rng_state", lambda *_, **__: torch.empty(0, dtype=torch.uint8))
    overwrite(f"{random}:_set_cuda_rng_state", lambda *_, **__: None)


def _on_cpu(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """`make`, which takes a device, for which a CUDA device is the CPU."""

    @functools.wraps(make)
    def made(*args: Any, **kwargs: Any) -> torch.Tensor:
        if "device" in kwargs and _is_cuda(kwargs["device"]):
            kwargs["device"] = _CPU
        return make(*args, **kwargs)

    return made


def _moved(to: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """`to`, where the first argument, too, may be a device."""
    by_keyword = _on_cpu(to)

    @functools.wraps(to)
    def moved(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if args and _is_cuda(args[0]):
            args = (_CPU, *args[1:])
        return by_keyword(tensor, *args, **kwargs)

    return moved


def _typed(as_type: Callable[..., Any]) -> Callable[..., Any]:
    """`as_type`, which says torch.cuda.FloatTensor of a tensor in float32, as megatron-core's optimizers expect."""

    @functools.wraps(as_type)
    def typed(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        found = as_type(tensor, *args, **kwargs)
        return found if args or kwargs else found.replace("torch.", "torch.cuda.")

    return typed


def _eager(model: Any = None, **options: Any) -> Any:
    """A torch.compile that compiles nothing; it works as a decorator with or without options."""
    return model if model is not None else _eager


def _is_cuda(target: object) -> bool:
    if isinstance(target, torch.device):
        return target.type == "cuda"
    return isinstance(target, str) and target.startswith("cuda")
