"""The provider fields that our GPTModel honours for some values only. Any other value is refused by name.

An absent field means the first of its values.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from nemotron_dpo.errors import UserError

_ONLY: dict[str, tuple[Any, ...]] = {
    "normalization": ("RMSNorm", "LayerNorm"),
    "position_embedding_type": ("rope",),
    "activation_func_clamp_value": (None,),
    "add_bias_linear": (False,),
    "apply_residual_connection_post_layernorm": (False,),
    "attention_output_gate": (False,),
    "attn_logit_softcapping": (None,),
    "experimental_attention_variant": (None,),
    "final_logit_softcapping": (None,),
    "glu_linear_offset": (0.0,),
    "heterogeneous_block_specs": (False,),
    "is_vision_language": (False,),
    "moe_latent_size": (None,),
    "moe_layer_freq": (1,),
    "moe_router_enable_expert_bias": (False,),
    "moe_router_num_groups": (None,),
    "moe_router_score_function": ("softmax",),
    "moe_router_topk_scaling_factor": (None, 1.0),
    "moe_shared_expert_intermediate_size": (None,),
    "mtp_num_layers": (None, 0),
    "multi_latent_attention": (False,),
    "no_rope_freq": (None,),
    "qk_l2_norm": (False,),
    "rotary_interleaved": (False,),
    "scale_factor": (None, 1.0),
    "seq_len_interpolation_factor": (None,),
    "softmax_type": ("vanilla",),
    "window_attn_skip_freq": (None,),
}


def refuse_unsupported(model: Mapping[str, Any], own: Mapping[str, tuple[Any, ...]] = {}, free: Collection[str] = ()) -> None:
    """Raise UserError where a provider field asks for something that our GPTModel does not compute.

    `own` replaces values of these fields, or adds fields; those in `free` are read elsewhere.
    """
    for key, known in {**_ONLY, **own}.items():
        value = model.get(key, known[0])
        if key in free or (key == "moe_layer_freq" and isinstance(value, list) and set(value) == {1}):
            continue
        if value not in known:
            raise UserError(f"{key}: {value!r} is not supported", remedy=f"{' or '.join(repr(k) for k in known)} is")
