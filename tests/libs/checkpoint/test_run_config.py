"""run_config.yaml: what is written is read back, what Bridge writes is understood, nothing named in it is run."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from nemotron_dpo.checkpoint import run_config
from nemotron_dpo.checkpoint.families import config
from nemotron_dpo.checkpoint.provider import beside_provider
from nemotron_dpo.errors import UserError
from nemotron_dpo.policy.sublayers.attention import Attention
from nemotron_dpo.policy.sublayers.dense import Dense
from nemotron_dpo.policy.sublayers.experts import Router
from nemotron_dpo.policy.sublayers.rotary import Dynamic, LinearScaling, Llama3Scaling, LongRope, Rotary, Scaling, Yarn
from nemotron_dpo.policy.uniform import UniformDecoder, flat

LLAMA = UniformDecoder(
    num_layers=2,
    hidden_size=64,
    ffn_hidden_size=96,
    num_attention_heads=4,
    num_query_groups=2,
    kv_channels=32,
    vocab_size=320,
    max_position_embeddings=128,
    norm_epsilon=1e-6,
    rotary_base=500000.0,
    tied_embeddings=False,
    dtype="bfloat16",
    bos_token_id=1,
    eos_token_id=[2, 3],
)
DECODERS = {
    "llama": LLAMA,
    "llama3.1": replace(LLAMA, rope_scaling=Llama3Scaling(8.0), dtype="float32"),
    "llama3 of other numbers": replace(LLAMA, rope_scaling=Llama3Scaling(8.0, 2.0, 5.0, 4096)),
    "linear": replace(LLAMA, rope_scaling=LinearScaling(4.0)),
    "dynamic": replace(LLAMA, rope_scaling=Dynamic(4.0)),
    "yarn": replace(LLAMA, family="qwen2", qkv_bias=True, rope_scaling=Yarn(4.0, 32, mscale=0.7, beta_fast=16.0)),
    "yarn with its factor": replace(LLAMA, rope_scaling=Yarn(4.0, 32, attention_factor=1.5, truncate=False)),
    "longrope": replace(
        LLAMA, family="phi3", rotary_percent=0.75, rope_scaling=LongRope((1.0, 1.5) * 6, (2.0, 3.0) * 6, 4.0, 32)
    ),
    "gpt_oss": replace(
        LLAMA,
        family="gpt_oss",
        window=16,
        windowed=(True, False),
        rope_scaling=Yarn(32.0, 4096, truncate=False),
        activation="quick_gelu",
        linear_offset=1.0,
        clamp=7.0,
        qkv_bias=True,
        bias=True,
        sinks=True,
        experts=Router(8, 2, bias=True),
    ),
    "windows": replace(LLAMA, family="qwen3", qk_norm=True, window=16, windowed=(False, True)),
    "mistral": replace(LLAMA, family="mistral", window=64, rotary_base=1000000.5),
    "qwen2": replace(LLAMA, family="qwen2", qkv_bias=True, tied_embeddings=True),
    "qwen3": replace(LLAMA, family="qwen3", qk_norm=True, dtype="float16"),
    "nemotron": replace(
        LLAMA,
        family="nemotron",
        normalization="LayerNorm",
        zero_centered_norm=True,
        activation="relu2",
        gated=False,
        rotary_percent=0.5,
    ),
    "gemma": replace(
        LLAMA, family="gemma", zero_centered_norm=True, activation="gelu_tanh", embedding_scale=8.0, tied_embeddings=True
    ),
    "mixtral": replace(LLAMA, family="mixtral", experts=Router(8, 2)),
    "qwen3_moe": replace(LLAMA, family="qwen3_moe", qk_norm=True, experts=Router(16, 4, renormalize=False)),
}


@pytest.mark.parametrize("name", DECODERS)
def test_what_is_written_is_read(name: str, tmp_path: Path) -> None:
    run_config.write(DECODERS[name].architecture, tmp_path)
    assert run_config.read(tmp_path) == DECODERS[name].architecture


def test_what_bridge_has_no_provider_for_is_of_a_class_that_it_refuses(tmp_path: Path) -> None:
    """Its instantiate takes classes of a few packages alone, and names the one that it does not take. What is beside is read."""
    norms = replace(LLAMA, family="olmo2", qk_norm=True, qk_norm_over_heads=True, norm_before=False, norm_after=True)
    scales = replace(LLAMA, family="granite", attention_scale=0.1, residual_scale=0.2, logits_divisor=3.0, rounds_scale=False)
    for decoder in (norms, scales):
        run_config.write(decoder.architecture, tmp_path)
        assert run_config.read(tmp_path) == decoder.architecture
        model = yaml.safe_load((tmp_path / "run_config.yaml").read_text())["model"]
        assert model["_target_"] == f"nemotron_dpo.not_in_megatron_bridge.{decoder.family}"


def written(decoder: UniformDecoder, folder: Path, **changed: object) -> dict:
    """The `model` section alone, as Bridge writes it: without a section of ours."""
    run_config.write(decoder.architecture, folder)
    sections = yaml.safe_load((folder / "run_config.yaml").read_text())
    sections = {"model": {**sections["model"], **changed}}
    (folder / "run_config.yaml").write_text(yaml.safe_dump(sections))
    return sections


@pytest.mark.parametrize("name", [name for name, decoder in DECODERS.items() if not beside_provider(decoder.architecture)])
def test_the_family_is_told_from_the_fields(name: str, tmp_path: Path) -> None:
    written(DECODERS[name], tmp_path)
    read = flat(run_config.read(tmp_path))
    assert read == replace(DECODERS[name], bos_token_id=None, eos_token_id=None)  # which Bridge does not record


_LINEAR, _YARN = LinearScaling(2.0), Yarn(4.0, 32)
# family, the kinds of its layers, and how positions of all or of global layers are scaled; whether a provider of Bridge says so
SCALED: list[tuple[str, str, Scaling, bool]] = [
    ("gemma2", "sf", _LINEAR, False),
    ("gemma2", "sf", _YARN, False),
    ("gemma3_text", "fsfs", _LINEAR, True),
    ("gemma3_text", "sssf", _LINEAR, True),
    ("gemma3_text", "sssf", _YARN, False),
    ("gemma3", "fsfs", _YARN, False),
    ("olmo3", "sssf", _YARN, False),
]


@pytest.mark.parametrize(("family", "kinds", "scaling", "is_known"), SCALED)
def test_positions_that_no_provider_says_are_stored_with_the_whole_config(
    family: str, kinds: str, scaling: Scaling, is_known: bool, tmp_path: Path
) -> None:
    names = {"s": "sliding_attention", "f": "full_attention"}
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    said = {**sizes, "vocab_size": 96, "num_hidden_layers": len(kinds), "sliding_window": 8, "rms_norm_eps": 1e-6}
    said |= {"layer_types": [names[kind] for kind in kinds], "max_position_embeddings": 128}
    text = {"gemma3": "gemma3_text"}.get(family, family)
    plain = config.from_config({"model_type": text, **said}, Path("config.json"))
    layers = []
    for layer in plain.layers:
        assert isinstance(layer.mixer, Attention)
        assert layer.mixer.rotary is not None
        own = scaling if layer.mixer.window is None or family == "gemma2" else None
        layers.append(replace(layer, mixer=replace(layer.mixer, rotary=replace(layer.mixer.rotary, scaling=own))))
    scaled = replace(plain, layers=tuple(layers), around=None if text == family else family)
    run_config.write(scaled, tmp_path)
    assert run_config.read(tmp_path) == scaled
    model = yaml.safe_load((tmp_path / "run_config.yaml").read_text())["model"]
    assert ("not_in_megatron_bridge" not in model["_target_"]) == is_known


def test_positions_beside_a_recurrence_are_stored_so_too(tmp_path: Path) -> None:
    """With the precision of its states, which config.json does not say."""
    kinds = ["linear_attention", "full_attention"]
    yarn = {"rope_type": "yarn", "rope_theta": 1e7, "factor": 4.0, "original_max_position_embeddings": 4096}
    said = {"model_type": "qwen3_next", "num_hidden_layers": 2, "layer_types": kinds, "rope_parameters": yarn}
    scaled = replace(config.from_config(said, Path("config.json")), states_in_float32=True)
    assert scaled.attentions[0].rotary == Rotary(1e7, 0.25, Yarn(4.0, 4096))
    run_config.write(scaled, tmp_path)
    assert run_config.read(tmp_path) == scaled


def test_layers_with_a_window_are_counted_as_by_megatron_core(tmp_path: Path) -> None:
    for skip, windows in ((None, [8, 8]), (2, [8, None]), (1, [None, None]), ([0, 1], [None, 8])):
        written(LLAMA, tmp_path, window_size=[7, 0], window_attn_skip_freq=skip)
        assert [attention.window for attention in run_config.read(tmp_path).attentions] == windows
    written(LLAMA, tmp_path, window_size=[8, 0], window_attn_skip_freq=[1])
    with pytest.raises(UserError, match="window_attn_skip_freq is of 1 layers, and num_layers 2"):
        run_config.read(tmp_path)


def test_a_mistral_without_a_window_is_told_by_its_class(tmp_path: Path) -> None:
    written(replace(DECODERS["mistral"], window=None), tmp_path)
    assert run_config.read(tmp_path).family == "mistral"


def test_a_window_of_bridge_does_not_count_the_querys_own_token(tmp_path: Path) -> None:
    """NVIDIA-NeMo/Megatron-Bridge pull request 2656: 4096 of Hugging Face is [4095, 0]. Our first versions wrote [4096, 0]."""
    mistral = replace(DECODERS["mistral"], window=4096)
    assert written(mistral, tmp_path)["model"]["window_size"] == [4095, 0]
    assert flat(run_config.read(tmp_path)).window == 4096
    run_config.write(mistral.architecture, tmp_path)
    sections = yaml.safe_load((tmp_path / "run_config.yaml").read_text())
    assert flat(run_config.read(tmp_path)).window == sections["nemotron_dpo"].pop("window") == 4096
    sections["model"]["window_size"] = [4096, 0]
    (tmp_path / "run_config.yaml").write_text(yaml.safe_dump(sections))
    assert flat(run_config.read(tmp_path)).window == 4096


GEMMA_2 = {  # as Bridge's Gemma2ModelProvider has it
    "_target_": "megatron.bridge.models.gemma.gemma2_provider.Gemma2ModelProvider",
    "activation_func": {"_call_": False, "_target_": "megatron.core.activations.fast_gelu"},
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "layernorm_zero_centered_gamma": True,
    "num_layers": 3,
    "query_pre_attn_scalar": 256,
    "window_size": [4095, 0],
}


def test_a_gemma_2_of_bridge_has_caps_and_a_window_in_every_other_layer(tmp_path: Path) -> None:
    """Its window does not count the query's own token. Layers in another order have no place in Bridge, which is told so."""
    written(LLAMA, tmp_path, **GEMMA_2)
    everywhere = Attention(4, 2, 32, Rotary(5e5), scale=0.0625, softcap=50.0, norm_after=True)
    local = replace(everywhere, window=4096)
    read = run_config.read(tmp_path)
    assert list(read.attentions) == [local, everywhere, local]
    assert (read.family, read.embedding_scale, read.logit_softcap) == ("gemma2", 8.0, 30.0)
    run_config.write(read, tmp_path)
    model = yaml.safe_load((tmp_path / "run_config.yaml").read_text())["model"]
    assert {key: model[key] for key in GEMMA_2} == GEMMA_2
    assert run_config.read(tmp_path) == read
    other = replace(read, layers=read.layers[:1] * 2 + read.layers[1:2])
    run_config.write(other, tmp_path)
    assert run_config.read(tmp_path) == other
    model = yaml.safe_load((tmp_path / "run_config.yaml").read_text())["model"]
    assert model["_target_"] == "nemotron_dpo.not_in_megatron_bridge.gemma2"


