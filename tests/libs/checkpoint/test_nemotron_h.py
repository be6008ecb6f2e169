"""Hybrids of the family nemotron_h: every form of their config.json and run_config.yaml, and what of them is refused."""

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
from nemotron_dpo.hf_folder import honoured_config
from nemotron_dpo.policy.architecture import Architecture, Layer
from nemotron_dpo.policy.sublayers.attention import Attention
from nemotron_dpo.policy.sublayers.dense import Dense
from nemotron_dpo.policy.sublayers.experts import Experts, Router
from nemotron_dpo.policy.sublayers.mamba import Mamba
from support.hybrid_folders import NANO_3

# as in the repositories that NVIDIA publishes, in the order of their fields that count
NANO = {
    "architectures": ["NemotronHForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "auto_map": {"AutoConfig": "configuration_nemotron_h.NemotronHConfig"},
    "bos_token_id": 1,
    "chunk_size": 128,
    "conv_kernel": 4,
    "eos_token_id": 2,
    "expand": 2,
    "head_dim": 128,
    "hidden_dropout": 0.0,
    "hidden_size": 2688,
    "hybrid_override_pattern": NANO_3,
    "initializer_range": 0.02,
    "intermediate_size": 1856,
    "layer_norm_epsilon": 1e-05,
    "mamba_head_dim": 64,
    "mamba_hidden_act": "silu",
    "mamba_num_heads": 64,
    "mamba_proj_bias": False,
    "max_position_embeddings": 262144,
    "mlp_bias": False,
    "mlp_hidden_act": "relu2",
    "model_type": "nemotron_h",
    "moe_intermediate_size": 1856,
    "moe_shared_expert_intermediate_size": 3712,
    "n_group": 1,
    "n_groups": 8,
    "n_routed_experts": 128,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 32,
    "num_experts_per_tok": 6,
    "num_hidden_layers": 52,
    "num_key_value_heads": 2,
    "num_logits_to_keep": 1,
    "pad_token_id": 0,
    "partial_rotary_factor": 1.0,
    "rescale_prenorm_residual": True,
    "residual_in_fp32": False,
    "rope_theta": 10000,
    "routed_scaling_factor": 2.5,
    "sliding_window": None,
    "ssm_state_size": 128,
    "tie_word_embeddings": False,
    "time_step_floor": 0.0001,
    "time_step_limit": [0.0, float("inf")],
    "time_step_max": 0.1,
    "time_step_min": 0.001,
    "topk_group": 1,
    "torch_dtype": "bfloat16",
    "use_bias": False,
    "use_cache": True,
    "use_conv_bias": True,
    "use_mamba_kernels": True,
    "vocab_size": 131072,
}
NANO_V2 = {  # the dense 9B, whose config.json has nothing of experts
    **{
        key: value
        for key, value in NANO.items()
        if "expert" not in key and not key.startswith(("n_", "topk", "routed", "moe_", "norm_topk"))
    },
    "n_groups": 8,
    "hidden_size": 4480,
    "hybrid_override_pattern": "M-M-M-MM-M-M-M*-M-M-M*-M-M-M-M*-M-M-M-M*-M-MM-M-M-M-M-M-",
    "intermediate_size": 15680,
    "mamba_head_dim": 80,
    "mamba_num_heads": 128,
    "num_attention_heads": 40,
    "num_hidden_layers": 56,
    "num_key_value_heads": 8,
}
_LETTERS = {"M": "linear_attention", "E": "moe", "*": "full_attention", "-": "mlp"}
_EARLIER = {"linear_attention": "mamba", "full_attention": "attention", "moe": "moe", "mlp": "mlp"}


def read(settings: dict[str, Any]) -> Architecture:
    return config.from_config(settings, Path("config.json"))


def test_nemotron_3_nano_is_what_its_card_says() -> None:
    architecture = read(NANO)
    mamba, experts, attention = Layer(Mamba(64, 64, 128, 8), None), architecture.layers[1], architecture.layers[5]
    assert [{mamba: "M", experts: "E", attention: "*"}[layer] for layer in architecture.layers] == list(NANO_3)
    assert attention == Layer(Attention(32, 2, 128, rotary=None), None)
    router = Router(128, 6, score="sigmoid", expert_bias=True, scaling=2.5)
    assert experts == Layer(None, Experts(router, Dense(1856, "relu2", gated=False), Dense(3712, "relu2", gated=False)))
    assert round(architecture.num_parameters() / 1e9, 2) == 31.58
    assert round(architecture.num_parameters(met=True) / 1e9, 1) == 3.6  # its card: 3.5B active with one embedding


def _transformers_5(settings: dict[str, Any]) -> dict[str, Any]:
    """No count, no pattern but a list, an infinity that JSON has, and experts even where no layer has any."""
    listed = [_LETTERS[letter] for letter in settings["hybrid_override_pattern"]]
    left = {key: value for key, value in settings.items() if key not in ("hybrid_override_pattern", "num_hidden_layers")}
    more = {"mtp_layers_block_type": ["full_attention", "moe"], "moe_latent_size": None, "num_nextn_predict_layers": 0}
    infinite = [0.0, {"__float__": "Infinity"}]
    return {
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        **left,
        **more,
        "layers_block_type": listed,
        "time_step_limit": infinite,
    }


def _earlier_transformers(settings: dict[str, Any]) -> dict[str, Any]:
    new = _transformers_5(settings)
    return {**new, "layers_block_type": [_EARLIER[name] for name in new["layers_block_type"]]}


def _first_files(settings: dict[str, Any]) -> dict[str, Any]:
    """Those of Nemotron-H 8B: another name for the heads' size, and a second one for the norms' epsilon."""
    left = {key: value for key, value in settings.items() if key != "head_dim"}
    return {**left, "attention_head_dim": settings["head_dim"], "rms_norm_eps": settings["layer_norm_epsilon"]}


def _of_bridge(settings: dict[str, Any]) -> dict[str, Any]:
    """Megatron-Bridge wrote marks of pipeline stages, and layers that predict several tokens, into the pattern."""
    pattern = settings["hybrid_override_pattern"]
    return {**settings, "hybrid_override_pattern": f"{pattern[:5]}|{pattern[5:]}/*E/*E", "num_nextn_predict_layers": 2}


def _as_mamba_2(settings: dict[str, Any]) -> dict[str, Any]:
    """Under the names that transformers still takes."""
    names = {"n_groups": "mamba_n_groups", "conv_kernel": "mamba_d_conv", "chunk_size": "mamba_chunk_size"}
    return {names.get(key, key): value for key, value in settings.items()}


FORMS = (_transformers_5, _earlier_transformers, _first_files, _of_bridge, _as_mamba_2)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_config_says_the_same(form: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    for settings in (NANO, NANO_V2):
        assert read(form(settings)) == read(settings)


def test_what_is_written_is_read_here_and_by_transformers() -> None:
    from transformers import AutoConfig

    for settings in (NANO, {**NANO_V2, "chunk_size": 256, "dtype": "float32"}):
        written = json.loads(json.dumps(config.write(read(settings))))
        assert read(written) == read(settings)
        assert written["num_hidden_layers"] == len(written["hybrid_override_pattern"])
        theirs = AutoConfig.for_model(**written)
        unread = {"auto_map", "attention_dropout", "partial_rotary_factor", "rope_theta", "torch_dtype", "architectures"}
        if "-" not in written["hybrid_override_pattern"]:
            unread.add("intermediate_size")  # that of dense layers
        for key in settings.keys() - unread - {"time_step_limit", "dtype"}:
            assert getattr(theirs, key) == settings[key], key


def test_a_file_with_an_infinity_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(NANO))
    assert "Infinity" in (tmp_path / "config.json").read_text()
    assert config.read(tmp_path) == read(NANO)
    before = honoured_config(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**NANO, "torch_dtype": "float32"}))
    assert honoured_config(tmp_path) == before  # the weights are the same
    (tmp_path / "config.json").write_text(json.dumps({**NANO, "routed_scaling_factor": 1.0}))
    assert honoured_config(tmp_path) != before
    (tmp_path / "config.json").write_text('{"time_step_limit": [0, Infinity], }')
    with pytest.raises(UserError, match=r"config.json: is not JSON"):
        config.read(tmp_path)


