"""Every architecture against transformers: logits, weights there and back, and what of a config.json is refused."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from nemotron_dpo.errors import UserError
from nemotron_dpo.policy.rows import pack_row
from nemotron_dpo.sources import resolve
from support import families, small
from support.forged import Payload, flip

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("megatron")]
ALL = sorted(families.FAMILIES)
VARIANTS = [
    ("qwen3_moe", {"norm_topk_prob": False}),
    ("nemotron", {"head_dim": 16, "num_key_value_heads": 4}),
    ("gemma", {"tie_word_embeddings": True}),
    (
        "olmo3",  # as the published ones are: positions of global layers alone are scaled
        {
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 500000.0},
                "full_attention": {
                    "rope_type": "yarn",
                    "rope_theta": 500000.0,
                    "factor": 4.0,
                    "original_max_position_embeddings": 16,
                    "attention_factor": 1.3,
                },
            }
        },
    ),
    (
        "gemma3_text",
        {
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
                "full_attention": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 8.0},
            }
        },
    ),
    (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 32.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            }
        },
    ),
]


def open_model(folder: Path, precision: str | None = None, **settings: Any):
    from nemotron_dpo.checkpoint.policy import open_policy

    return open_policy(resolve(folder), precision, **settings)


def exported(source: Path, target: Path, form: str) -> Path:
    from nemotron_dpo.checkpoint.export import export

    export(resolve(source), target, form, None)
    return target


@pytest.mark.parametrize(("model_type", "changes"), [*((kind, {}) for kind in ALL), *VARIANTS])
def test_logits_equal_transformers(model_type: str, changes: dict[str, Any], tmp_path: Path) -> None:
    folder = families.write_model(tmp_path / "hf", model_type, **changes)
    pairs = small.random_pairs(1, seed=3, longest=30)
    row = pack_row(pairs.prompts, pairs.chosen, pairs.rejected)
    with torch.inference_mode():
        ours = open_model(folder, "float32").all_logits(row)[: row.segments[0].rejected]
    ids = torch.from_numpy(np.concatenate([pairs.prompts[0], pairs.chosen[0]]).astype(np.int64))
    theirs = families.logits(folder, ids)
    assert theirs.std() > 0.1  # else anything would be close
    assert (ours - theirs).abs().max() <= 1e-4


def assert_same_weights(before: Path, after: Path) -> None:
    one, other = load_file(before / "model.safetensors"), load_file(after / "model.safetensors")
    assert one.keys() == other.keys()
    for key, tensor in one.items():
        assert tensor.dtype == other[key].dtype, key
        assert torch.equal(tensor, other[key]), key


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("model_type", ALL)
def test_there_and_back_is_bit_equal_and_transformers_agrees(model_type: str, tied: bool, tmp_path: Path) -> None:
    folder = families.write_model(tmp_path / "hf", model_type, tied=tied, dtype=torch.bfloat16)
    back = exported(exported(folder, tmp_path / "megatron", "megatron"), tmp_path / "back", "hf")
    assert_same_weights(folder, back)
    ids = torch.arange(3, 43)
    assert torch.equal(families.logits(folder, ids), families.logits(back, ids))


@pytest.mark.parametrize("model_type", ["llama", "mixtral"])
def test_float16_stays_float16(model_type: str, tmp_path: Path) -> None:
    """As Llama 2 is published; computing is done in float32."""
    folder = families.write_model(tmp_path / "hf", model_type, dtype=torch.float16)
    back = exported(exported(folder, tmp_path / "megatron", "megatron"), tmp_path / "back", "hf")
    assert_same_weights(folder, back)
    assert json.loads((back / "config.json").read_text())["dtype"] == "float16"
    assert open_model(tmp_path / "megatron").architecture.dtype == "float32"


@pytest.mark.parametrize("model_type", ALL)
def test_config_there_and_back_says_the_same(model_type: str, tmp_path: Path) -> None:
    from transformers import AutoConfig

    folder = families.write_model(tmp_path / "hf", model_type, dtype=torch.bfloat16)
    back = exported(folder, tmp_path / "back", "hf")
    before, after = (AutoConfig.from_pretrained(path).to_dict() for path in (folder, back))
    unread = {"_name_or_path", "initializer_range", "transformers_version", "max_window_layers"}
    if model_type == "qwen3_moe":
        unread.add("intermediate_size")  # that of dense layers, of which there are none
    if model_type == "mixtral":
        unread.add("head_dim")  # null there, its value here
    assert {key for key in before.keys() - unread if before[key] != after.get(key)} == set()
    written = json.loads((back / "config.json").read_text())
    assert written["torch_dtype"] == written["dtype"] == "bfloat16"
    rope = written["rope_parameters"]
    assert written["rope_theta"] == rope.get("full_attention", rope)["rope_theta"]


def test_a_mixture_keeps_the_coefficient_of_its_auxiliary_loss(tmp_path: Path) -> None:
    for model_type in ("mixtral", "qwen3_moe"):
        folder = families.write_model(tmp_path / model_type, model_type, router_aux_loss_coef=0.02)
        back = exported(
            exported(folder, tmp_path / f"{model_type}-megatron", "megatron"), tmp_path / f"{model_type}-back", "hf"
        )
        assert json.loads((back / "config.json").read_text())["router_aux_loss_coef"] == 0.02


def test_keys_on_disk_are_those_of_transformer_engine(tmp_path: Path) -> None:
    """Dense layers fuse both norms into the projections behind them; a layer of experts keeps the second one apart."""
    from torch.distributed.checkpoint.filesystem import FileSystemReader

    def keys(model_type: str) -> set[str]:
        root = exported(families.write_model(tmp_path / f"{model_type}-hf", model_type), tmp_path / model_type, "megatron")
        names = FileSystemReader(root / "iter_0000000").read_metadata().state_dict_metadata
        return {
            name.removeprefix("decoder.layers.")
            for name in names
            if name.startswith("decoder.layers.") and "_extra" not in name
        }

    attention = {
        "linear_qkv.weight",
        "linear_qkv.layer_norm_weight",
        "linear_proj.weight",
        "q_layernorm.weight",
        "k_layernorm.weight",
    }
    attention = {f"self_attention.{name}" for name in attention}
    dense = {"mlp.linear_fc1.weight", "mlp.linear_fc1.layer_norm_weight", "mlp.linear_fc2.weight"}
    assert keys("qwen3") == attention | dense
    # Megatron-Bridge's TERowParallelLinearLayerNorm has the norm of what a sublayer adds; windows and positions are in no key
    behind = {f"{linear}.post_layernorm.weight" for linear in ("self_attention.linear_proj", "mlp.linear_fc2")}
    assert keys("gemma3_text") == attention | dense | behind
    before = {"self_attention.linear_qkv.layer_norm_weight", "mlp.linear_fc1.layer_norm_weight"}
    assert keys("olmo2") == (attention | dense | behind) - before
    experts = {"mlp.experts.experts.linear_fc1.weight", "mlp.experts.experts.linear_fc2.weight"}
    assert keys("qwen3_moe") == attention | experts | {"pre_mlp_layernorm.weight", "mlp.router.weight"}


def test_shards_are_written_and_read(tmp_path: Path) -> None:
    from nemotron_dpo.checkpoint import hf

    folder = families.write_model(tmp_path / "hf", "mixtral", dtype=torch.bfloat16)
    model = open_model(folder)
    sharded = tmp_path / "sharded"
    sharded.mkdir()
    hf.save(model, sharded, torch.bfloat16, None, shard_bytes=20_000)
    files = sorted(path.name for path in sharded.glob("*.safetensors"))
    assert files == [f"model-{number:05d}-of-{len(files):05d}.safetensors" for number in range(1, len(files) + 1)]
    assert len(files) > 2
    parts = [load_file(sharded / name) for name in files]
    sizes = [sum(tensor.nbytes for tensor in part.values()) for part in parts]
    assert max(sizes) <= 20_000
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(sizes)
    assert index["weight_map"] == {key: name for name, part in zip(files, parts, strict=True) for key in part}
    assert_same_weights(folder, exported(sharded, tmp_path / "whole", "hf"))
    ids = torch.arange(3, 43)
    assert torch.equal(families.logits(folder, ids), families.logits(sharded, ids))


def test_what_a_folder_carries_besides_weights_survives(tmp_path: Path) -> None:
    from transformers import AutoConfig, GenerationConfig

    folder = families.write_model(tmp_path / "hf", "qwen2", pad_token_id=7, bos_token_id=4, eos_token_id=[5, 6])
    GenerationConfig(temperature=0.3, do_sample=True, eos_token_id=[5, 6]).save_pretrained(folder)
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 128}')
    (folder / "additional_chat_templates").mkdir()
    others = ("added_tokens.json", "chat_template.json", "chat_template.jinja", "additional_chat_templates/tool_use.jinja")
    for name in others:
        (folder / name).write_text("{}")
    back = exported(exported(folder, tmp_path / "megatron", "megatron"), tmp_path / "back", "hf")
    config = AutoConfig.from_pretrained(back)
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (7, 4, [5, 6])
    for name in ("generation_config.json", "tokenizer_config.json", *others):
        assert (back / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.parametrize(
    ("model_type", "changes", "message"),
    [
        ("jamba", {}, "model_type 'jamba' is not supported: of hybrids Nemotron-H alone is"),
        ("gemma2", {"final_logit_softcapping": 0}, r"does not describe a model \(final_logit_softcapping is 0\)"),
        ("gemma2", {"query_pre_attn_scalar": 0.5}, r"does not describe a model \(query_pre_attn_scalar is 0.5\)"),
        ("gemma2", {"layer_types": ["chunked_attention"] * 3}, "layers of chunked_attention are not supported"),
        ("gemma3_text", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping 50.0 is not supported"),
        ("gemma3_text", {"layer_types": ["full_attention"]}, "layer_types names 1 layers, and num_hidden_layers 4"),
        ("gemma3_text", {"sliding_window": None}, r"does not describe a model \(sliding_window is None\)"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention True is not supported"),
        (
            "gemma3_text",
            {"rope_parameters": {"rope_theta": 1e4}},
            "rope_parameters has rope_theta: a section of its own is for",
        ),
        ("nosuch", {}, "model_type 'nosuch' is not supported: llama, mistral, ministral3, .* are"),
        ("llama", {"attention_bias": True}, "attention_bias True is not supported"),
        ("llama", {"mlp_bias": True}, "mlp_bias True is not supported"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported: llama models with 'silu' are"),
        ("llama", {"quantization_config": {"quant_method": "fp8"}}, "quantization_config of any kind is not supported"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 is not supported"),
        ("llama", {"dtype": "float8_e4m3fn"}, "dtype 'float8_e4m3fn' is not supported"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "axial"}},
            "rope scaling 'axial' is not supported: default, linear, .* are",
        ),
        ("llama", {"rope_parameters": {"rope_type": "yarn", "factor": "4"}}, r"does not describe a model \(factor is '4'\)"),
        ("phi3", {"rope_scaling": {"type": "su"}, "rope_parameters": None}, "lacks 'short_factor'"),
        (
            "phi3",
            {"rope_parameters": {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0, 2.0]}},
            r"does not describe a model \(longrope has lists of 1 and 2 factors, and a head has 4 frequencies\)",
        ),
        (
            "llama",
            {"rope_parameters": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 2.0}},
            "lacks 'high_freq_factor'",
        ),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 0}, r"does not describe a model \(sliding_window is 0\)"),
        ("qwen2", {"layer_types": ["full_attention"]}, "layer_types names 1 layers, and num_hidden_layers 2"),
        (
            "qwen3",
            {"layer_types": ["full_attention", "sliding_attention"]},
            "names layers of sliding_attention without a window",
        ),
        ("gemma", {"use_bidirectional_attention": True}, "use_bidirectional_attention True is not supported"),
        ("qwen3_moe", {"decoder_sparse_step": 2}, "decoder_sparse_step 2 is not supported"),
        ("qwen3_moe", {"mlp_only_layers": [0]}, r"mlp_only_layers \[0\] is not supported"),
        ("llama", {"num_hidden_layers": "two"}, r"does not describe a model \(num_hidden_layers is 'two'\)"),
        ("llama", {"num_attention_heads": 0}, "does not describe a model"),
        ("llama", {"intermediate_size": True}, r"does not describe a model \(intermediate_size is True\)"),
        ("llama", {"rms_norm_eps": "1e-5"}, r"does not describe a model \(rms_norm_eps is '1e-5'\)"),
        ("mistral", {"sliding_window": "4096"}, r"does not describe a model \(sliding_window is '4096'\)"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(model_type: str, changes: dict, message: str, tmp_path: Path) -> None:
    from nemotron_dpo.checkpoint.families import config

    known = families.write_model(tmp_path, model_type if model_type in families.FAMILIES else "llama")
    written = json.loads((known / "config.json").read_text())
    (known / "config.json").write_text(json.dumps({**written, "model_type": model_type, **changes}))
    with pytest.raises(UserError, match=message) as caught:
        config.read(known)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("model_type", "changes"), [row for row in VARIANTS if row[0] in ("olmo3", "gemma3_text")])
def test_scaled_positions_of_some_layers_survive(model_type: str, changes: dict[str, Any], tmp_path: Path) -> None:
    """In both directions, by way of Megatron."""
    from transformers import AutoConfig

    folder = families.write_model(tmp_path / "hf", model_type, **changes)
    back = exported(exported(folder, tmp_path / "megatron", "megatron"), tmp_path / "back", "hf")
    before, after = (AutoConfig.from_pretrained(path).rope_parameters for path in (folder, back))
    for kind, section in before.items():  # defaults are written too
        assert section.items() <= after[kind].items()


@pytest.mark.parametrize("model_type", ALL)
def test_a_config_of_transformers_4_reads_the_same(model_type: str, tmp_path: Path) -> None:
    from nemotron_dpo.checkpoint.families import config

    folder = families.write_model(tmp_path, model_type)
    new = config.read(folder)
    written = json.loads((folder / "config.json").read_text())
    rope = written.pop("rope_parameters")
    if "full_attention" in rope:
        written["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = rope["full_attention"]
    scaling = dict(rope) if rope["rope_type"] != "default" else None
    rope.pop("rope_type")
    old = {**written, **rope, "rope_scaling": scaling, "torch_dtype": written.pop("dtype")}
    if "num_local_experts" in old and model_type == "qwen3_moe":
        old["num_experts"] = old.pop("num_local_experts")
    (folder / "config.json").write_text(json.dumps(old))
    assert config.read(folder) == new


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    """Biases that a config.json does not speak of would otherwise be lost without a word."""
    folder = families.write_model(tmp_path / "hf", "qwen2")
    written = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**written, "model_type": "llama"}))
    with pytest.raises(UserError, match=r"holds model.layers.0.self_attn.k_proj.bias and 5 more, which a llama"):
        open_model(folder)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_quantized_weights_without_a_word_in_the_config_are_refused(dtype: torch.dtype, tmp_path: Path) -> None:
    """Read as they stand they would be another model's."""
    folder = families.write_model(tmp_path / "hf", "llama")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"] = tensors["model.layers.1.mlp.up_proj.weight"].to(dtype)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"model.safetensors: holds model.layers.1.mlp.up_proj.weight as (int8|float8_e4m3fn)"):
        open_model(folder)


