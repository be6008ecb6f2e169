"""Let megatron-core, which is written for CUDA, run on a CPU.

megatron-core names the device "cuda" in its own source. Where there is no CUDA, `redirect()` maps that name to the CPU:
device arguments, `.cuda()` and `.to("cuda")`, the tensor type names its optimizers compare against, the current device and
stream, synchronisation, and the CUDA random state. One torch function mode and six functions do this; otherwise the same code
runs on a CPU and on GPUs. torch.compile, which megatron-core applies to small fusions on import, is switched off on both.
"""

from __future__ import annotations

import logging
import os
import resource
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from nemotron_dpo.policy.patches import overwrite
from nemotron_dpo.versions import require_triton

_CPU = torch.device("cpu")
_active: CudaNamesMeanCpu | None = None


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
    global _active
    require_triton()
    overwrite("torch:compile", _eager)  # compiling would also double the time to start
    if torch.cuda.is_available():
        torch.cuda.set_device(device())
        return
    if _active is not None:
        return
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # hides its note on missing CUDA tools
    overwrite("torch.cuda:current_device", lambda: _CPU)
    overwrite("torch.cuda:current_stream", lambda device=None: None)
    overwrite("torch.cuda:synchronize", lambda device=None: None)
    overwrite("torch.cuda:empty_cache", lambda: None)
    overwrite("torch.cuda:get_rng_state", lambda device="cuda": torch.get_rng_state())
    overwrite("torch.cuda:set_rng_state", lambda new_state, device="cuda": torch.set_rng_state(new_state))
    _active = CudaNamesMeanCpu()
    _active.__enter__()


def without_cuda_random_state() -> None:
    """On a CPU, give megatron-core's recomputation, which saves and restores the CUDA random state, an empty one."""
    random = "megatron.core.tensor_parallel.random"
    overwrite(f"{random}:_get_cuda_rng_state", lambda *_, **__: torch.empty(0, dtype=torch.uint8))
    overwrite(f"{random}:_set_cuda_rng_state", lambda *_, **__: None)


class CudaNamesMeanCpu(TorchFunctionMode):
    """Turns every mention of a CUDA device in a torch call into the CPU."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.cuda:
            return args[0]
        if func is torch.Tensor.type and len(args) == 1 and not kwargs:
            return func(*args).replace("torch.", "torch.cuda.")
        if "device" in kwargs and _is_cuda(kwargs["device"]):
            kwargs = {**kwargs, "device": _CPU}
        if func is torch.Tensor.to and len(args) > 1 and _is_cuda(args[1]):
            args = (args[0], _CPU, *args[2:])
        return func(*args, **kwargs)


def _eager(model: Any = None, **options: Any) -> Any:
    """A torch.compile that compiles nothing; it works as a decorator with or without options."""
    return model if model is not None else _eager


def _is_cuda(target: object) -> bool:
    if isinstance(target, torch.device):
        return target.type == "cuda"
    return isinstance(target, str) and target.startswith("cuda")
