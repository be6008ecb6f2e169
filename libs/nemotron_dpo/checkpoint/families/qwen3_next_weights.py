"""The table of weights of Qwen3-Next and its like.

HF names are on the right; the first `{}` is the layer number, the second the expert's.

A recurrence's in_proj stacks query, key, value, z, beta and alpha, each of all heads. Qwen3-Next's files have them in the order
of key heads: each head's query, key, values and gates in one tensor, its betas and alphas in another.

Legend: G key heads, H value heads of a key head, K and D their channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nemotron_dpo.checkpoint.families.dense import ATTENTION, EMBEDDING, GATED_MLP, NORMS, QK_NORM
from nemotron_dpo.checkpoint.hf_weights import Rule, copy, stack, stacked
from nemotron_dpo.policy.architecture import Layer
from nemotron_dpo.policy.sublayers.gated_delta import GatedDelta

if TYPE_CHECKING:
    from torch import Tensor

_OURS, _THEIRS = "decoder.layers.{}.self_attention.", "model.layers.{}.linear_attn."


def merge_heads(layer: Layer | None, parts: Sequence[Tensor]) -> Tensor:
    """[G * (2 K + 2 H D), ...] and [G * 2 H, ...] -> the rows of in_proj."""
    import torch

    both = (_of_heads(layer, tensor, sizes) for tensor, sizes in zip(parts, _sizes(layer), strict=True))
    return torch.cat([part.flatten(0, 1) for heads in both for part in heads])


def split_heads(layer: Layer | None, full: Tensor) -> Sequence[Tensor]:
    """The inverse of merge_heads."""
    import torch

    delta = _delta(layer)
    heads = [part.reshape(delta.num_key_heads, -1, *part.shape[1:]) for part in full.split(list(delta.parts.values()))]
    return [torch.cat(parts, dim=1).flatten(0, 1) for parts in (heads[:4], heads[4:])]


def _of_heads(layer: Layer | None, tensor: Tensor, sizes: list[int]) -> Sequence[Tensor]:
    return tensor.reshape(_delta(layer).num_key_heads, sum(sizes), *tensor.shape[1:]).split(sizes, dim=1)


def _sizes(layer: Layer | None) -> tuple[list[int], list[int]]:
    """Rows of a key head of what either tensor stacks."""
    delta = _delta(layer)
    heads = delta.num_value_heads // delta.num_key_heads
    values = heads * delta.value_size
    return [delta.key_size, delta.key_size, values, values], [heads, heads]


def _stacked(parts: Sequence[Tensor]) -> Tensor:
    import torch

    return torch.cat(list(parts))


def _delta(layer: Layer | None) -> GatedDelta:
    assert layer is not None
    assert isinstance(layer.mixer, GatedDelta)
    return layer.mixer


def _less_one(megatron: str, hf: str) -> Rule:
    """A norm's weight, which is stored less one here, in float32, and whole there, as precise as a recurrence's parameters."""
    return Rule(
        megatron,
        (hf,),
        lambda layer, parts: parts[0].float() - 1,
        lambda layer, full: [full.float() + 1],
        is_state=True,
    )


IN_PROJ = Rule(
    f"{_OURS}in_proj.weight",
    (f"{_THEIRS}in_proj_qkvz.weight", f"{_THEIRS}in_proj_ba.weight"),
    merge_heads,
    split_heads,
    parts=lambda layer: _delta(layer).parts,
)
# Qwen3.5 has query, key and value of all heads in one tensor, and the rest in one each
IN_PROJ_APART = Rule(
    f"{_OURS}in_proj.weight",
    tuple(f"{_THEIRS}in_proj_{name}.weight" for name in ("qkv", "z", "b", "a")),
    lambda layer, parts: _stacked(parts),
    lambda layer, full: full.split([_delta(layer).conv_channels, *list(_delta(layer).parts.values())[3:]]),
    parts=lambda layer: _delta(layer).parts,
)
RECURRENCE = (
    stacked(f"{_OURS}conv1d.weight", f"{_THEIRS}conv1d.weight", lambda delta: delta.conv_parts),
    *(copy(f"{_OURS}{name}", f"{_THEIRS}{name}", is_state=True) for name in ("A_log", "dt_bias")),
    _less_one(f"{_OURS}out_norm.weight", f"{_THEIRS}norm.weight"),
    copy(f"{_OURS}out_proj.weight", f"{_THEIRS}out_proj.weight"),
)
_MLP, _HF_MLP = "decoder.layers.{}.mlp.", "model.layers.{}.mlp."
EXPERTS = (
    copy(f"{_MLP}router.weight", f"{_HF_MLP}gate.weight"),
    stack(
        f"{_MLP}experts.local_experts.{{}}.linear_fc1.weight",
        f"{_HF_MLP}experts.{{}}.gate_proj.weight",
        f"{_HF_MLP}experts.{{}}.up_proj.weight",
    ),
    copy(f"{_MLP}experts.local_experts.{{}}.linear_fc2.weight", f"{_HF_MLP}experts.{{}}.down_proj.weight"),
    stack(
        f"{_MLP}shared_experts.linear_fc1.weight",
        f"{_HF_MLP}shared_expert.gate_proj.weight",
        f"{_HF_MLP}shared_expert.up_proj.weight",
    ),
    copy(f"{_MLP}shared_experts.linear_fc2.weight", f"{_HF_MLP}shared_expert.down_proj.weight"),
    copy(f"{_MLP}shared_experts.gate_weight", f"{_HF_MLP}shared_expert_gate.weight"),
)
DENSE = (*EMBEDDING, *NORMS, *ATTENTION, *QK_NORM, *GATED_MLP)
WEIGHTS: tuple[Rule, ...] = (*DENSE, IN_PROJ, *RECURRENCE, *EXPERTS)
