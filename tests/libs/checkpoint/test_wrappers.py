"""Multimodal models: their text model is computed, everything else comes out as it went in."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from nemotron_dpo.checkpoint.families import wrappers as ours
from nemotron_dpo.errors import UserError
from nemotron_dpo.policy.rows import pack_row
from nemotron_dpo.sources import ModelSource, resolve, resolve_adapters
from support import small, wrappers

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("megatron")]


def exported(source: Path | ModelSource, target: Path, form: str) -> Path:
    from nemotron_dpo.checkpoint.export import export

    export(source if isinstance(source, ModelSource) else resolve(source), target, form, None)
    return target


def opened(folder: Path) -> Any:
    from nemotron_dpo.checkpoint.policy import open_policy

    return open_policy(resolve(folder), "float32")


def test_there_is_a_model_of_each() -> None:
    assert {kind for kind, *_ in wrappers.MODELS.values()} == ours.WRAPPERS.keys()


_THROUGH_MEGATRON = ("mistral3, ministral3", "qwen3_5_moe", "qwen2_5_vl")


@pytest.mark.parametrize("name", wrappers.MODELS)
def test_log_probs_gradients_and_folders(name: str, tmp_path: Path) -> None:
    """Those of text rows are the whole model's; every tensor and the config come back, of some by way of a checkpoint."""
    folder = wrappers.write_model(tmp_path / "hf", name)
    check_text_rows(folder)
    between = exported(folder, tmp_path / "megatron", "megatron") if name in _THROUGH_MEGATRON else folder
    back = exported(between, tmp_path / "back", "hf")
    check_same_tensors(folder, back)
    assert json.loads((back / "config.json").read_text()) == json.loads((folder / "config.json").read_text())
    assert (back / "preprocessor_config.json").read_bytes() == (folder / "preprocessor_config.json").read_bytes()
    assert opened(between).architecture == opened(folder).architecture


def check_same_tensors(folder: Path, other: Path) -> None:
    before, after = (load_file(path / "model.safetensors") for path in (folder, other))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) and before[key].dtype == after[key].dtype for key in before)


def check_text_rows(folder: Path) -> None:
    """Both responses' log-probs, and the gradient of the embedding, which passes through all that a layer computes."""
    pairs, policy = small.random_pairs(2, seed=8, longest=30), opened(folder)
    logps_R = policy(pack_row(pairs.prompts, pairs.chosen, pairs.rejected))
    logps_R.square().sum().backward()
    expected = []
    with wrappers.loaded(folder) as theirs:
        for i in range(2):
            for response in (pairs.chosen[i], pairs.rejected[i]):
                logps = small.reference_logps(theirs, pairs.prompts[i], response)
                logps.square().sum().backward()
                expected.append(logps.detach())
        assert torch.cat(expected).std() > 0.3
        assert torch.allclose(logps_R, torch.cat(expected), rtol=1e-4, atol=2e-4)
        grad, wanted = policy.embedding.word_embeddings.weight.grad, theirs.get_input_embeddings().weight.grad
        assert (grad - wanted).norm() <= 1e-3 * wanted.norm()


# (model, what names begin with, and how other versions of transformers begin them)
NAMES: list[tuple[str, dict[str, str]]] = [
    (
        "mistral3, mistral",
        {
            r"language_model\.model\.": "model.language_model.",
            r"language_model\.lm_head": "lm_head",
            r"(vision_tower|multi_modal)": r"model.\1",
        },
    ),
    ("qwen2_5_vl", {r"model\.": "model.language_model.", r"visual\.": "model.visual."}),
]


@pytest.mark.parametrize(("name", "renamed"), NAMES)
def test_names_of_other_versions_are_one_model(name: str, renamed: dict[str, str], tmp_path: Path) -> None:
    from nemotron_dpo.checkpoint.weights_digest import weights_digest

    folder, other = wrappers.write_model(tmp_path / "hf", name), tmp_path / "other"
    tensors, moved = load_file(folder / "model.safetensors"), {}
    for key, tensor in tensors.items():
        moved[next((re.sub(f"^{old}", new, key) for old, new in renamed.items() if re.match(old, key)), key)] = tensor
    assert not set(moved) & set(tensors) - {"lm_head.weight"}
    other.mkdir()
    save_file(moved, other / "model.safetensors", metadata={"format": "pt"})
    (other / "config.json").write_bytes((folder / "config.json").read_bytes())
    assert weights_digest(resolve(other)) == weights_digest(resolve(folder))
    check_same_tensors(folder, exported(other, tmp_path / "back", "hf"))


