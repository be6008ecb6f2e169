"""Hugging Face tensors <-> GPTModel parameters: the rules of which each family's table consists.

A rule describes one parameter in both directions: the HF tensors that make the full (unsharded) megatron tensor, and back. In
its names the first `{}` stands for the layer number and the second for the expert's. The tables can be read without torch,
which is imported only where tensors are joined.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from nemotron_dpo.policy.architecture import Layer
from nemotron_dpo.policy.sublayers.attention import Attention
from nemotron_dpo.policy.sublayers.gated_delta import GatedDelta
from nemotron_dpo.policy.sublayers.mamba import Mamba

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Rule:
    """`megatron` = merge(layer, [hf tensors]) and [hf tensors] = split(layer, megatron), `layer` being the one it is a part of.

    `halves` marks a parameter that stacks two halves (gate over up). Tensor parallelism divides each half. `parts` names all
    that it stacks, with their rows, where that is not halves. With `own_precision` it keeps its own, whatever the model's. With
    `is_state` it is one of a recurrence's own, which have one precision in a folder.
    """

    megatron: str
    hf: tuple[str, ...]
    merge: Callable[[Layer | None, Sequence[Tensor]], Tensor]
    split: Callable[[Layer | None, Tensor], Sequence[Tensor]]
    halves: bool = False
    parts: Callable[[Layer | None], Mapping[str, int]] | None = None
    own_precision: bool = False
    is_state: bool = False


def copy(megatron: str, hf: str, *, halves: bool = False, own_precision: bool = False, is_state: bool = False) -> Rule:
    """The same tensor under another name."""
    same = (lambda layer, parts: parts[0]), (lambda layer, full: [full])
    return Rule(megatron, (hf,), *same, halves=halves, own_precision=own_precision, is_state=is_state)


def stacked(megatron: str, hf: str, parts: Callable[[Any], Mapping[str, int]]) -> Rule:
    """The same tensor, in which `parts` of a recurrence are stacked."""
    return replace(copy(megatron, hf), parts=lambda layer: parts(_recurrence(layer)))


def stack(megatron: str, gate: str, up: str) -> Rule:
    """Two projections of equal shape, the first over the second."""
    return Rule(megatron, (gate, up), lambda layer, parts: _joined(parts), lambda layer, full: full.chunk(2), True)


def qkv(megatron: str, hf: str) -> Rule:
    """Query, key and value projections (weights or biases); `hf` holds `q|k|v` where their letter goes."""
    return Rule(megatron, tuple(hf.replace("q|k|v", letter) for letter in "qkv"), merge_qkv, split_qkv)


def fused_qkv(megatron: str, hf: str) -> Rule:
    """The three projections in one HF tensor: all queries, then all keys, then all values."""
    return Rule(
        megatron,
        (hf,),
        lambda layer, parts: merge_qkv(layer, parts[0].split(_qkv_rows(layer))),
        lambda layer, full: [_joined(split_qkv(layer, full))],
    )


def merge_qkv(layer: Layer | None, parts: Sequence[Tensor]) -> Tensor:
    """q [N*D, ...], k [G*D, ...], v [G*D, ...] -> [G * (N/G + 2) * D, ...]: per group its queries, its key, its value."""
    attention, rest = _attention(layer), parts[0].shape[1:]
    heads = [x.reshape(attention.num_groups, -1, attention.head_size, *rest) for x in parts]
    if attention.gated:  # behind each head's query is its gate, which here is behind all queries of the group
        heads = [heads[0][:, 0::2], heads[0][:, 1::2], *heads[1:]]
    return _joined(heads, dim=1).reshape(-1, *rest)


def split_qkv(layer: Layer | None, full: Tensor) -> Sequence[Tensor]:
    """The inverse of merge_qkv."""
    attention, rest = _attention(layer), full.shape[1:]
    per_group = attention.num_heads // attention.num_groups
    if attention.gated:
        return _split_gated(full.reshape(attention.num_groups, 2 * per_group + 2, attention.head_size, *rest), per_group)
    heads = full.reshape(attention.num_groups, per_group + 2, attention.head_size, *rest)
    return [part.reshape(-1, *rest) for part in heads.split([per_group, 1, 1], dim=1)]


def _split_gated(heads: Tensor, per_group: int) -> Sequence[Tensor]:
    """Of the heads of each group its queries, each with its gate behind it, its keys and its values."""
    import torch

    queries, gates, *keys_and_values = heads.split([per_group, per_group, 1, 1], dim=1)
    rest = heads.shape[3:]
    return [torch.stack((queries, gates), dim=2).reshape(-1, *rest), *(part.reshape(-1, *rest) for part in keys_and_values)]


def _qkv_rows(layer: Layer | None) -> list[int]:
    attention = _attention(layer)
    keys = attention.num_groups * attention.head_size
    return [attention.channels, keys, keys]


def _attention(layer: Layer | None) -> Attention:
    assert layer is not None
    assert isinstance(layer.mixer, Attention)
    return layer.mixer


def _recurrence(layer: Layer | None) -> Mamba | GatedDelta:
    assert layer is not None
    assert isinstance(layer.mixer, Mamba | GatedDelta)
    return layer.mixer


def _joined(parts: Sequence[Tensor], dim: int = 0) -> Tensor:
    import torch

    return torch.cat(list(parts), dim=dim)
