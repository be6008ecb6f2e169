"""Folders of GLM-4.5, DeepSeek and their like: what their config.json and run_config.yaml say, what is refused, and the layers that are left out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from nemotron_dpo.checkpoint import run_config
from nemotron_dpo.checkpoint.families import config
from nemotron_dpo.checkpoint.families.deepseek import scaling_of_latent
from nemotron_dpo.errors import UserError
from nemotron_dpo.policy.sublayers.attention import Attention
from nemotron_dpo.policy.sublayers.rotary import Dynamic, LinearScaling, Llama3Scaling, Rotary, Yarn
from support import families, programs

# as in the repositories that publishers have, the fields that count
AIR = {
    "model_type": "glm4_moe",
    "attention_bias": True,
    "eos_token_id": [151329, 151336, 151338],
    "first_k_dense_replace": 1,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 10944,
    "max_position_embeddings": 131072,
    "moe_intermediate_size": 1408,
    "n_group": 1,
    "n_routed_experts": 128,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 96,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 46,
    "num_key_value_heads": 8,
    "num_nextn_predict_layers": 1,
    "pad_token_id": 151329,
    "partial_rotary_factor": 0.5,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "routed_scaling_factor": 1.0,
    "tie_word_embeddings": False,
    "topk_group": 1,
    "torch_dtype": "bfloat16",
    "use_qk_norm": False,
    "vocab_size": 151552,
}
MOONLIGHT = {
    "model_type": "deepseek_v3",
    "attention_bias": False,
    "aux_loss_alpha": 0.001,
    "bos_token_id": 163584,
    "eos_token_id": 163585,
    "ep_size": 1,
    "first_k_dense_replace": 1,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 11264,
    "kv_lora_rank": 512,
    "max_position_embeddings": 8192,
    "moe_intermediate_size": 1408,
    "moe_layer_freq": 1,
    "n_group": 1,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "norm_topk_prob": True,
    "num_attention_heads": 16,
    "num_experts_per_tok": 6,
    "num_hidden_layers": 27,
    "num_key_value_heads": 16,
    "num_nextn_predict_layers": 0,
    "pretraining_tp": 1,
    "q_lora_rank": None,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "rms_norm_eps": 1e-05,
    "rope_theta": 50000.0,
    "routed_scaling_factor": 2.446,
    "scoring_func": "sigmoid",
    "seq_aux": True,
    "tie_word_embeddings": False,
    "topk_group": 1,
    "topk_method": "noaux_tc",
    "torch_dtype": "bfloat16",
    "v_head_dim": 128,
    "vocab_size": 163840,
}
FLASH = {  # its other settings are transformers' defaults
    "model_type": "glm4_moe_lite",
    "mlp_layer_types": ["dense"] + ["sparse"] * 46,
    "num_nextn_predict_layers": 1,
    "partial_rotary_factor": 1.0,
    "rope_theta": 1000000,
    "topk_method": "noaux_tc",
    "torch_dtype": "bfloat16",
}
PUBLISHED: dict[str, dict[str, Any]] = {"GLM-4.5-Air": AIR, "Moonlight-16B-A3B": MOONLIGHT, "GLM-4.7-Flash": FLASH}


def read(said: dict[str, Any]) -> Any:
    return config.from_config(said, Path("config.json"))


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_has_the_parameters_of_transformers_and_comes_back_from_either_file(
    name: str, tmp_path: Path
) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    architecture = read(PUBLISHED[name])
    with torch.device("meta"):
        theirs = AutoModelForCausalLM.from_config(AutoConfig.for_model(**PUBLISHED[name]))
    assert architecture.num_parameters() == sum(parameter.numel() for parameter in theirs.parameters())
    assert read(config.write(architecture)) == architecture
    run_config.write(architecture, tmp_path)
    assert run_config.read(tmp_path) == architecture


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_bridge_writes_is_read(name: str, tmp_path: Path) -> None:
    """Without a section of ours, with groups and layers of several tokens that Bridge always names."""
    architecture = read({**PUBLISHED[name], **dict.fromkeys(("eos_token_id", "pad_token_id", "bos_token_id"))})
    run_config.write(architecture, tmp_path)
    model = yaml.safe_load((tmp_path / "run_config.yaml").read_text())["model"]
    router = architecture.routers[0]
    groups = {"moe_router_num_groups": router.num_groups, "moe_router_group_topk": router.picked_groups}
    model |= {**groups, "mtp_num_layers": 1, "moe_router_pre_softmax": False, "moe_shared_expert_overlap": True}
    (tmp_path / "run_config.yaml").write_text(yaml.safe_dump({"model": model}))
    flash_is = {"family": "deepseek_v3"} if name == "GLM-4.7-Flash" else {}  # of which Bridge keeps no sign
    assert run_config.read(tmp_path) == replace(architecture, **flash_is)


def test_what_cannot_be_honoured_is_refused_by_name() -> None:
    for changes, message in (
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported"),
        ({"scoring_func": "softmax"}, "scoring_func 'softmax' is not supported"),
        ({"first_k_dense_replace": 46}, "first_k_dense_replace is 46, of 46 layers"),
        ({"n_shared_experts": 0}, "n_shared_experts is 0"),
        ({"n_group": 3}, "1 of 3 groups of 128 experts are picked"),
        ({"n_group": 32, "topk_group": 1}, "8 experts are picked, and the picked groups have fewer"),
        ({"num_mtp_layers": 2}, "num_nextn_predict_layers is 1 and num_mtp_layers 2"),
        ({"use_qk_norm": 1}, "use_qk_norm is 1"),
        ({"num_key_value_heads": 7}, "96 heads do not share 7 keys evenly"),
    ):
        with pytest.raises(UserError, match=message):
            read({**AIR, **changes})
    for changes, message in (
        ({"attention_bias": True}, "attention_bias True is not supported"),
        ({"scoring_func": "softmax"}, "scoring_func 'softmax' is not supported"),
        ({"moe_layer_freq": 2}, "moe_layer_freq 2 is not supported"),
        ({"rope_interleave": False}, "rope_interleave False is not supported"),
        ({"num_key_value_heads": 4}, "num_key_value_heads is 4 of 16 heads"),
        ({"q_lora_rank": 0}, "q_lora_rank is 0"),
        ({"qk_rope_head_dim": 63}, "qk_rope_head_dim 63 is odd"),
        ({"v_head_dim": None, "kv_lora_rank": 1.5}, "kv_lora_rank is 1.5"),
        (
            {"model_type": "deepseek_v2", "scoring_func": "softmax", "topk_method": "group_limited_greedy"},
            "topk_method 'group_limited_greedy' is not",
        ),
        ({"model_type": "deepseek_v2", "scoring_func": None, "topk_method": None}, "norm_topk_prob True is not supported"),
    ):
        with pytest.raises(UserError, match=message):
            read({**MOONLIGHT, **changes})
    sparse_first = ["sparse", "dense"] + ["sparse"] * 45
    with pytest.raises(UserError, match="is not some dense layers and then sparse ones, 47 in all"):
        read({**FLASH, "mlp_layer_types": sparse_first})


def test_yarn_beside_latent_attention_is_megatrons_in_run_config(tmp_path: Path) -> None:
    """Megatron's rule for its two factors is transformers' where a file names both or neither."""
    plain = read(MOONLIGHT)
    for factor, written in ((0.707, (0.707, 0.707)), (None, (1.0, 0.0))):
        rotary = Rotary(50000.0, scaling=Yarn(40.0, 4096, mscale=factor, mscale_all_dim=factor))
        layers = tuple(replace(layer, mixer=replace(layer.mixer, rotary=rotary)) for layer in plain.layers)
        run_config.write(replace(plain, layers=layers), tmp_path)
        model = yaml.safe_load((tmp_path / "run_config.yaml").read_text())["model"]
        assert (model["rope_type"], model["rotary_scaling_factor"]) == ("yarn", 40.0)
        assert (model["mscale"], model["mscale_all_dim"]) == written
        assert run_config.read(tmp_path) == replace(plain, layers=layers)
    for refused, message in (
        (Yarn(40.0, 4096, mscale=0.707), "YaRN with one of mscale and mscale_all_dim"),
        (Yarn(40.0, 4096, mscale_all_dim=1.0), "YaRN with one of mscale and mscale_all_dim"),
        (Yarn(40.0, 4096, truncate=False), "this rope scaling is not supported beside latent attention"),
        (LinearScaling(2.0), "this rope scaling is not supported beside latent attention"),
    ):
        with pytest.raises(UserError, match=message):
            scaling_of_latent(refused)


def test_scaled_positions_of_heads_come_back_from_run_config(tmp_path: Path) -> None:
    """Those for which Bridge has fields, and those that are stored apart, under a class that it does not know."""
    plain = read(AIR)
    scalings = (Yarn(4.0, 32768), LinearScaling(2.0), Llama3Scaling(8.0), Yarn(4.0, 32768, attention_factor=1.5), Dynamic(2.0))
    for scaling, is_known in zip(scalings, (True, True, True, False, False), strict=True):
        mixers = [replace(cast("Attention", layer.mixer), rotary=Rotary(1e6, 0.5, scaling)) for layer in plain.layers]
        layers = tuple(replace(layer, mixer=mixer) for layer, mixer in zip(plain.layers, mixers, strict=True))
        run_config.write(replace(plain, layers=layers), tmp_path)
        assert run_config.read(tmp_path) == replace(plain, layers=layers)
        model = yaml.safe_load((tmp_path / "run_config.yaml").read_text())["model"]
        assert ("not_in_megatron_bridge" in model["_target_"]) is not is_known


def test_kimi_has_deepseeks_code_under_a_name_of_its_own() -> None:
    assert read({**MOONLIGHT, "model_type": "kimi_k2"}) == read(MOONLIGHT)


def test_layers_of_experts_that_are_not_last_are_refused(tmp_path: Path) -> None:
    run_config.write(read(AIR), tmp_path)
    sections = yaml.safe_load((tmp_path / "run_config.yaml").read_text())
    for said in ([1] * 45 + [0], [0] * 46, [1], 2):
        sections["model"]["moe_layer_freq"] = said
        (tmp_path / "run_config.yaml").write_text(yaml.safe_dump(sections))
        with pytest.raises(UserError, match=r"moe_layer_freq: .* of 46 layers is not supported"):
            run_config.read(tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("megatron")
def test_what_predicts_several_tokens_is_left_out_and_named(tmp_path: Path) -> None:
    """In these files it is a layer behind the last, which config.json counts; where it does not, the layer is one too many."""
    folder = families.write_model(tmp_path / "hf", "glm4_moe")
    programs.check("ckpt-export", folder, "-o", tmp_path / "plain", "--to", "hf")
    tensors = load_file(folder / "model.safetensors")
    ahead = {f"model.layers.2.{name}.weight": torch.ones(32, dtype=torch.bfloat16) for name in ("enorm", "hnorm")}
    save_file({**tensors, **ahead}, folder / "model.safetensors", metadata={"format": "pt"})
    refused = programs.run("ckpt-export", folder, "-o", tmp_path / "without", "--to", "hf")
    assert refused.returncode == 1
    assert b"holds model.layers.2.enorm.weight and 1 more, which a glm4_moe of its config.json does not have" in refused.stderr
    said = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**said, "num_nextn_predict_layers": 1}))
    done = programs.check("ckpt-export", folder, "-o", tmp_path / "without", "--to", "hf")
    line = b"warning: %b: 2 tensors of layers that predict several tokens ahead (model.layers.2.*) are left out"
    assert line % bytes(folder) in done.stderr
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("plain", "without"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) and one[key].dtype == other[key].dtype for key in one)