REFUSED = [
    ({"tie_word_embeddings": True}, "tie_word_embeddings True is not supported: nemotron_h models with False are"),
    ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon 1e-06 is not supported: nemotron_h models with 1e-05 are"),
    ({"layer_norm_epsilon": None, "rms_norm_eps": 1e-6}, "layer_norm_epsilon 1e-06 is not supported"),
    ({"moe_latent_size": 1024}, "moe_latent_size 1024 is not supported: nemotron_h models without are"),
    ({"n_shared_experts": 2}, "n_shared_experts 2 is not supported"),
    ({"residual_in_fp32": True}, "residual_in_fp32 True is not supported"),
    ({"use_bias": True}, "use_bias True is not supported"),
    ({"attention_bias": True}, "attention_bias True is not supported"),
    ({"mlp_hidden_act": "silu"}, "mlp_hidden_act 'silu' is not supported: nemotron_h models with 'relu2' are"),
    ({"use_conv_bias": False}, "use_conv_bias False is not supported"),
    ({"mamba_conv_bias": False}, "use_conv_bias is True and mamba_conv_bias False: leave the right one"),
    ({"sliding_window": 4096}, "sliding_window 4096 is not supported"),
    ({"time_step_limit": [0.001, 0.1]}, r"time_step_limit \[0.001, 0.1\] is not supported: \[0.0, Infinity\] is"),
    ({"hybrid_override_pattern": "MEX"}, "layers of kind 'X' are not supported: M, \\*, - and E are"),
    ({"num_hidden_layers": 51}, "names 52 layers, and num_hidden_layers 51: leave the right ones"),
    ({"layers_block_type": ["mamba"] * 52}, "names 52 layers, and others in hybrid_override_pattern"),
    ({"layers_block_type": ["mamba", "hyena"]}, "layers of hyena are not supported"),
    ({"attention_head_dim": 64}, "head_dim is 128 and attention_head_dim 64: leave the right one"),
    ({"hybrid_override_pattern": None}, "lacks 'hybrid_override_pattern'"),
    ({"hybrid_override_pattern": "/M"}, r"does not describe a model \(its pattern names no layer\)"),
    ({"mamba_num_heads": 12}, r"does not describe a model \(mamba_num_heads 12 is no multiple of n_groups 8\)"),
    ({"ssm_state_size": "128"}, r"does not describe a model \(ssm_state_size is '128'\)"),
    ({"num_experts_per_tok": 129}, r"does not describe a model \(129 of 128 experts are picked\)"),
    ({"quantization_config": {"quant_method": "modelopt"}}, "quantization_config of any kind is not supported"),
]


