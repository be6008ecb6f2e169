"""Nemotron-H's table of weights. HF names are on the right; the first `{}` is the layer number, the second the expert's.

A layer has one norm, whose name here is that of its kind. Expert biases are buffers, not parameters.
"""

from __future__ import annotations

from nemotron_dpo.checkpoint.hf_weights import Rule, copy, qkv, stacked

_OURS, _THEIRS = "decoder.layers.{}.", "backbone.layers.{}."
_EXPERT = (f"{_OURS}mlp.experts.local_experts.{{}}.", f"{_THEIRS}mixer.experts.{{}}.")
WEIGHTS: tuple[Rule, ...] = (
    copy("embedding.word_embeddings.weight", "backbone.embeddings.weight"),
    copy("decoder.final_norm.weight", "backbone.norm_f.weight"),
    *(copy(f"{_OURS}{name}.weight", f"{_THEIRS}norm.weight") for name in ("norm", "input_layernorm", "pre_mlp_layernorm")),
    stacked(f"{_OURS}mixer.in_proj.weight", f"{_THEIRS}mixer.in_proj.weight", lambda mamba: mamba.parts),
    stacked(f"{_OURS}mixer.conv1d.weight", f"{_THEIRS}mixer.conv1d.weight", lambda mamba: mamba.conv_parts),
    stacked(f"{_OURS}mixer.conv1d.bias", f"{_THEIRS}mixer.conv1d.bias", lambda mamba: mamba.conv_parts),
    *(copy(f"{_OURS}mixer.{name}", f"{_THEIRS}mixer.{name}", is_state=True) for name in ("A_log", "D", "dt_bias")),
    *(copy(f"{_OURS}mixer.{name}.weight", f"{_THEIRS}mixer.{name}.weight") for name in ("norm", "out_proj")),
    qkv(f"{_OURS}self_attention.linear_qkv.weight", f"{_THEIRS}mixer.q|k|v_proj.weight"),
    copy(f"{_OURS}self_attention.linear_proj.weight", f"{_THEIRS}mixer.o_proj.weight"),
    copy(f"{_OURS}mlp.linear_fc1.weight", f"{_THEIRS}mixer.up_proj.weight"),
    copy(f"{_OURS}mlp.linear_fc2.weight", f"{_THEIRS}mixer.down_proj.weight"),
    copy(f"{_OURS}mlp.router.weight", f"{_THEIRS}mixer.gate.weight"),
    copy(f"{_OURS}mlp.router.expert_bias", f"{_THEIRS}mixer.gate.e_score_correction_bias", own_precision=True),
    copy(f"{_OURS}mlp.shared_experts.linear_fc1.weight", f"{_THEIRS}mixer.shared_experts.up_proj.weight"),
    copy(f"{_OURS}mlp.shared_experts.linear_fc2.weight", f"{_THEIRS}mixer.shared_experts.down_proj.weight"),
    copy(f"{_EXPERT[0]}linear_fc1.weight", f"{_EXPERT[1]}up_proj.weight"),
    copy(f"{_EXPERT[0]}linear_fc2.weight", f"{_EXPERT[1]}down_proj.weight"),
)