GEMMA_3 = {  # as Bridge's Gemma3ModelProvider has it
    "_target_": "megatron.bridge.models.gemma.gemma3_provider.Gemma3ModelProvider",
    "activation_func": {"_call_": False, "_target_": "megatron.core.activations.fast_gelu"},
    "interleaved_attn_pattern": [5, 1],
    "is_vision_language": False,
    "layernorm_zero_centered_gamma": True,
    "num_layers": 8,
    "qk_layernorm": True,
    "rope_scaling_factor": 8.0,
    "rotary_base": [10000, 1000000],
    "share_embeddings_and_output_weights": True,
    "softmax_scale": 0.0625,
    "window_size": 512,
}


def test_a_gemma_of_bridge_has_windows_and_positions_by_layer(tmp_path: Path) -> None:
    """Five local layers, then a global one; a list of names says the same. Its window counts the query's own token."""
    local = Attention(4, 2, 32, Rotary(1e4), qk_norm=True, window=512, scale=0.0625, norm_after=True)
    everywhere = replace(local, window=None, rotary=Rotary(1e6, scaling=LinearScaling(8.0)))
    kinds = [local] * 5 + [everywhere] + [local] * 2
    named = ["full_attention" if kind == everywhere else "sliding_attention" for kind in kinds]
    for pattern in ([5, 1], named):
        written(LLAMA, tmp_path, **{**GEMMA_3, "interleaved_attn_pattern": pattern})
        read = run_config.read(tmp_path)
        assert list(read.attentions) == kinds
        assert {layer.feed_forward for layer in read.layers} == {Dense(96, "gelu_tanh", norm_after=True)}
        assert (read.family, read.embedding_scale, read.zero_centered_norm) == ("gemma3_text", 8.0, True)
        run_config.write(read, tmp_path)
        model = yaml.safe_load((tmp_path / "run_config.yaml").read_text())["model"]
        assert {key: model[key] for key in GEMMA_3} == GEMMA_3
        assert run_config.read(tmp_path) == read
    for said, scale in ((1 / math.sqrt(24), 24**-0.5), (None, 32**-0.5)):  # 1 / sqrt(24) differs in its last bit
        written(LLAMA, tmp_path, **{**GEMMA_3, "softmax_scale": said})
        assert {attention.scale for attention in run_config.read(tmp_path).attentions} == {scale}
    written(LLAMA, tmp_path, **{**GEMMA_3, "softmax_scale": 0.1234})
    with pytest.raises(UserError, match=r"softmax_scale is 0\.1234, which is no whole number to the power of -1/2"):
        run_config.read(tmp_path)
    written(LLAMA, tmp_path, **{**GEMMA_3, "is_vision_language": True})
    with pytest.raises(UserError, match="is_vision_language: True is not supported"):
        run_config.read(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("multi_latent_attention", True, "multi_latent_attention: True is not supported: False is"),
        ("add_bias_linear", True, "add_bias_linear: True is not supported"),
        ("position_embedding_type", "mrope", "position_embedding_type: 'mrope' is not supported: 'rope' or 'yarn' is"),
        ("position_embedding_type", "yarn", "is yarn, and yarn_rotary_scaling_factor is missing: Megatron-Bridge 0.3.1 leaves"),
        ("attn_logit_softcapping", 50.0, "attn_logit_softcapping: 50.0 is not supported"),
        ("is_hybrid_model", True, "position_embedding_type: 'rope' is not supported: 'none' is"),
        ("moe_layer_freq", [1, 0], r"moe_layer_freq: \[1, 0\] is not supported"),
        ("activation_func", {"_target_": "os.system"}, "activation_func 'os.system' is not supported"),
        ("num_layers", "2", "does not describe a model"),
        ("rotary_base", [10000, 1000000], "does not describe a model"),
    ],
)
def test_what_is_not_supported_is_named(key: str, value: object, message: str, tmp_path: Path) -> None:
    written(LLAMA, tmp_path, **{key: value})
    with pytest.raises(UserError, match=message) as caught:
        run_config.read(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'run_config.yaml'}: ")


