"""Qwen3-Next's config.json and run_config.yaml: what is read, written, and refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from nemotron_dpo.checkpoint import run_config
from nemotron_dpo.checkpoint.families import config
from nemotron_dpo.errors import UserError
from nemotron_dpo.policy.architecture import Architecture, Layer
from nemotron_dpo.policy.sublayers.attention import Attention
from nemotron_dpo.policy.sublayers.dense import Dense
from nemotron_dpo.policy.sublayers.experts import Experts, Router
from nemotron_dpo.policy.sublayers.gated_delta import GatedDelta
from nemotron_dpo.policy.sublayers.rotary import Rotary

# as in Qwen3-Next-80B-A3B-Instruct
NEXT = {
    "architectures": ["Qwen3NextForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "decoder_sparse_step": 1,
    "eos_token_id": 151645,
    "full_attention_interval": 4,
    "head_dim": 256,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 5120,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "linear_value_head_dim": 128,
    "max_position_embeddings": 262144,
    "mlp_only_layers": [],
    "model_type": "qwen3_next",
    "moe_intermediate_size": 512,
    "norm_topk_prob": True,
    "num_attention_heads": 16,
    "num_experts": 512,
    "num_experts_per_tok": 10,
    "num_hidden_layers": 48,
    "num_key_value_heads": 2,
    "output_router_logits": False,
    "partial_rotary_factor": 0.25,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 10000000,
    "router_aux_loss_coef": 0.001,
    "shared_expert_intermediate_size": 512,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
# as the text_config of Qwen3.5-27B, and of Qwen3.5-35B-A3B
FIVE = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attn_output_gate": True,
    "dtype": "bfloat16",
    "eos_token_id": 248044,
    "full_attention_interval": 4,
    "head_dim": 256,
    "hidden_act": "silu",
    "hidden_size": 5120,
    "initializer_range": 0.02,
    "intermediate_size": 17408,
    "layer_types": (["linear_attention"] * 3 + ["full_attention"]) * 16,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 48,
    "linear_value_head_dim": 128,
    "mamba_ssm_dtype": "float32",
    "max_position_embeddings": 262144,
    "mlp_only_layers": [],
    "model_type": "qwen3_5_text",
    "mtp_num_hidden_layers": 1,
    "mtp_use_dedicated_embeddings": False,
    "num_attention_heads": 24,
    "num_hidden_layers": 64,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_parameters": {
        "mrope_interleaved": True,
        "mrope_section": [11, 11, 10],
        "partial_rotary_factor": 0.25,
        "rope_theta": 10000000,
        "rope_type": "default",
    },
    "tie_word_embeddings": False,
    "use_cache": True,
    "vocab_size": 248320,
}
FIVE_MOE = {
    **{key: value for key, value in FIVE.items() if key not in ("intermediate_size", "mlp_only_layers")},
    "hidden_size": 2048,
    "layer_types": (["linear_attention"] * 3 + ["full_attention"]) * 10,
    "linear_num_value_heads": 32,
    "model_type": "qwen3_5_moe_text",
    "moe_intermediate_size": 512,
    "num_attention_heads": 16,
    "num_experts": 256,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 40,
    "num_key_value_heads": 2,
    "output_router_logits": False,
    "router_aux_loss_coef": 0.001,
    "shared_expert_intermediate_size": 512,
}
DELTA = GatedDelta(16, 32, 128, 128)
ATTENTION = Attention(16, 2, 256, Rotary(1e7, 0.25), qk_norm=True, gated=True)
EXPERTS = Experts(Router(512, 10), Dense(512), Dense(512), shared_gate=True)


def read(settings: dict[str, Any]) -> Architecture:
    return config.from_config(settings, Path("config.json"))


def test_it_is_what_its_card_says() -> None:
    architecture = read(NEXT)
    linear, full = Layer(DELTA, EXPERTS), Layer(ATTENTION, EXPERTS)
    assert list(architecture.layers) == [linear, linear, linear, full] * 12
    assert architecture.zero_centered_norm
    assert round(architecture.num_parameters() / 1e9, 1) == 79.7  # its card: 80B, and 79B without embeddings
    assert round(architecture.num_parameters(met=True) / 1e9, 1) == 3.9  # its card: 3B without either embedding of 0.3B each


def test_qwen3_5_is_what_its_cards_say() -> None:
    """27B and 35B with 3B active, in which their towers for pictures have half a billion, and embeddings are left out of 3B."""
    dense, experts = read(FIVE), read(FIVE_MOE)
    assert [round(each.num_parameters() / 1e9, 1) for each in (dense, experts)] == [26.9, 34.7]
    assert round(experts.num_parameters(met=True) / 1e9, 1) == 3.5
    assert dense.layers[0] == Layer(replace(DELTA, num_value_heads=48), Dense(17408))
    assert dense.layers[3] == Layer(replace(ATTENTION, num_heads=24, num_groups=4), Dense(17408))
    assert experts.layers[0] == Layer(DELTA, Experts(Router(256, 8), Dense(512), Dense(512), shared_gate=True))


def test_what_is_written_of_qwen3_5_is_read_here_and_by_transformers(tmp_path: Path) -> None:
    from transformers import AutoConfig

    for settings in (FIVE, FIVE_MOE):
        architecture = read(settings)
        written = json.loads(json.dumps(config.write(architecture)))
        assert read(written) == architecture
        theirs = AutoConfig.for_model(**written)
        unread = {"mamba_ssm_dtype", "mtp_num_hidden_layers", "mtp_use_dedicated_embeddings", "full_attention_interval"}
        for key in settings.keys() - unread - {"rope_parameters", "dtype", "mlp_only_layers"}:
            assert getattr(theirs, key) == settings[key], key
        run_config.write(architecture, tmp_path)
        assert run_config.read(tmp_path) == architecture
        bridges = yaml.safe_load((tmp_path / "run_config.yaml").read_text())["model"]
        (tmp_path / "run_config.yaml").write_text(yaml.safe_dump({"model": bridges}))
        assert run_config.read(tmp_path).family == settings["model_type"]


def test_what_of_qwen3_5_cannot_be_honoured_is_refused_by_name() -> None:
    for settings, changes, message in (
        (FIVE, {"attn_output_gate": False}, "attn_output_gate False is not supported: qwen3_5_text models with True are"),
        (FIVE, {"mlp_only_layers": [1]}, r"mlp_only_layers \[1\] is not supported"),
        (FIVE_MOE, {"num_experts": 0}, "num_experts is 0"),
    ):
        with pytest.raises(UserError, match=message):
            read({**settings, **changes})


def test_layers_without_experts_are_found_as_transformers_finds_them() -> None:
    """It counts from one where it asks for every manyth, and from zero where a list names them."""
    architecture = read({**NEXT, "decoder_sparse_step": 3, "mlp_only_layers": [2, 5], "num_hidden_layers": 12})
    sparse = [number for number, layer in enumerate(architecture.layers) if isinstance(layer.feed_forward, Experts)]
    assert sparse == [8, 11]
    assert architecture.layers[0].feed_forward == Dense(5120)
    assert {layer.feed_forward for layer in read({**NEXT, "num_experts": 0}).layers} == {Dense(5120)}


def _transformers_5(settings: dict[str, Any]) -> dict[str, Any]:
    gone = ("full_attention_interval", "partial_rotary_factor", "rope_theta", "rope_scaling", "torch_dtype")
    rope = {"partial_rotary_factor": 0.25, "rope_theta": 10000000, "rope_type": "default"}
    kinds = ["full_attention" if number % 4 == 0 else "linear_attention" for number in range(1, 49)]
    left = {key: value for key, value in settings.items() if key not in gone}
    return {**left, "dtype": "bfloat16", "layer_types": kinds, "rope_parameters": rope}


def _least(settings: dict[str, Any]) -> dict[str, Any]:
    """What transformers' own defaults leave to say."""
    said = ("bos_token_id", "eos_token_id", "max_position_embeddings", "model_type", "rope_theta", "torch_dtype")
    return {key: settings[key] for key in said}


