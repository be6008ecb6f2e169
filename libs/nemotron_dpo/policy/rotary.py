"""Rotary positions by our kernels, in the place where megatron-core calls Transformer Engine's on GPUs."""

from __future__ import annotations

from megatron.core.transformer import TransformerConfig
from torch import Tensor

from nemotron_dpo.kernels import rotary
from nemotron_dpo.policy.patches import overwrite


def rotate_in_few_passes(config: TransformerConfig) -> None:
    """Make megatron-core rotate by `rotate`."""
    overwrite("megatron.core.models.common.embeddings.rope_utils:fused_apply_rotary_pos_emb", rotate)
    config.apply_rope_fusion = True


def rotate(x_SND: Tensor, angles_ST: Tensor, interleaved: bool = False) -> Tensor:
    """As `kernels.rotary.rotate`; entries that turn with their neighbours are of no architecture here."""
    if interleaved:
        raise NotImplementedError("rotary positions of interleaved entries")
    return rotary.rotate(x_SND, angles_ST)