@pytest.mark.parametrize("factor", [1, 2])
def test_an_output_layer_stored_beside_its_embedding_must_be_equal(factor: int, tmp_path: Path) -> None:
    """Where it differs, transformers 4 takes the one and transformers 5 the other."""
    folder = families.write_model(tmp_path / "hf", "llama", tied=True)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = factor * tensors["model.embed_tokens.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    if factor != 1:
        with pytest.raises(UserError, match=r"holds an lm_head.weight that differs from the embedding .*: set tie_word_embed"):
            open_model(folder)
        return
    back = exported(folder, tmp_path / "back", "hf")
    assert torch.equal(families.logits(folder, torch.arange(3, 43)), families.logits(back, torch.arange(3, 43)))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.safetensors.index.json", b"{}", "is damaged"),
        ("model.safetensors.index.json", b'{"weight_map": {}}', "is damaged"),
        ("model.safetensors.index.json", b'{"weight_map": {"a": "../a"}}', "is damaged"),
        ("model.safetensors", b"short", "cannot be read"),
        (
            "pytorch_model.bin",
            pickle.dumps(Payload(Path("ran"))),
            "load its .bin files in transformers and save_pretrained them",
        ),
    ],
)
def test_files_that_cannot_be_read_are_one_line(
    name: str, content: bytes, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = families.write_model(tmp_path / "hf", "llama")
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        open_model(folder)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


@pytest.fixture
def second_shard(tmp_path: Path) -> Path:
    """The second of several files of a small model."""
    from nemotron_dpo.checkpoint import hf

    model = open_model(families.write_model(tmp_path / "hf", "llama"))
    (tmp_path / "sharded").mkdir()
    hf.save(model, tmp_path / "sharded", torch.float32, None, shard_bytes=20_000)
    return sorted((tmp_path / "sharded").glob("*.safetensors"))[1]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda shard: shard.unlink(), r"model-00002-of-\d+.safetensors: is missing: is the download complete"),
        (
            lambda shard: shard.write_bytes(shard.read_bytes()[:-100]),
            r"model-00002-of-\d+.safetensors: cannot be read \(.*not fully",
        ),
        (lambda shard: shard.write_bytes(b""), r"model-00002-of-\d+.safetensors: cannot be read \(.*too small"),
        (lambda shard: flip(shard, 6), r"model-00002-of-\d+.safetensors: cannot be read \(.*too large"),
        (lambda shard: flip(shard, 80), r"model-00002-of-\d+.safetensors: cannot be read \(.*header"),
    ],
)
def test_a_damaged_shard_is_one_line(damage: Callable[[Path], object], message: str, second_shard: Path) -> None:
    damage(second_shard)
    with pytest.raises(UserError, match=message) as caught:
        open_model(second_shard.parent)
    assert "\n" not in str(caught.value)
