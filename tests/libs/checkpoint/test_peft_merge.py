"""Folders of peft's LoRA adapters, merged into their base as peft itself merges them; what would be merged wrongly is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from nemotron_dpo.checkpoint.weights_digest import weights_digest
from nemotron_dpo.errors import UserError
from nemotron_dpo.sources import resolve, resolve_adapters
from support import families, small

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("megatron")]

LLAMA: dict[str, Any] = {"target_modules": ["q_proj", "v_proj", "up_proj", "down_proj"]}
# name -> (model_type, settings of peft's LoraConfig)
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "a part of query, key, value and of gate and up": ("llama", LLAMA),
    "every layer and the output": ("qwen2", {"target_modules": "all-linear", "modules_to_save": None}),
    "the output layer": ("llama", {"target_modules": ["lm_head", "o_proj"]}),
    "modules that are one in Hugging Face": ("phi3", {"target_modules": ["qkv_proj", "gate_up_proj"]}),
    "by the rank's root": ("llama", {**LLAMA, "use_rslora": True}),
    "ranks and alphas of their own": (
        "llama", {**LLAMA, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.self_attn.q_proj": 5, "up_proj": 7}},
    ),
    "some layers": ("llama", {"target_modules": ["k_proj"], "layers_to_transform": [1]}),
}  # fmt: skip


def trained(base: Path, folder: Path, seed: int = 5, **settings: Any) -> Any:
    """peft's model over `base`, its B random, saved to `folder`."""
    peft = pytest.importorskip("peft", reason="peft is not installed (configs/pins.txt has it)")
    model = peft.get_peft_model(families.load(base), peft.LoraConfig(r=4, lora_alpha=6, task_type="CAUSAL_LM", **settings))
    random = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1, generator=random)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_merged_is_bit_for_bit_what_peft_merges(kind: str, tmp_path: Path) -> None:
    from nemotron_dpo.checkpoint.export import export

    model_type, settings = KINDS[kind]
    base = families.write_model(tmp_path / "base", model_type)
    model = trained(base, tmp_path / "adapters", **settings)
    export(resolve_adapters(tmp_path / "adapters", str(base)), tmp_path / "merged", "hf", None, verify=2)
    expected, before = model.merge_and_unload().state_dict(), load_file(base / "model.safetensors")
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    assert all(torch.equal(merged[key], expected[key]) for key in merged)
    assert merged.keys() == before.keys()
    assert any(not torch.equal(merged[key], before[key]) for key in merged)


def test_the_base_is_where_the_adapters_say_unless_it_is_named(llama: Path, tmp_path: Path) -> None:
    from nemotron_dpo.checkpoint.export import export

    trained(llama, tmp_path / "adapters", **LLAMA)
    for number, named in enumerate((None, str(llama))):
        export(resolve_adapters(tmp_path / "adapters", named), tmp_path / f"{number}", "hf", None)
    assert weights_digest(resolve(tmp_path / "0")) == weights_digest(resolve(tmp_path / "1"))
    said = json.loads((tmp_path / "adapters" / "adapter_config.json").read_text())
    (tmp_path / "adapters" / "adapter_config.json").write_text(json.dumps({**said, "base_model_name_or_path": None}))
    with pytest.raises(UserError, match="does not say over which model these adapters are: name it with --base"):
        export(resolve_adapters(tmp_path / "adapters", None), tmp_path / "no", "hf", None)


def test_the_tokenizer_beside_the_adapters_goes_on_with_them(llama: Path, tmp_path: Path) -> None:
    """It may have tokens and a template that the base's lacks. One that is a link out is refused, here too."""
    from nemotron_dpo.checkpoint.export import export

    trained(llama, tmp_path / "adapters", **LLAMA)
    (tmp_path / "adapters" / "tokenizer.json").write_text("{}")
    export(resolve_adapters(tmp_path / "adapters", str(llama)), tmp_path / "merged", "hf", None)
    assert (tmp_path / "merged" / "tokenizer.json").read_text() == "{}"
    (tmp_path / "adapters" / "chat_template.jinja").symlink_to(llama / "config.json")
    with pytest.raises(UserError, match=r"adapters/chat_template\.jinja: is a link out of its folder"):
        export(resolve_adapters(tmp_path / "adapters", str(llama)), tmp_path / "no", "hf", None)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another method": ({"peft_type": "IA3"}, '"peft_type" is "IA3", which is not built'),
    "DoRA": ({"use_dora": True}, '"use_dora" is true, which is not built: merge with peft'),
    "biases": ({"bias": "lora_only"}, '"bias" is "lora_only"'),
    "modules trained whole": ({"modules_to_save": ["embed_tokens"]}, '"modules_to_save" is ["embed_tokens"]'),
    "a base that PiSSA changed": ({"init_lora_weights": "pissa"}, '"init_lora_weights" is "pissa"'),
    "repeated layers": ({"layer_replication": [[0, 2], [1, 2]]}, '"layer_replication" is [[0, 2], [1, 2]]'),
    "adapters that switch themselves on": ({"alora_invocation_tokens": [5]}, '"alora_invocation_tokens" is [5]'),
    "a setting of the future": ({"use_next_lora": True}, '"use_next_lora" is true'),
    "no scale": ({"lora_alpha": None}, '"lora_alpha" is no number'),
    "a pattern that is none": ({"alpha_pattern": {"(a+)+": 1}}, '"alpha_pattern" does not map names of modules to numbers'),
}


