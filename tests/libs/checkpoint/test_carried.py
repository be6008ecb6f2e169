"""Gemma 3 with its vision tower: the text model is computed, everything else comes out as it went in."""

from __future__ import annotations

import json
from dataclasses import replace
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

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("megatron")]
VISION = {
    "model_type": "siglip_vision_model",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
IMAGE = {"mm_tokens_per_image": 4, "image_token_index": 90, "boi_token_index": 91, "eoi_token_index": 92}


@pytest.fixture
def gemma(tmp_path: Path) -> Path:
    """A small random model as transformers saves it."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    torch.manual_seed(3)
    text = {**families.SIZES, "tie_word_embeddings": True, **families.FAMILIES["gemma3_text"]}
    config = AutoConfig.for_model("gemma3", text_config=text, vision_config=VISION, **IMAGE)
    model = AutoModelForImageTextToText.from_config(config)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, mean=parameter.mean().item(), std=0.2)
    model.to(torch.bfloat16).save_pretrained(tmp_path / "hf")
    (tmp_path / "hf" / "preprocessor_config.json").write_text("{}")
    return tmp_path / "hf"


def exported(source: Path, target: Path, form: str) -> Path:
    from nemotron_dpo.checkpoint.export import export

    export(resolve(source), target, form, None)
    return target


def logits(folder: Path, ids: torch.Tensor) -> torch.Tensor:
    from transformers import AutoModelForImageTextToText

    with torch.inference_mode():
        model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
        return model(input_ids=ids[None]).logits[0]


def test_logits_of_text_are_those_of_the_whole_model(gemma: Path) -> None:
    from nemotron_dpo.checkpoint.policy import open_policy

    pairs = small.random_pairs(1, seed=3, longest=30)
    row = pack_row(pairs.prompts, pairs.chosen, pairs.rejected)
    with torch.inference_mode():
        ours = open_policy(resolve(gemma), "float32").all_logits(row)[: row.segments[0].rejected]
    theirs = logits(gemma, torch.from_numpy(np.concatenate([pairs.prompts[0], pairs.chosen[0]]).astype(np.int64)))
    assert theirs.std() > 0.1
    assert (ours - theirs).abs().max() <= 1e-4


def test_every_tensor_and_the_config_come_back_by_way_of_two_checkpoints(gemma: Path, tmp_path: Path) -> None:
    from transformers import AutoConfig

    first = exported(gemma, tmp_path / "megatron", "megatron")
    back = exported(exported(first, tmp_path / "again", "megatron"), tmp_path / "back", "hf")
    before, after = (load_file(folder / "model.safetensors") for folder in (gemma, back))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) and before[key].dtype == after[key].dtype for key in before)
    one, other = (AutoConfig.from_pretrained(folder).to_dict() for folder in (gemma, back))
    texts = one.pop("text_config"), other.pop("text_config")
    assert {key for key in texts[0].keys() - {"initializer_range"} if texts[0][key] != texts[1].get(key)} == set()
    assert {key for key in one.keys() - {"_name_or_path"} if one[key] != other.get(key)} == set()
    assert (back / "preprocessor_config.json").exists()


@pytest.mark.parametrize("name", ["carried.json", "carried.safetensors"])
def test_what_is_kept_elsewhere_is_not_copied(name: str, gemma: Path, tmp_path: Path) -> None:
    """A stranger's carried.json -> a file of one's own would be written into the next checkpoint."""
    first = exported(gemma, tmp_path / "megatron", "megatron") / "iter_0000000"
    (first / "integrity.json").unlink()
    (first / "tokenizer" / name).rename(tmp_path / name)
    (first / "tokenizer" / name).symlink_to(tmp_path / name)
    with pytest.raises(UserError, match=f"tokenizer/{name}: is a link out of its folder"):
        exported(first, tmp_path / "again", "megatron")


def test_names_of_newer_and_older_versions_are_one_model(gemma: Path, tmp_path: Path) -> None:
    """transformers 4.52 and later put `model.` before all, and may save it so."""
    from nemotron_dpo.checkpoint.weights_digest import weights_digest

    tensors = load_file(gemma / "model.safetensors")
    newer = {f"model.{key.replace('language_model.model.', 'language_model.')}": tensor for key, tensor in tensors.items()}
    (tmp_path / "newer").mkdir()
    save_file(newer, tmp_path / "newer" / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "newer" / "config.json").write_bytes((gemma / "config.json").read_bytes())
    assert weights_digest(resolve(tmp_path / "newer")) == weights_digest(resolve(gemma))
    back = load_file(exported(tmp_path / "newer", tmp_path / "back", "hf") / "model.safetensors")
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[key], tensors[key]) for key in tensors)


def test_adapters_merge_into_the_model_that_their_base_is(gemma: Path, tmp_path: Path) -> None:
    """Their own checkpoint holds no vision tower: it is the base's."""
    from nemotron_dpo.checkpoint import megatron
    from nemotron_dpo.checkpoint.policy import open_policy
    from nemotron_dpo.checkpoint.weights_digest import weights_digest
    from nemotron_dpo.policy.lora import Adapted, Base, Lora, adapt, adapters

    model = open_policy(resolve(gemma), None)
    adapt(model, Adapted(Lora(dim=4, alpha=2), Base(str(gemma), weights_digest(resolve(gemma)))))
    torch.manual_seed(0)
    for layer in adapters(model).values():
        torch.nn.init.normal_(layer.adapter.linear_out.weight, std=0.3)
    megatron.save(model, tmp_path / "run", 1, gemma)
    assert not list(tmp_path.glob("run/*/tokenizer/carried*"))
    merged = load_file(exported(tmp_path / "run", tmp_path / "merged", "hf") / "model.safetensors")
    before = load_file(gemma / "model.safetensors")
    assert merged.keys() == before.keys()
    changed = {key for key in before if not torch.equal(before[key], merged[key])}
    assert len(changed) == 7 * 4  # linear layers of transformers
    assert all(key.startswith("language_model.model.layers.") for key in changed)


def test_adapters_that_bridge_added_behind_a_norm_are_refused(gemma: Path, tmp_path: Path) -> None:
    """Its linear_proj has the norm within, so that what it trained there is no part of the weight. Its linear_qkv is as ours."""
    from nemotron_dpo.checkpoint import megatron
    from nemotron_dpo.checkpoint.policy import open_policy
    from nemotron_dpo.policy.lora import Adapted, Base, Lora, adapt

    for targets in (("linear_qkv",), ("linear_qkv", "linear_proj")):
        model = open_policy(resolve(gemma), None)
        adapt(model, Adapted(Lora(dim=4, alpha=2, target_modules=targets), Base(str(gemma), "")))  # Bridge's have no digest
        root = tmp_path / targets[-1]
        megatron.save(model, root, 1, gemma)
        theirs = replace(resolve(root), base=str(gemma))
        if targets == ("linear_qkv",):
            open_policy(theirs, None)
            continue
        with pytest.raises(
            UserError, match=r"layers\.0\.self_attention\.linear_proj, which Megatron-Bridge adds behind the norm"
        ):
            open_policy(theirs, None)


def test_a_checkpoint_without_the_rest_is_not_exported_as_the_whole(gemma: Path, tmp_path: Path) -> None:
    root = exported(gemma, tmp_path / "megatron", "megatron")
    for path in (*root.glob("*/tokenizer/carried*"), *root.glob("*/integrity.json")):
        path.unlink()
    with pytest.raises(
        UserError, match=r"tokenizer: has none of the vision_tower\., multi_modal_projector\. that the model has"
    ):
        exported(root, tmp_path / "back", "hf")
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text_config": None}, "does not describe a model"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config of any kind is not supported"),
    ],
)
def test_what_cannot_be_honoured_is_refused(changes: dict[str, Any], message: str, gemma: Path) -> None:
    from nemotron_dpo.checkpoint.families import config

    written = json.loads((gemma / "config.json").read_text())
    (gemma / "config.json").write_text(json.dumps({**written, **changes}))
    with pytest.raises(UserError, match=message) as caught:
        config.read(gemma)
    assert "\n" not in str(caught.value)


def test_a_folder_without_what_sees_is_refused_by_its_name(gemma: Path) -> None:
    """transformers would give what is exported of it random weights to see with."""
    from nemotron_dpo.checkpoint.policy import open_policy

    whole = load_file(gemma / "model.safetensors")
    for missing in ("vision_tower.", "multi_modal_projector."):
        kept = {name: tensor for name, tensor in whole.items() if missing not in name}
        save_file(kept, gemma / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(UserError, match=rf"holds nothing of {missing}, which its config.json puts around"):
            open_policy(resolve(gemma), None)


def test_a_tower_in_8_bits_is_refused_before_anything_is_written(gemma: Path) -> None:
    from nemotron_dpo.checkpoint.policy import open_policy

    whole = load_file(gemma / "model.safetensors")
    name = next(key for key in whole if "vision_tower." in key and key.endswith("q_proj.weight"))
    whole[name] = whole[name].to(torch.float8_e4m3fn)
    save_file(whole, gemma / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"holds .*vision_tower\..*q_proj.weight, which is around the text model, as F8_E4M3"):
        open_policy(resolve(gemma), None)
