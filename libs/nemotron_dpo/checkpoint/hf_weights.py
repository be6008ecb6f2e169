"""Hugging Face weights <-> GPTModel parameters: one table, each parameter named once and used in both directions.

A rule says which HF tensors make one full (unsharded) megatron tensor and how. `{}` stands for the layer number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nemotron_dpo.policy.architecture import Architecture


@dataclass(frozen=True)
class Rule:
    """`megatron` = merge(shape, [hf tensors]) and [hf tensors] = split(shape, megatron)."""

    megatron: str
    hf: tuple[str, ...]
    merge: Callable[[Architecture, Sequence[Tensor]], Tensor]
    split: Callable[[Architecture, Tensor], Sequence[Tensor]]


def rules(shape: Architecture) -> list[Rule]:
    """Every parameter of the model, layers still as `{}`; the output layer only where it is not tied."""
    table = [
        _copy("embedding.word_embeddings.weight", "model.embed_tokens.weight"),
        _copy("decoder.layers.{}.input_layernorm.weight", "model.layers.{}.input_layernorm.weight"),
        Rule(
            "decoder.layers.{}.self_attention.linear_qkv.weight",
            tuple(f"model.layers.{{}}.self_attn.{x}_proj.weight" for x in "qkv"),
            merge_qkv,
            split_qkv,
        ),
        _copy("decoder.layers.{}.self_attention.linear_proj.weight", "model.layers.{}.self_attn.o_proj.weight"),
        _copy("decoder.layers.{}.pre_mlp_layernorm.weight", "model.layers.{}.post_attention_layernorm.weight"),
        Rule(
            "decoder.layers.{}.mlp.linear_fc1.weight",
            ("model.layers.{}.mlp.gate_proj.weight", "model.layers.{}.mlp.up_proj.weight"),
            lambda shape, parts: torch.cat(list(parts)),
            lambda shape, full: full.chunk(2),
        ),
        _copy("decoder.layers.{}.mlp.linear_fc2.weight", "model.layers.{}.mlp.down_proj.weight"),
        _copy("decoder.final_layernorm.weight", "model.norm.weight"),
    ]
    if not shape.tied_embeddings:
        table.append(_copy("output_layer.weight", "lm_head.weight"))
    return table


def merge_qkv(shape: Architecture, parts: Sequence[Tensor]) -> Tensor:
    """q [N*D, H], k [G*D, H], v [G*D, H] -> [G * (N/G + 2) * D, H]: per group its queries, then its key, then its value."""
    q, k, v = parts
    groups, size, width = shape.num_query_groups, shape.kv_channels, q.shape[1]
    grouped = [x.reshape(groups, -1, size, width) for x in (q, k, v)]
    return torch.cat(grouped, dim=1).reshape(-1, width)


def split_qkv(shape: Architecture, full: Tensor) -> Sequence[Tensor]:
    """The inverse of merge_qkv."""
    groups, size, width = shape.num_query_groups, shape.kv_channels, full.shape[1]
    per_group = shape.num_attention_heads // groups
    parts = full.reshape(groups, per_group + 2, size, width).split([per_group, 1, 1], dim=1)
    return [part.reshape(-1, width) for part in parts]


def _copy(megatron: str, hf: str) -> Rule:
    return Rule(megatron, (hf,), lambda shape, parts: parts[0], lambda shape, full: [full])