def test_every_form_of_config_says_the_same() -> None:
    for form in (_transformers_5, _least):
        assert read(form(NEXT)) == read(NEXT), form


def test_what_is_written_is_read_here_and_by_transformers() -> None:
    from transformers import AutoConfig

    forms = ({}, {"decoder_sparse_step": 2}, {"num_experts": 0}, {"full_attention_interval": 6}, {"norm_topk_prob": False})
    for changes in forms:
        architecture = read({**NEXT, **changes})
        written = json.loads(json.dumps(config.write(architecture)))
        assert read(written) == architecture, changes
        theirs = AutoConfig.for_model(**written)
        assert theirs.rope_parameters == {"rope_theta": 1e7, "rope_type": "default", "partial_rotary_factor": 0.25}
        kinds = {"linear_attention": GatedDelta, "full_attention": Attention}
        assert [kinds[kind] for kind in theirs.layer_types] == [type(layer.mixer) for layer in architecture.layers]
        sparse = [theirs.num_experts > 0 and number not in theirs.mlp_only_layers for number in range(48)]
        assert sparse == [layer.num_experts > 0 for layer in architecture.layers], changes
        assert theirs.decoder_sparse_step == 1


REFUSED = [
    ({"attention_bias": True}, "attention_bias True is not supported: qwen3_next models with False are"),
    ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported: qwen3_next models with 'silu' are"),
    ({"rope_scaling": {"type": "ntk", "factor": 4.0}}, "rope scaling 'ntk' is not supported"),
    ({"layer_types": ["linear_attention", "sliding_attention"] * 24}, "layers of sliding_attention are not supported"),
    ({"layer_types": ["linear_attention"] * 47}, "layer_types names 47 layers, and num_hidden_layers 48"),
    ({"linear_num_value_heads": 24}, r"\(linear_num_value_heads 24 is no multiple of linear_num_key_heads 16\)"),
    ({"linear_key_head_dim": 0}, r"does not describe a model \(linear_key_head_dim is 0\)"),
    ({"num_experts_per_tok": 513}, r"does not describe a model \(513 of 512 experts are picked\)"),
    ({"decoder_sparse_step": 0}, r"does not describe a model \(decoder_sparse_step is 0\)"),
    ({"full_attention_interval": 0}, r"does not describe a model \(full_attention_interval is 0\)"),
    ({"rms_norm_eps": 0}, r"does not describe a model \(rms_norm_eps is 0\)"),
    ({"tie_word_embeddings": "no"}, r"does not describe a model \(tie_word_embeddings is 'no'\)"),
    ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config of any kind is not supported"),
]


