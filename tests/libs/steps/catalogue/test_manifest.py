"""Manifests: the shipped one says what the documentation says; names are found, near misses are guessed."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemotron_dpo.errors import UserError
from nemotron_dpo.steps.catalogue.manifest import configs_root, discover, find_config, find_step

STEPS = discover(configs_root())


def _manifest(folder: Path, step_id: str) -> None:
    folder.mkdir(parents=True)
    (folder / "step.toml").write_text(f'[step]\nid = "{step_id}"\nname = "N"\ncategory = "c"\ndescription = "d"\n')


def test_shipped_step_says_what_the_documentation_says():
    step = find_step("rl/nemo_rl/dpo", STEPS)
    assert [item["type"] for item in step.consumes] == ["training_jsonl", "checkpoint_megatron"]
    assert all(item["required"] for item in step.consumes)
    assert [item["type"] for item in step.produces] == ["checkpoint_megatron"]
    defaults = {item["name"]: item["default"] for item in step.parameters}
    assert defaults == {
        "dpo.preference_loss": "dpo",
        "dpo.reference_policy_kl_penalty": 0.05,
        "dpo.on_divergence": "warn",
        "policy.model_name": "${oc.env:RL_POLICY_MODEL,meta-llama/Llama-3.2-1B-Instruct}",
        "dpo.max_num_steps": 500,
        "policy.train_global_batch_size": 32,
        "policy.optimizer.lr": 5e-7,
        "data.train.prompt_file": "${oc.env:RL_TRAIN_DATA,null}",
        "data.validation.prompt_file": "null",
    }
    assert step.configs[0] == "default"
    assert "tiny" in step.configs
    assert "0.1-0.3" in step.strategies[0]["then"]
    assert "data_prep/rl_prep" in step.strategies[1]["then"]
    assert all(key in step.strategies[2]["then"] for key in ("val_at_start", "val_period", "val_at_end"))
    names = ["inverted_preference_pairs", "batch_shape_not_divisible", "reference_policy_mismatch"]
    assert [error["name"] for error in step.errors] == names


def test_last_part_of_a_name_is_enough_where_it_is_unambiguous(tmp_path: Path):
    _manifest(tmp_path / "a", "rl/nemo_rl/dpo")
    _manifest(tmp_path / "b", "rl/other/dpo")
    _manifest(tmp_path / "c", "rl/other/ppo")
    steps = discover(tmp_path)
    assert find_step("ppo", steps).id == "rl/other/ppo"
    assert find_step("other/dpo", steps).id == "rl/other/dpo"
    with pytest.raises(UserError, match=r"^dpo: is ambiguous \(rl/nemo_rl/dpo, rl/other/dpo\): give more of it"):
        find_step("dpo", steps)


def test_unknown_step_is_guessed():
    with pytest.raises(UserError, match=r"rl/nemo_rl/dop: no such step: did you mean rl/nemo_rl/dpo\? `nemotron-steps list`"):
        find_step("rl/nemo_rl/dop", STEPS)


def test_config_by_name_and_by_path(tmp_path: Path):
    step = find_step("dpo", STEPS)
    assert find_config(step, None) == step.folder / "default.yaml"
    assert find_config(step, "tiny") == step.folder / "tiny.yaml"
    own = tmp_path / "own.yaml"
    own.write_text("dpo: {seed: 1}\n")
    assert find_config(step, str(own)) == own
    with pytest.raises(UserError, match="tinny: no such config: did you mean tiny"):
        find_config(step, "tinny")


BROKEN = [("[step\n", "is not TOML"), ('[step]\nid = "x"\n', "the manifest lacks 'name'")]


@pytest.mark.parametrize(("text", "message"), BROKEN)
def test_broken_manifest_is_named(tmp_path: Path, text: str, message: str):
    (tmp_path / "step.toml").write_text(text)
    with pytest.raises(UserError) as caught:
        discover(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'step.toml'}: {message}")


def test_a_path_that_is_no_file_is_called_one(tmp_path: Path):
    """Not taken for a misspelt name: what there is by name comes second."""
    step = find_step("rl/nemo_rl/dpo", STEPS)
    with pytest.raises(UserError, match=r"/ours.yaml: no such file: configs of rl/nemo_rl/dpo by name: default, "):
        find_config(step, str(tmp_path / "ours.yaml"))
    with pytest.raises(UserError, match="is a folder where a YAML file is due"):
        find_config(step, str(tmp_path))
