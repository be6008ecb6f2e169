"""What kernels in C are told of a row's forest of chunks, and the memory that they read and write; chunks.h is their side.

Legend: S packed tokens, N heads, D head size, G groups of heads that share B and C, K state size; T trees of chunks.
"""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nemotron_dpo.kernels.chunks import ROOT, Chunks
from nemotron_dpo.kernels.scratch import scratch


class Call(ctypes.Structure):
    """`Call` of chunks.h."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("is_half", "num_heads", "num_groups", "size", "state")),
        *((name, ctypes.c_int64) for name in ("x_row", "B_row", "C_row", "grad_row")),
        *((name, ctypes.c_int64) for name in ("num_trees", "num_tokens", "num_threads")),
        *((name, ctypes.c_int64) for name in ("most_tokens", "most_inner", "num_slots")),
        ("trees", ctypes.c_void_p),
        ("chunks", ctypes.c_void_p),
    ]


@dataclass(frozen=True, eq=False)
class _Trees:
    """Chunks by tree, the trees with most tokens first, each as `Chunk` of chunks.h has it.

    most_inner: the most chunks with children that a tree has. num_slots: for so many last states that are needed at a time.
    """

    firsts: Tensor
    chunks: Tensor
    most_inner: int
    num_slots: int


@functools.lru_cache(maxsize=8)
def _trees(chunks: Chunks) -> _Trees:
    """Made once for all layers of a pass."""
    trees: dict[int, list[int]] = {}
    roots: list[int] = []
    for chunk, parent in enumerate(chunks.parents):
        roots.append(chunk if parent == ROOT else roots[parent])
        trees.setdefault(roots[chunk], []).append(chunk)
    firsts, inner, num_slots = [0], [0], 0
    links_of: list[tuple[int, ...]] = []
    for tree in sorted(trees.values(), key=lambda tree: -sum(chunks.counts[chunk] for chunk in tree)):
        slots, places = _slots(tree, chunks), {chunk: len(links_of) + place for place, chunk in enumerate(tree)}
        numbers = {chunk: number for number, chunk in enumerate(slots)}
        for chunk in tree:
            parent = chunks.parents[chunk]
            is_last = parent != ROOT and chunks.children[parent][-1] == chunk
            links = places.get(parent, ROOT), numbers.get(chunk, -1), slots.get(chunk, -1), is_last
            links_of.append((chunks.starts[chunk], chunks.counts[chunk], *links))
        firsts.append(len(links_of))
        inner.append(len(slots))
        num_slots = max(num_slots, 1 + max(slots.values(), default=-1))
    return _Trees(torch.tensor(firsts), torch.tensor(links_of, dtype=torch.int64), max(inner), num_slots)


def _slots(tree: list[int], chunks: Chunks) -> dict[int, int]:
    """A place for the last state of each chunk with children; it is another's from the last of the children on."""
    slots: dict[int, int] = {}
    free: list[int] = []
    for chunk in tree:
        if chunks.children[chunk]:
            slots[chunk] = free.pop() if free else len(set(slots.values()))
        parent = chunks.parents[chunk]
        if parent != ROOT and chunks.children[parent][-1] == chunk:
            free.append(slots[parent])
    return slots


def call_of(x: Tensor, B: Tensor, C: Tensor, grad: Tensor, chunks: Chunks) -> Call:
    """Of tensors as `rows` gives them. Raises ValueError where the row has fewer tokens than its pieces."""
    if len(x) < chunks.num_tokens:
        raise ValueError(f"a row of {len(x)} tokens has pieces up to token {chunks.num_tokens}")
    trees = _trees(chunks)
    (_, num_heads, size), (_, num_groups, state) = x.shape, B.shape
    shape = x.dtype is torch.bfloat16, num_heads, num_groups, size, state
    strides = [of.stride(0) for of in (x, B, C, grad)]
    many = len(trees.firsts) - 1, len(x), torch.get_num_threads()
    sizes = max(chunks.counts, default=1), trees.most_inner, trees.num_slots
    return Call(*shape, *strides, *many, *sizes, trees.firsts.data_ptr(), trees.chunks.data_ptr())


def serves(x: Tensor, B: Tensor, C: Tensor, chunks: Chunks) -> bool:
    """Whether the kernel takes these: float32 or bfloat16 of one kind, in the memory of a CPU."""
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16) and B.dtype is C.dtype is x.dtype


def rows(x: Tensor) -> Tensor:
    """`x` [S, heads, size] with each token's values behind one another; tokens may be further apart."""
    is_packed = x.stride(2) == 1 and x.stride(1) == x.shape[2] and x.stride(0) >= x.shape[1] * x.shape[2]
    return x if is_packed or not x.numel() else x.contiguous()


def empty(shape: tuple[int, ...], dtype: torch.dtype, chunks: Chunks) -> Tensor:
    """What the kernel writes for each token that is in a piece; zeros where some are not."""
    return torch.empty(shape, dtype=dtype) if _is_whole(chunks, shape[0]) else torch.zeros(shape, dtype=dtype)


def parts(name: str, num_parts: int, of: Tensor, chunks: Chunks) -> Tensor:
    """The same for gradients of B or C [P, S, G, K], of which each is what some heads of a group say."""
    found = scratch(name, num_parts * of.numel()).view(num_parts, *of.shape)
    return found if _is_whole(chunks, len(of)) else found.zero_()


def _is_whole(chunks: Chunks, num_tokens: int) -> bool:
    return chunks.covers_all and chunks.num_tokens == num_tokens


def pointers(*tensors: Tensor) -> Any:
    """`Forward` or `Backward` of a kernel, which are nothing but pointers."""
    return (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))