def test_what_cannot_be_honoured_is_refused_by_name() -> None:
    for changes, message in REFUSED:
        with pytest.raises(UserError, match=message) as caught:
            read({**NEXT, **changes})
        assert str(caught.value).startswith("config.json: "), changes
        assert "\n" not in str(caught.value)


def written(architecture: Architecture, folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]] = dict) -> Path:
    """The `model` section alone, as Bridge writes it: without a section of ours."""
    run_config.write(architecture, folder)
    sections = yaml.safe_load((folder / "run_config.yaml").read_text())
    (folder / "run_config.yaml").write_text(yaml.safe_dump({"model": change(sections["model"])}))
    return folder


def test_run_config_there_and_back(tmp_path: Path) -> None:
    forms: tuple[dict[str, Any], ...] = (
        {},
        {"decoder_sparse_step": 2, "full_attention_interval": 5},
        {"num_experts": 0},
        {"mlp_only_layers": [0], "layer_types": ["linear_attention"] * 48, "tie_word_embeddings": True},
        {"layer_types": ["full_attention"] * 48, "norm_topk_prob": False},
    )
    for changes in forms:
        architecture = replace(read({**NEXT, **changes}), states_in_float32=not changes)
        run_config.write(architecture, tmp_path)
        assert run_config.read(tmp_path) == architecture, changes


def test_bridges_own_file_is_read(tmp_path: Path) -> None:
    """The fields that its provider has, beside those that ours has; lists where it has numbers."""
    without = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    due = replace(read(NEXT), **without)
    written(read(NEXT), tmp_path)
    model = yaml.safe_load((tmp_path / "run_config.yaml").read_text())["model"]
    assert (model["linear_attention_freq"], model["moe_layer_freq"], model["kv_channels"]) == (4, 1, 256)
    assert run_config.read(tmp_path) == due
    lists = {"linear_attention_freq": [1, 1, 1, 0] * 12, "moe_layer_freq": [1] * 48, "max_position_embeddings": 40960}
    assert run_config.read(written(read(NEXT), tmp_path, lambda model: {**model, **lists})) == due


REFUSED_FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"attention_output_gate": False}, "attention_output_gate: False is not supported: True is"),
    ({"layernorm_zero_centered_gamma": False}, "layernorm_zero_centered_gamma: False is not supported"),
    ({"mtp_num_layers": 1}, "mtp_num_layers: 1 is not supported: None or 0 is"),
    ({"moe_router_score_function": "sigmoid"}, "moe_router_score_function: 'sigmoid' is not supported"),
    ({"linear_attention_freq": [1] * 47}, "linear_attention_freq names 47 layers, and num_layers is 48"),
    ({"rope_scaling": True}, "rope_scaling: True is not supported"),
    ({"linear_key_head_dim": None}, r"does not describe a model \(ValueError: linear_key_head_dim is None\)"),
]


def test_fields_that_cannot_be_honoured_are_refused_by_name(tmp_path: Path) -> None:
    for changes, message in REFUSED_FIELDS:
        with pytest.raises(UserError, match=message):
            run_config.read(written(read(NEXT), tmp_path, lambda model, changes=changes: {**model, **changes}))