def test_what_would_be_merged_wrongly_is_refused_by_name(llama: Path, tmp_path: Path) -> None:
    from nemotron_dpo.checkpoint.export import export

    trained(llama, tmp_path / "adapters", **LLAMA)
    path = tmp_path / "adapters" / "adapter_config.json"
    config = json.loads(path.read_text())
    for name, (changes, message) in REFUSED.items():
        path.write_text(json.dumps({**config, **changes}))
        with pytest.raises(UserError) as caught:
            export(resolve_adapters(tmp_path / "adapters", str(llama)), tmp_path / "merged", "hf", None)
        assert message in str(caught.value), name
        assert not (tmp_path / "merged").exists()


def renamed(tensors: dict[str, torch.Tensor], old: str, new: str) -> dict[str, torch.Tensor]:
    return {key.replace(old, new): tensor for key, tensor in tensors.items()}


def without(tensors: dict[str, torch.Tensor], word: str) -> dict[str, torch.Tensor]:
    dropped = next(key for key in sorted(tensors) if word in key)
    return {key: tensor for key, tensor in tensors.items() if key != dropped}


DAMAGED = {
    "nothing": (lambda t: {}, "has no adapter for any module"),
    "one layer's adapters alone": (lambda t: {k: v for k, v in t.items() if "layers.0." in k}, "has no adapter for model.layers.1."),
    "another model's modules": (lambda t: renamed(t, "q_proj", "query_key_value"), "has no adapter for model.layers.0.self_attn.q_"),
    "names of a compiled model": (lambda t: renamed(t, "base_model.model.", "base_model.model._orig_mod."), "has no adapter for mo"),
    "a layer too many": (
        lambda t: {**t, **renamed({k: v for k, v in t.items() if "layers.1." in k}, "layers.1.", "layers.7.")},
        "has weights for model.layers.7.",
    ),
    "another model's shapes": (lambda t: {k: torch.cat([v, v], 1) for k, v in t.items()}, "has A (4, "),
    "half an adapter": (lambda t: without(t, "lora_B"), "has one of A and B alone for model.layers.0."),
    "a weight that is not the base's": (
        lambda t: {**t, "base_model.model.model.embed_tokens.weight": torch.zeros(small.VOCAB, 32)},
        "has a model.embed_tokens of its own, which is not the base's: name the base",
    ),
    "an embedding's adapter": (lambda t: renamed(t, "lora_A", "lora_embedding_A"), "which is no weight of a LoRA adapter"),
}  # fmt: skip


def test_damaged_weights_are_refused(llama: Path, tmp_path: Path) -> None:
    from nemotron_dpo.checkpoint.export import export

    trained(llama, tmp_path / "adapters", **LLAMA)
    path = tmp_path / "adapters" / "adapter_model.safetensors"
    tensors = load_file(path)
    for name, (damage, message) in DAMAGED.items():
        save_file({key: tensor.clone().contiguous() for key, tensor in damage(tensors).items()}, path)
        with pytest.raises(UserError) as caught:
            export(resolve_adapters(tmp_path / "adapters", str(llama)), tmp_path / "merged", "hf", None)
        assert message in str(caught.value), name
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be read"):
        export(resolve_adapters(tmp_path / "adapters", str(llama)), tmp_path / "merged", "hf", None)
    path.rename(path.with_suffix(".bin"))
    with pytest.raises(UserError, match="is missing: save the adapters as safetensors"):
        export(resolve_adapters(tmp_path / "adapters", str(llama)), tmp_path / "merged", "hf", None)


def test_a_whole_policy_has_no_base(llama: Path, tmp_path: Path) -> None:
    from nemotron_dpo.checkpoint.export import export

    for source in (llama, small.write_llama(tmp_path / "other")):
        with pytest.raises(UserError, match="holds a whole policy, which has no base: leave --base out"):
            export(resolve_adapters(source, str(llama)), tmp_path / "merged", "hf", None)
