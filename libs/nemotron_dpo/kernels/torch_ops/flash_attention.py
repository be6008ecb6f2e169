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

from nemotron_dpo.kernels.scores import Scores
from nemotron_dpo.kernels.segments import PackedTokens, causal_runs, first_of, last_of, num_places

_BLOCK = 512  # queries that meet the keys of their windows at once, where all scores are kept


def flash_serves(query: Tensor, scores: Scores) -> bool:
    """Whether FlashAttention takes such queries [L, 1, N, D], which lie on a GPU; torch's has no soft cap."""
    is_known = query.shape[3] % 8 == 0 and query.shape[3] <= 256 and not why_not_flash(query.dtype)
    return is_known and scores.softcap is None


@functools.cache
def why_not_flash(dtype: torch.dtype) -> str:
    """Why FlashAttention takes no queries of `dtype` on this process's GPU, whatever their size; "" where it does."""
    if dtype not in (torch.bfloat16, torch.float16):
        return f"it takes no {str(dtype).removeprefix('torch.')}"
    if not torch.backends.cuda.is_flash_attention_available():
        return "this torch is built without it"
    major, minor = torch.cuda.get_device_capability()
    return "" if major >= 8 else f"it needs compute capability 8.0, and this GPU has {major}.{minor}"


def flash_attention(
    query: Tensor, key: Tensor, value: Tensor, row: PackedTokens, scores: Scores, sinks_N: Tensor | None = None
) -> Tensor:
    """query [L, 1, N, D], key and value [S, 1, G, D] -> [L, 1, N * D], by torch's FlashAttention for packed sequences."""
    places_T, runs = _plan(row, query.device, scores.window)
    keys, values = (x.flatten(0, 1)[places_T] for x in (key, value))
    sinks = None if sinks_N is None else sinks_N.float()
    return _Flash.apply(query.flatten(0, 1), keys, values, sinks, runs, scores).flatten(1)[:, None]  # type: ignore[union-attr] - torch does not type Function.apply


_Runs = tuple[Tensor, Tensor, int, int]  # where queries and keys of each end, int32, and the most of these in one


@functools.lru_cache(maxsize=2)  # layers with a window and without take turns
def _plan(row: PackedTokens, device: torch.device, window: int | None = None) -> tuple[Tensor, _Runs]:
    """Places in S of the keys of all runs [T], and the runs; made once for all layers of a pass."""
    runs = [(tokens, keys) for _, tokens, keys in causal_runs(row, window)]
    places = [np.concatenate([np.arange(part.start, part.stop) for part in keys]) for _, keys in runs]
    num_queries, num_keys = [tokens.stop - tokens.start for tokens, _ in runs], [len(part) for part in places]
    ends = [_sent(np.cumsum([0, *numbers], dtype=np.int32), device) for numbers in (num_queries, num_keys)]
    return _sent(np.concatenate(places), device), (ends[0], ends[1], max(num_queries), max(num_keys))


def _sent(array: np.ndarray, device: torch.device) -> Tensor:
    """The array as a tensor on `device`; on its way to a GPU, nothing waits for it."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


class _Flash(torch.autograd.Function):
    """torch's own function, but with its gradient summed up in one order, and with sinks.

    A sink adds to what exponentials are divided by. So the result, and its gradient, are those of FlashAttention with the
    larger sum in the place of its own.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, sinks_N: Tensor | None, runs: _Runs, scores: Scores
    ) -> Tensor:
        forward = torch.ops.aten._flash_attention_forward
        out, log_z, *random, _ = forward(query, key, value, *runs, 0.0, True, False, **_options(scores))
        if sinks_N is not None:  # log_z is [N, L] of packed sequences
            out = out * (log_z - sinks_N[:, None]).sigmoid().t()[..., None].to(out.dtype)
            log_z = torch.logaddexp(log_z, sinks_N[:, None])
        ctx.save_for_backward(query, key, value, sinks_N, out, log_z, *random)
        ctx.runs, ctx.scores = runs, scores
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, sinks_N, out, log_z, *random = ctx.saved_tensors
        grad = grads[0].contiguous()
        with _deterministic():
            of_inputs = torch.ops.aten._flash_attention_backward(
                grad, query, key, value, out, log_z, *ctx.runs, 0.0, True, *random, **_options(ctx.scores)
            )
        if sinks_N is None:
            return *of_inputs, None, None, None
        means_NL = (out.float() * grad.float()).sum(-1).t()
        return *of_inputs, -((sinks_N[:, None] - log_z).exp() * means_NL).sum(1), None, None


def _options(scores: Scores) -> dict[str, Any]:
    """torch's names for what `scores` say; its window is of keys before a query's own."""
    window = {} if scores.window is None else {"window_size_left": scores.window - 1, "window_size_right": 0}
    return {"scale": scores.scale, **window}


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


def run_attention(
    query: Tensor, key: Tensor, value: Tensor, row: PackedTokens, scores: Scores, sinks_N: Tensor | None = None
) -> Tensor:
    """The same run by run, with all scores of a run at once: for what FlashAttention does not take, float32 for one."""
    outs = []
    for held, num_queries, keys in _blocks(row, scores.window):
        q_NED = query[held : held + num_queries, 0].transpose(0, 1)
        k_NED, v_NED = (
            torch.cat([x[part, 0] for part in keys]).repeat_interleave(len(q_NED) // x.shape[2], 1).transpose(0, 1)
            for x in (key, value)
        )
        num_keys = k_NED.shape[1]
        seen = torch.ones(num_queries, num_keys, dtype=torch.bool, device=query.device).tril(num_keys - num_queries)
        if scores.window is not None:
            seen = seen.triu(num_keys - num_queries - scores.window + 1)
        outs.append(_attended(q_NED, k_NED, v_NED, seen, scores, sinks_N).transpose(0, 1).flatten(1))
    return torch.cat(outs)[:, None]


def _blocks(row: PackedTokens, window: int | None) -> Iterator[tuple[int, int, tuple[slice, ...]]]:
    """Each run, or where a window hides some of its keys each block of it: its beginning in L, its queries, their keys."""
    for held, tokens, keys in causal_runs(row, window):
        num_queries, later = tokens.stop - tokens.start, num_places(keys) - (tokens.stop - tokens.start)
        step = num_queries if window is None or num_places(keys) <= window else _BLOCK
        for start in range(0, num_queries, step):
            stop = min(start + step, num_queries)
            seen = first_of(keys, later + stop)
            yield held + start, stop - start, seen if window is None else last_of(seen, stop - start + window - 1)


def _attended(q_NED: Tensor, k_NED: Tensor, v_NED: Tensor, seen: Tensor, scores: Scores, sinks_N: Tensor | None) -> Tensor:
    if scores.softcap is None and sinks_N is None:
        with sdpa_kernel(SDPBackend.MATH):  # the others sum gradients up in the order that threads come by
            return F.scaled_dot_product_attention(q_NED[None], k_NED[None], v_NED[None], seen, scale=scores.scale)[0]
    scores_NEE = (q_NED @ k_NED.mT).float() * scores.scale
    if scores.softcap is not None:
        scores_NEE = scores.softcap * torch.tanh(scores_NEE / scores.softcap)
    scores_NEE = scores_NEE.masked_fill(~seen, -torch.inf)
    if sinks_N is None:
        return scores_NEE.softmax(-1).to(v_NED.dtype) @ v_NED
    with_sink = torch.cat((scores_NEE, sinks_N.float()[:, None, None].expand(-1, len(seen), 1)), -1)
    return with_sink.softmax(-1)[..., :-1].to(v_NED.dtype) @ v_NED
