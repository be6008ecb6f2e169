"""Hugging Face tensors <-> GPTModel parameters: the rules of which each family's table consists.

A rule describes one parameter in both directions: the HF tensors that make the full (unsharded) megatron tensor, and back. In
its names the first `{}` stands for the layer number and the second for the expert's. The tables can be read without torch,
which is imported only where tensors are joined.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nemotron_dpo.policy.architecture import Architecture

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Rule:
    """`megatron` = merge(shape, [hf tensors]) and [hf tensors] = split(shape, megatron).

    `halves` marks a parameter that stacks two halves (gate over up). Tensor parallelism divides each half.
    """

    megatron: str
    hf: tuple[str, ...]
    merge: Callable[[Architecture, Sequence[Tensor]], Tensor]
    split: Callable[[Architecture, Tensor], Sequence[Tensor]]
    halves: bool = False


def copy(megatron: str, hf: str, *, halves: bool = False) -> Rule:
    """The same tensor under another name."""
    return Rule(megatron, (hf,), lambda shape, parts: parts[0], lambda shape, full: [full], halves)


def stack(megatron: str, gate: str, up: str) -> Rule:
    """Two projections of equal shape, the first over the second."""
    return Rule(megatron, (gate, up), lambda shape, parts: _joined(parts), lambda shape, full: full.chunk(2), True)


def qkv(megatron: str, hf: str) -> Rule:
    """Query, key and value projections (weights or biases); `hf` holds `q|k|v` where their letter goes."""
    return Rule(megatron, tuple(hf.replace("q|k|v", letter) for letter in "qkv"), merge_qkv, split_qkv)


def fused_qkv(megatron: str, hf: str) -> Rule:
    """The three projections in one HF tensor: all queries, then all keys, then all values."""
    return Rule(
        megatron,
        (hf,),
        lambda shape, parts: merge_qkv(shape, parts[0].split(_qkv_rows(shape))),
        lambda shape, full: [_joined(split_qkv(shape, full))],
    )


def merge_qkv(shape: Architecture, parts: Sequence[Tensor]) -> Tensor:
    """q [N*D, ...], k [G*D, ...], v [G*D, ...] -> [G * (N/G + 2) * D, ...]: per group its queries, its key, its value."""
    groups, size, rest = shape.num_query_groups, shape.kv_channels, parts[0].shape[1:]
    return _joined([x.reshape(groups, -1, size, *rest) for x in parts], dim=1).reshape(-1, *rest)


def split_qkv(shape: Architecture, full: Tensor) -> Sequence[Tensor]:
    """The inverse of merge_qkv."""
    groups, size, rest = shape.num_query_groups, shape.kv_channels, full.shape[1:]
    per_group = shape.num_attention_heads // groups
    parts = full.reshape(groups, per_group + 2, size, *rest).split([per_group, 1, 1], dim=1)
    return [part.reshape(-1, *rest) for part in parts]


def _qkv_rows(shape: Architecture) -> list[int]:
    group_rows = shape.num_query_groups * shape.kv_channels
    return [shape.num_attention_heads * shape.kv_channels, group_rows, group_rows]


def _joined(parts: Sequence[Tensor], dim: int = 0) -> Tensor:
    import torch

    return torch.cat(list(parts), dim=dim)