def test_a_family_of_another_program_is_named(tmp_path: Path) -> None:
    run_config.write(LLAMA.architecture, tmp_path)
    path = tmp_path / "run_config.yaml"
    path.write_text(path.read_text().replace("family: llama", "family: nosuch"))
    with pytest.raises(UserError, match=r"family 'nosuch' is not supported: llama, mistral, .* are"):
        run_config.read(tmp_path)


def test_experts_in_every_layer_may_be_said_as_a_list(tmp_path: Path) -> None:
    written(DECODERS["qwen3_moe"], tmp_path, moe_layer_freq=[1, 1])
    assert flat(run_config.read(tmp_path)).experts == Router(16, 4, renormalize=False)


def test_the_coefficient_of_the_auxiliary_loss_is_the_models_own(tmp_path: Path) -> None:
    """Bridge writes a list where there are several such losses, and nothing where Megatron's default of none is meant."""
    mixtral = replace(LLAMA, family="mixtral", experts=Router(8, 2, aux_loss_coeff=0.02))
    for value, expected in ((0.02, 0.02), (0, 0.0), ([0.01, 0.02], None)):
        sections = written(mixtral, tmp_path, moe_aux_loss_coeff=value)
        assert [router.aux_loss_coeff for router in run_config.read(tmp_path).routers] == [expected] * 2
    del sections["model"]["moe_aux_loss_coeff"]
    (tmp_path / "run_config.yaml").write_text(yaml.safe_dump(sections))
    assert run_config.read(tmp_path).routers[0].aux_loss_coeff == 0
    run_config.write(mixtral.architecture, tmp_path)
    assert run_config.read(tmp_path).routers[0].aux_loss_coeff == 0.02


@pytest.mark.parametrize(
    "text",
    [
        "model: !!python/object/apply:os.system ['touch {marker}']",
        "model: {{_target_: os.system, _args_: ['touch {marker}'], _call_: true}}",
        "model: {{_target_: subprocess.run, args: ['touch', '{marker}']}}",
    ],
)
def test_nothing_named_in_the_file_runs(text: str, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    (tmp_path / "run_config.yaml").write_text(text.format(marker=marker))
    with pytest.raises(UserError, match="does not describe a model"):
        run_config.read(tmp_path)
    assert not marker.exists()