def test_what_cannot_be_honoured_is_refused_by_name() -> None:
    for changes, message in REFUSED:
        with pytest.raises(UserError, match=message) as caught:
            read({**NANO, **changes})
        assert str(caught.value).startswith("config.json: "), changes
        assert "\n" not in str(caught.value)


def test_routers_that_megatron_would_run_otherwise_are_refused_where_they_are_built() -> None:
    for changes, message in (
        ({"n_group": 4, "topk_group": 2}, "a router that picks 6 experts of 2 of 4 groups is not supported"),
        ({"norm_topk_prob": False}, "a router of sigmoids that does not renormalize is not supported"),
        ({"num_experts_per_tok": 1}, "a router that picks one expert and renormalizes is not supported"),
    ):
        experts = read({**NANO, **changes}).layers[1].feed_forward
        assert experts is not None
        with pytest.raises(UserError, match=message):
            experts.config()


def test_what_is_said_of_kinds_that_do_not_occur_does_not_count() -> None:
    assert read({**NANO_V2, "n_group": 4, "norm_topk_prob": False}) == read(NANO_V2)


def written(architecture: Architecture, folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]] = dict) -> Path:
    """The `model` section alone, as Bridge writes it: without a section of ours."""
    run_config.write(architecture, folder)
    sections = yaml.safe_load((folder / "run_config.yaml").read_text())
    (folder / "run_config.yaml").write_text(yaml.safe_dump({"model": change(sections["model"])}))
    return folder


