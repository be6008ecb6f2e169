"""The kernels of this process, chosen once: what the differentiable functions ask for."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable

import torch

from nemotron_dpo.kernels import choice
from nemotron_dpo.kernels.protocol import Kernels, Unavailable
from nemotron_dpo.kernels.torch_ops.flash_attention import why_not_flash
from nemotron_dpo.kernels.torch_ops.float32_matmul import prefer_onednn
from nemotron_dpo.kernels.torch_ops.table import torch_kernels

_chosen: Kernels | None = None
_reason = ""  # why it is not a faster one


def kernels() -> Kernels:
    """The table in use; chosen now, and said by a logger, where no program did so before."""
    return choose(say=logging.getLogger(__name__).warning) if _chosen is None else _chosen


def choose(precision: str | None = None, say: Callable[[str], object] = lambda line: None) -> Kernels:
    """Choose the table for this process, as the environment and its machine have it, and `say` why it is not a faster one.

    `precision` is that of the model, where it is known. Once chosen, the table stays. Raises UserError where the environment
    insists on a backend that this process cannot have.
    """
    global _chosen, _reason
    if _chosen is None:
        has_gpu = torch.cuda.is_available()
        if not has_gpu:
            prefer_onednn()
        _chosen, _reason = _made(choice.backend_for(os.environ, has_gpu=has_gpu))
        if _reason:
            say(f"warning: kernels: {_chosen.name} instead of {'gpu' if has_gpu else 'c'}: {_reason}")
        if _chosen.name == "c" and not choice.has_wide_vectors():
            say("warning: kernels: c in vectors of 4 numbers, and so of no known speed: this CPU has no AVX2")
        if has_gpu and precision and (reason := why_not_flash(getattr(torch, precision))):
            say(f"warning: kernels: attention without FlashAttention: {reason}")
    return _chosen


def why_not_faster() -> str:
    """Why this process has no faster kernels; empty where it has the fastest that there are."""
    return _reason


def use(table: Kernels | None) -> Kernels | None:
    """Put `table` in the place of the chosen one, None to choose anew; returns what was there. For tests."""
    global _chosen
    before, _chosen = _chosen, table
    return before


def _made(chosen: choice.BackendChoice) -> tuple[Kernels, str]:
    """The table of a choice, or torch's with the reason where it turns out not to work and nobody insists on it."""
    try:
        return _table(chosen.name), chosen.reason
    except Unavailable as unavailable:
        if chosen.is_wanted:
            raise choice.refused(os.environ, str(unavailable)) from None
        return torch_kernels(), str(unavailable)


def _table(name: str) -> Kernels:
    """The table of backend `name`. Raises Unavailable."""
    if name == "c":
        from nemotron_dpo.kernels.c.table import c_kernels

        return c_kernels(os.environ)
    if name == "gpu":
        from nemotron_dpo.kernels.gpu.table import gpu_kernels

        return gpu_kernels()
    return torch_kernels()