def change_config(folder: Path, change: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def test_an_old_flat_config_is_that_of_its_sections(tmp_path: Path) -> None:
    """As Qwen2.5-VL is published: the text model's keys beside the others, and positions of type mrope."""
    folder = wrappers.write_model(tmp_path / "hf", "qwen2_5_vl")
    sections = opened(folder).architecture

    def flatten(config: dict[str, Any]) -> None:
        text = config.pop("text_config")
        theta = text.pop("rope_parameters")["rope_theta"]
        kept = {key: value for key, value in text.items() if key not in ("model_type", "layer_types", "dtype")}
        config |= {**kept, "rope_theta": theta, "rope_scaling": {"type": "mrope", "mrope_section": [2, 1, 1]}}

    change_config(folder, flatten)
    assert opened(folder).architecture == sections
    check_text_rows(folder)
    back = exported(folder, tmp_path / "back", "hf")
    assert json.loads((back / "config.json").read_text()) == json.loads((folder / "config.json").read_text())


def test_what_a_config_says_of_the_output_layer(tmp_path: Path) -> None:
    """Mistral Small 3.1's says nothing and stores one; transformers 5 writes that they are one, though the section says no."""
    folder = wrappers.write_model(tmp_path / "hf", "mistral3, mistral")
    key = "tie_word_embeddings"

    def said(outer: bool | None, inner: bool | None) -> None:
        def change(config: dict[str, Any]) -> None:
            for section, value in ((config, outer), (config["text_config"], inner)):
                section.pop(key, None)
                section |= {} if value is None else {key: value}

        change_config(folder, change)

    for outer, inner in ((None, None), (True, False), (False, None)):
        said(outer, inner)
        assert not opened(folder).architecture.tied_embeddings
        check_same_tensors(folder, exported(folder, tmp_path / f"back-{outer}-{inner}", "hf"))
        assert json.loads((tmp_path / f"back-{outer}-{inner}" / "config.json").read_text())[key] is False
    check_text_rows(tmp_path / "back-None-None")
    said(True, None)
    with pytest.raises(UserError, match=r"differs from the embedding to which config\.json ties it"):
        opened(folder)
    tensors = load_file(folder / "model.safetensors")
    del tensors["language_model.lm_head.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for outer, inner in ((None, None), (False, True)):
        said(outer, inner)
        assert opened(folder).architecture.tied_embeddings


def test_what_is_missing_around_a_text_model_is_found_before_it_is_trained(tmp_path: Path) -> None:
    folder = wrappers.write_model(tmp_path / "hf", "qwen3_vl")
    first = exported(folder, tmp_path / "megatron", "megatron")
    tensors = load_file(folder / "model.safetensors")
    missing = [key for key in tensors if key.startswith("model.visual.")]
    index = {"weight_map": dict.fromkeys(tensors, "model.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for kept, message in (
        (set(tensors) - set(missing[:1]), rf"index\.json: lists {re.escape(missing[0])}, which no file holds"),
        (set(tensors) - set(missing), r"hf: holds nothing of visual\., which its config.json puts around the text model"),
    ):
        save_file({key: tensors[key] for key in kept}, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(UserError, match=message):
            opened(folder)
    for path in (*first.glob("*/tokenizer/carried*"), *first.glob("*/integrity.json")):
        path.unlink()
    with pytest.raises(UserError, match=r"tokenizer: has none of the visual\. that the model has besides its text model"):
        opened(first)


def test_what_was_kept_of_another_model_is_refused(tmp_path: Path) -> None:
    first = exported(wrappers.write_model(tmp_path / "hf", "qwen3_vl"), tmp_path / "megatron", "megatron")
    (kept,) = first.glob("*/tokenizer/carried.json")
    config = json.loads(kept.read_text())
    kept.write_text(json.dumps({**config, "text_config": {**config["text_config"], "rms_norm_eps": 1e-3}}))
    next(first.glob("*/integrity.json")).unlink()
    with pytest.raises(UserError, match=r"carried\.json: is around another text model than the one that is written"):
        exported(first, tmp_path / "back", "hf")
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize(
    ("model_type", "text", "message"),
    [
        ("llava", {"model_type": "granite"}, "a llava around a 'granite' is not supported: around llama, mistral"),
        ("mistral3", {"model_type": "mistral4"}, "a mistral3 around a 'mistral4' is not supported: around mistral, m"),
        ("qwen3_5", None, "does not describe a model \\(text_config is None\\)"),
        ("qwen2_vl", 3, "does not describe a model \\(text_config is 3\\)"),
        ("qwen3_vl", {"attention_bias": True}, "attention_bias True is not supported"),
    ],
)
def test_what_cannot_be_honoured_is_refused(model_type: str, text: Any, message: str) -> None:
    from nemotron_dpo.checkpoint.families import config

    with pytest.raises(UserError, match=message) as caught:
        config.from_config({"model_type": model_type, "text_config": text}, Path("config.json"))
    assert "\n" not in str(caught.value)


def test_adapters_in_peft_are_beside_the_text_model_alone(tmp_path: Path) -> None:
    """Of a tower whose modules have the same names too. peft's merged model is ours, bit for bit in float32."""
    peft = pytest.importorskip("peft", reason="peft is not installed (configs/pins.txt has it)")
    from nemotron_dpo.checkpoint import megatron
    from nemotron_dpo.checkpoint.weights_digest import weights_digest
    from nemotron_dpo.policy.lora import Adapted, Base, Lora, adapt, adapters

    folder = wrappers.write_model(tmp_path / "hf", "mistral3, ministral3", dtype=torch.float32)
    model = opened(folder)
    adapt(model, Adapted(Lora(dim=4, alpha=2), Base(str(folder), weights_digest(resolve(folder)))))
    torch.manual_seed(0)
    for layer in adapters(model).values():
        torch.nn.init.normal_(layer.adapter.linear_out.weight, std=0.3)
    megatron.save(model, tmp_path / "run", 1, folder)
    adapted, merged = (exported(tmp_path / "run", tmp_path / f"to-{form}", form) for form in ("peft", "hf"))
    with wrappers.loaded(folder) as whole:
        theirs = peft.PeftModel.from_pretrained(whole, adapted)
        assert {name.split(".")[3] for name, _ in theirs.named_parameters() if ".lora_A." in name} == {"language_model"}
        theirs.merge_and_unload().save_pretrained(tmp_path / "theirs")
    check_same_tensors(tmp_path / "theirs", merged)
    check_same_tensors(merged, exported(resolve_adapters(adapted, None), tmp_path / "back", "hf"))
    before, after = (load_file(path / "model.safetensors") for path in (folder, merged))
    assert sum(not torch.equal(before[key], after[key]) for key in before) == 7 * 2  # linear layers of transformers
