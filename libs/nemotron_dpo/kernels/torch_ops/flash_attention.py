"""Attention over packed pairs on a GPU, each run of causal queries a sequence of its own; the rejected response has a copy of
the prompt's keys. Gradients are summed up in one order: what is repeated or resumed is the same to the last bit.

Legend: L queries held, S packed tokens, T keys of all runs behind one another, N query heads, G key/value heads, D head size.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from nemotron_dpo.kernels.segments import PackedTokens, causal_runs


def flash_serves(query: Tensor) -> bool:
    """Whether FlashAttention takes such queries [L, 1, N, D], which lie on a GPU."""
    return query.shape[3] % 8 == 0 and query.shape[3] <= 256 and not why_not_flash(query.dtype)


@functools.cache
def why_not_flash(dtype: torch.dtype) -> str:
    """Why FlashAttention takes no queries of `dtype` on this process's GPU, whatever their size; "" where it does."""
    if dtype not in (torch.bfloat16, torch.float16):
        return f"it takes no {str(dtype).removeprefix('torch.')}"
    if not torch.backends.cuda.is_flash_attention_available():
        return "this torch is built without it"
    major, minor = torch.cuda.get_device_capability()
    return "" if major >= 8 else f"it needs compute capability 8.0, and this GPU has {major}.{minor}"


def flash_attention(query: Tensor, key: Tensor, value: Tensor, row: PackedTokens, scale: float) -> Tensor:
    """query [L, 1, N, D], key and value [S, 1, G, D] -> [L, 1, N * D], by torch's FlashAttention for packed sequences."""
    places_T, runs = _plan(row, query.device)
    keys, values = (x.flatten(0, 1)[places_T] for x in (key, value))
    return _Flash.apply(query.flatten(0, 1), keys, values, runs, scale).flatten(1)[:, None]  # type: ignore[union-attr] - torch does not type Function.apply


_Runs = tuple[Tensor, Tensor, int, int]  # where queries and keys of each end, int32, and the most of these in one


@functools.lru_cache(maxsize=1)
def _plan(row: PackedTokens, device: torch.device) -> tuple[Tensor, _Runs]:
    """Places in S of the keys of all runs [T], and the runs; made once for all layers of a pass."""
    runs = [(tokens, keys) for _, tokens, keys in causal_runs(row)]
    places = [np.concatenate([np.arange(part.start, part.stop) for part in keys]) for _, keys in runs]
    num_queries, num_keys = [tokens.stop - tokens.start for tokens, _ in runs], [len(part) for part in places]
    ends = [_sent(np.cumsum([0, *numbers], dtype=np.int32), device) for numbers in (num_queries, num_keys)]
    return _sent(np.concatenate(places), device), (ends[0], ends[1], max(num_queries), max(num_keys))


def _sent(array: np.ndarray, device: torch.device) -> Tensor:
    """The array as a tensor on `device`; on its way to a GPU, nothing waits for it."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


class _Flash(torch.autograd.Function):
    """torch's own function, but with its gradient summed up in one order."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, runs: _Runs, scale: float) -> Tensor:
        forward = torch.ops.aten._flash_attention_forward
        out, log_z, *random, _ = forward(query, key, value, *runs, 0.0, True, False, scale=scale)
        ctx.save_for_backward(query, key, value, out, log_z, *random)
        ctx.runs, ctx.scale = runs, scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, log_z, *random = ctx.saved_tensors
        with _deterministic():
            of_inputs = torch.ops.aten._flash_attention_backward(
                grads[0].contiguous(), query, key, value, out, log_z, *ctx.runs, 0.0, True, *random, scale=ctx.scale
            )
        return *of_inputs, None, None


@contextlib.contextmanager
def _deterministic() -> Iterator[None]:
    """Ask the one operation for what torch would else ask of all."""
    before, strict = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic
    fill = memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    memory.fill_uninitialized_memory = False
    try:
        yield
    finally:
        memory.fill_uninitialized_memory = fill
        torch.use_deterministic_algorithms(before, warn_only=strict)


def run_attention(query: Tensor, key: Tensor, value: Tensor, row: PackedTokens, scale: float) -> Tensor:
    """The same run by run, with all scores of a run at once: for what FlashAttention does not take, float32 for one."""
    outs = []
    for held, tokens, keys in causal_runs(row):
        q_NED = query[held : held + tokens.stop - tokens.start, 0].transpose(0, 1)
        k_NED, v_NED = (
            torch.cat([x[part, 0] for part in keys]).repeat_interleave(len(q_NED) // x.shape[2], 1).transpose(0, 1)
            for x in (key, value)
        )
        num_queries, num_keys = q_NED.shape[1], k_NED.shape[1]
        seen = torch.ones(num_queries, num_keys, dtype=torch.bool, device=query.device).tril(num_keys - num_queries)
        with sdpa_kernel(SDPBackend.MATH):  # the others sum gradients up in the order that threads come by
            out_NED = F.scaled_dot_product_attention(q_NED[None], k_NED[None], v_NED[None], seen, scale=scale)[0]
        outs.append(out_NED.transpose(0, 1).flatten(1))
    return torch.cat(outs)[:, None]