@pytest.mark.parametrize("settings", [NANO, {**NANO_V2, "chunk_size": 256}])
def test_run_config_there_and_back(settings: dict[str, Any], tmp_path: Path) -> None:
    architecture = replace(read(settings), states_in_float32=settings is NANO)
    run_config.write(architecture, tmp_path)
    assert run_config.read(tmp_path) == architecture
    chunks = {layer.mixer.chunk_size for layer in run_config.read(tmp_path).layers if isinstance(layer.mixer, Mamba)}
    assert chunks == {settings["chunk_size"]}  # which no comparison sees


def _newest(model: dict[str, Any]) -> dict[str, Any]:
    pattern = model.pop("hybrid_override_pattern")
    target = "megatron.bridge.models.hybrid.hybrid_provider.HybridModelProvider"
    return {**model, "_target_": target, "hybrid_layer_pattern": f"{pattern[:6]}|{pattern[6:]}/*E", "mtp_num_layers": 1}


def _nested(model: dict[str, Any]) -> dict[str, Any]:
    """HybridModelConfig keeps what is the transformer's apart."""
    own = ("_target_", "hybrid_layer_pattern", "seq_length", "vocab_size", "position_embedding_type")
    model = _newest(model) | {"_target_": "megatron.bridge.models.hybrid.hybrid_builder.HybridModelConfig"}
    return {**{key: model[key] for key in own}, "transformer": {key: model[key] for key in model.keys() - set(own)}}


def _dense_of_bridge(model: dict[str, Any]) -> dict[str, Any]:
    """transformers 5 gives dense models experts, and Bridge a router to them."""
    router = {"num_moe_experts": 8, "moe_router_topk": 2, "moe_router_score_function": "sigmoid"}
    return {**model, **router, "moe_router_enable_expert_bias": True, "moe_shared_expert_intermediate_size": 7688}


def test_all_of_bridges_spellings_are_read(tmp_path: Path) -> None:
    without = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    for settings, forms in ((NANO, (_newest, _nested)), (NANO_V2, (_newest, _nested, _dense_of_bridge))):
        for form in forms:
            expected = replace(read(settings), **without)  # which Bridge does not record
            assert run_config.read(written(read(settings), tmp_path, form)) == expected, form


REFUSED_FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"moe_latent_size": 1024}, "moe_latent_size: 1024 is not supported: None is"),
    ({"position_embedding_type": "rope"}, "position_embedding_type: 'rope' is not supported: 'none' is"),
    ({"hybrid_override_pattern": "MG"}, "layers of kind 'G' are not supported"),
    ({"hybrid_override_pattern": None}, "a hybrid without a pattern of layers is not supported"),
    ({"num_layers": 51}, "the pattern names 52 layers, and num_layers is 51"),
    ({"add_bias_linear": True}, "add_bias_linear: True is not supported"),
    ({"layernorm_epsilon": 1e-6}, "layernorm_epsilon: 1e-06 is not supported"),
    ({"share_embeddings_and_output_weights": True}, "share_embeddings_and_output_weights: True is not supported"),
    ({"moe_router_score_function": "softmax"}, "a hybrid's router without sigmoids or without an expert bias"),
    ({"moe_shared_expert_intermediate_size": None}, "a hybrid's mixture without a shared expert is not supported"),
    ({"activation_func": {"_target_": "torch.nn.functional.silu"}}, "another activation than squared ReLU"),
    ({"fp32_residual_connection": True}, "fp32_residual_connection: True is not supported"),
    ({"vocab_size": None}, "does not describe a model"),
    ({"mamba_num_heads": 12}, "does not describe a model"),
]


def test_provider_fields_that_are_not_supported_are_named(tmp_path: Path) -> None:
    for changes, message in REFUSED_FIELDS:
        written(read(NANO), tmp_path, lambda model, changes=changes: {**model, **changes})
        with pytest.raises(UserError, match=message) as caught:
            run_config.read(tmp_path)
        assert str(caught.value).startswith(f"{tmp_path / 'run_config.yaml'}: "), changes
