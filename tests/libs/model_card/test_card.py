"""The model card: front matter that huggingface_hub reads, and what of a run is in it."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from nemotron_dpo.errors import UserError
from nemotron_dpo.model_card import card
from nemotron_dpo.model_card.origin import Origin, origin_of

SETTINGS = {
    "dpo": {"preference_loss": "dpo", "reference_policy_kl_penalty": 0.1, "max_num_steps": 20, "seed": 7},
    "policy": {"model_name": "acme/base", "optimizer": {"lr": 5e-7}, "precision": "bfloat16"},
    "checkpointing": {"metric_name": "val:validation-default_loss", "higher_is_better": False},
}
FIGURES = {"total_steps": 10, "train:loss": 0.5, "val:validation-default_loss": 0.25, "val:validation-default_accuracy": 0.75}


def _job(folder: Path) -> Path:
    """A job with steps 5 and 10, and an export of step 10."""
    for number in (5, 10):
        step = folder / "run" / "checkpoints" / f"step_{number}"
        (step / "policy" / f"iter_{number:07}").mkdir(parents=True)
        (step / "config.yaml").write_text(yaml.safe_dump(SETTINGS))
        (step / "training_info.json").write_text(json.dumps({**FIGURES, "total_steps": number}))
    (folder / "checkpoint_megatron" / "iter_0000010").mkdir(parents=True)
    facts = {
        "lineage": {"policy": "acme/base", "train.input": "sha256:1234"},
        "versions": ["torch 2.13.0"],
        "command": ["dpo-train", "x y"],
    }
    (folder / "run" / "run.json").write_text(json.dumps(facts))
    (folder / "job.yaml").write_text(yaml.safe_dump({"argv": ["/bin/nemotron-steps", "run", "dpo", "a.b=c d"]}))
    return folder


def test_a_policy_knows_the_run_that_it_is_of(tmp_path: Path) -> None:
    job = _job(tmp_path / "job")
    for policy, step in [
        (job / "run" / "checkpoints" / "step_5" / "policy" / "iter_0000005", 5),
        (job / "run" / "checkpoints" / "step_10" / "policy" / "iter_0000010", 10),
        (job / "checkpoint_megatron" / "iter_0000010", 10),
        (tmp_path / "elsewhere" / "iter_0000010", None),
        (tmp_path, None),
    ]:
        found = origin_of(policy)
        assert found.step == step, policy
        if step is not None:
            assert (found.setting("policy.model_name"), found.measured["total_steps"]) == ("acme/base", step)
            assert found.facts["versions"] == ["torch 2.13.0"]
            assert found.record["argv"][1] == "run"


def test_a_card_of_damaged_records_is_not_written(tmp_path: Path) -> None:
    """Where resume.json has their digests, or the machine does not give them; without either nothing can be told."""
    step = _job(tmp_path / "job") / "run" / "checkpoints" / "step_5"
    policy = step / "policy" / "iter_0000005"
    names = ("config.yaml", "training_info.json")
    digests = {name: hashlib.sha256((step / name).read_bytes()).hexdigest() for name in names}
    (step / "resume.json").write_text(json.dumps({"files": digests}))
    for name, change in itertools.product(names, (lambda path: path.write_text("{}"), Path.unlink)):
        content = (step / name).read_bytes()
        change(step / name)
        with pytest.raises(UserError, match=rf"/step_5/{re.escape(name)}: is not what was saved with step_5"):
            origin_of(policy)
        (step / name).write_bytes(content)
    (step / "resume.json").unlink()
    for path in (step / "config.yaml", step.parents[1] / "run.json"):
        content = path.read_bytes()
        path.unlink()
        path.mkdir()
        with pytest.raises(IsADirectoryError, match=path.name):
            origin_of(policy)
        path.rmdir()
        path.write_bytes(content)
    assert origin_of(policy).step == 5


def test_the_card_is_read_by_huggingface_hub_and_has_what_is_known(tmp_path: Path) -> None:
    origin = origin_of(_job(tmp_path / "job") / "checkpoint_megatron" / "iter_0000010")
    (tmp_path / "config.json").write_text(json.dumps({"dtype": "bfloat16"}))
    card.write(tmp_path, origin, "hf")
    read = ModelCard.load(tmp_path / "README.md")
    data = read.data.to_dict()
    assert data == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "base_model": "acme/base",
        "tags": ["preference-optimization", "dpo", "nemotron-dpo"],
    }
    for line in [
        "Step 10 of at most 20 of preference optimization by nemotron-dpo, from acme/base.",
        "Weights are in bfloat16.",
        "| validation-default loss | 0.25 |",
        "| validation-default accuracy | 0.75 |",
        "| training loss | 0.5 |",
        "| beta (reference\\_policy\\_kl\\_penalty) | 0.1 |",
        "| learning rate | 5e-07 |",
        "| train.input | sha256:1234 |",
        "nemotron-steps run dpo 'a.b=c d'",
        "Made with torch 2.13.0.",
    ]:
        assert line in read.text.splitlines(), line


def test_a_run_that_was_extended_says_what_to_run_first() -> None:
    """Its schedule was that of the shorter run until there: the command alone makes other weights."""
    earlier = [{"status": "done", "step": 6}, {"status": "stopped", "step": 7}, {"status": "done", "step": 9}]
    facts = {"command": ["dpo-train", "x"], "step": 9, "earlier": earlier}
    said = "The run had ended after step 6 and was extended: to make it again, run it with dpo.max_num_steps=6 first."
    assert f"\n\n{said}\n\n```sh\n" in card.card(Origin(9, facts=facts), "hf", None)
    assert "extended" not in card.card(Origin(9, facts=facts | {"earlier": earlier[1:]}), "hf", None)


def test_the_base_is_an_id_of_the_hub_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "local" / "model").mkdir(parents=True)
    for name, known, shown in [
        ("acme/base", "acme/base", "acme/base"),
        ("local/model", None, "model"),
        ("/home/me/secret/model", None, "model"),
        ("/c/models--acme--base-2/snapshots/123abc", "acme/base-2", "acme/base-2"),
        (None, None, None),
    ]:
        assert card.base_of(Origin(1, {"policy": {"model_name": name}})) == (known, shown), name


def test_a_card_of_nothing_known_and_one_of_hostile_settings_are_whole(tmp_path: Path) -> None:
    for origin in (
        Origin(),
        Origin(3, {"dpo": {"preference_loss": {"a|b": 1, "--- <x>": 2}}, "policy": {"optimizer": {"lr": "|\n# x"}}}),
    ):
        for form in ("hf", "peft"):
            (tmp_path / "README.md").write_text(card.card(origin, form, None))
            read = ModelCard.load(tmp_path / "README.md")
            assert read.data.to_dict()["library_name"] == {"hf": "transformers", "peft": "peft"}[form]
            assert "\n# x" not in read.text


def test_the_base_is_what_the_run_began_with(tmp_path: Path) -> None:
    """dpo-train --policy leaves the config's own policy.model_name as it is."""
    job = _job(tmp_path / "job")
    for began, base, words in [("other/policy", "other/policy", "from other/policy."), ("./mine", None, "from mine.")]:
        facts = {"lineage": {"policy": began}}
        (job / "run" / "run.json").write_text(json.dumps(facts))
        card.write(tmp_path, origin_of(job / "checkpoint_megatron" / "iter_0000010"), "hf")
        read = ModelCard.load(tmp_path / "README.md")
        assert read.data.to_dict().get("base_model") == base
        assert words in read.text


def test_a_model_that_sees_is_called_so_and_shown_in_use(tmp_path: Path) -> None:
    """Of adapters, one whose modules are within it."""
    origin = origin_of(tmp_path)
    for form, name, config, words in [
        ("hf", "config.json", {"vision_config": {}}, 'pipeline("image-text-to-text", '),
        (
            "peft",
            "adapter_config.json",
            {"target_modules": ["model.language_model.layers.0.mlp.up_proj"]},
            "AutoModelForImageText",
        ),
        ("peft", "adapter_config.json", {"target_modules": ["up_proj"]}, None),
    ]:
        (tmp_path / name).write_text(json.dumps(config))
        card.write(tmp_path, origin, form)
        read = ModelCard.load(tmp_path / "README.md")
        assert read.data.to_dict()["pipeline_tag"] == ("image-text-to-text" if words else "text-generation")
        assert ("AutoPeftModelForCausalLM" in read.text) == (words is None)
        assert words is None or words in read.text
