"""Where the values of a merged config come from, spelled the same way or another."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemotron_dpo.config import load_run, plain_origins, run_origins
from nemotron_dpo.config.steps import PreferenceScoreConfig

BASE = """\
dpo:
  seed: 1
  val_period: 7
policy:
  optimizer: {name: adamw, lr: 1.0e-3}
"""
OWN = """\
defaults: base.yaml

dpo:
  seed: 2
policy:
  dtensor_cfg: {tensor_parallel_size: 2}
  optimizer:
    kwargs:
      lr: 1.0e-4
data:
  train:
    prompt_file: a.jsonl
"""

ORIGINS = [
    ("dpo.seed", "own.yaml:4"),
    ("dpo.val_period", "base.yaml:3"),
    ("dpo.max_num_steps", "dpo.max_num_steps=9"),
    ("policy.megatron_cfg.tensor_model_parallel_size", "own.yaml:6"),
    ("policy.optimizer.lr", "own.yaml:9"),
    ("policy.optimizer.weight_decay", None),
    ("data.train.path", "own.yaml:12"),
    ("cluster.gpus_per_node", "profile"),
    ("logger.log_dir", "logger.log_dir=null"),
]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "base.yaml").write_text(BASE)
    (tmp_path / "own.yaml").write_text(OWN)
    return tmp_path / "own.yaml"


@pytest.mark.parametrize(("key", "place"), ORIGINS)
def test_place_of_each_value(config: Path, key: str, place: str | None):
    base = {"cluster": {"gpus_per_node": 4}}
    origins = run_origins(config, ["dpo.max_num_steps=9", "logger.log_dir=null"], base)
    assert (origins.get(key) or "").removeprefix(f"{config.parent}/") == (place or "")


FROM_ENVIRONMENT = """\
policy:
  model_name: ${oc.env:A_MODEL,${oc.env:B_MODEL,plain}}
  tokenizer: {name: "${oc.env:A_ROOT}/${oc.env:B_ROOT,x}"}
data:
  train: {prompt_file: "${oc.env:A_DATA, null}"}
  validation:
    prompt_file: ${oc.env:A_DATA}
"""
VARIABLES = [
    ({"A_DATA": "d"}, "policy.model_name", "own.yaml:2"),
    ({"A_MODEL": "a", "B_MODEL": "b"}, "policy.model_name", "$A_MODEL (own.yaml:2)"),
    ({"B_MODEL": "b"}, "policy.model_name", "$B_MODEL (own.yaml:2)"),
    ({"B_ROOT": "b"}, "policy.tokenizer.name", "$A_ROOT, B_ROOT (own.yaml:3)"),
    ({}, "policy.tokenizer.name", "$A_ROOT (own.yaml:3)"),
    ({}, "data.train.path", "$A_DATA (own.yaml:5)"),
    ({}, "data.validation.default.path", "$A_DATA (own.yaml:7)"),
]


def test_what_the_environment_says_has_its_place_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "own.yaml"
    path.write_text(FROM_ENVIRONMENT)
    for variables, key, place in VARIABLES:
        with monkeypatch.context() as patch:
            for name, value in ({"A_ROOT": "r", "A_DATA": "d"} | variables).items():
                patch.setenv(name, value)
            assert run_origins(path, [])[key].replace(f"{tmp_path}/", "") == place
    monkeypatch.setenv("A_SEED", "3")
    assert run_origins(None, ["dpo.seed=${oc.env:A_SEED}"])["dpo.seed"] == "$A_SEED (dpo.seed=${oc.env:A_SEED})"


def test_layers_that_make_no_config_alone(tmp_path: Path):
    path = tmp_path / "own.yaml"
    path.write_text("policy:\n  max_total_sequence_length: ${dpo.seed}\ndpo:\n  seed: 0.5\n")
    origins = run_origins(path, ["dpo.seed=16"])
    assert origins["dpo.seed"] == "dpo.seed=16"
    assert origins["policy.max_total_sequence_length"] == "dpo.seed=16"


def test_other_steps(tmp_path: Path):
    path = tmp_path / "own.yaml"
    path.write_text("policy:\n  model_name: m\n")
    origins = plain_origins(PreferenceScoreConfig, path, ["max_length=3"], {"cluster": {"gpus_per_node": 2}, "other": {"x": 1}})
    assert origins == {"policy.model_name": f"{path}:2", "max_length": "max_length=3", "cluster.gpus_per_node": "profile"}


_SECTIONS = {
    "dpo.max_num_steps": st.integers(1, 99),
    "dpo.seed": st.integers(0, 99),
    "dpo.reference_policy_kl_penalty": st.sampled_from([0.1, 0.2, 1.0]),
    "policy.model_name": st.sampled_from(["a/b", "c"]),
    "policy.optimizer.lr": st.sampled_from([1e-3, 1e-4]),
    "data.train.limit": st.one_of(st.none(), st.integers(1, 9)),
    "checkpointing.enabled": st.booleans(),
}


def _spelled(value: object) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from(sorted(_SECTIONS)).flatmap(lambda key: st.tuples(st.just(key), _SECTIONS[key])), max_size=8))
@pytest.mark.slow
def test_overrides_merge_as_omegaconf_does_and_the_last_is_the_origin(given_: list[tuple[str, object]]):
    from omegaconf import OmegaConf

    dotlist = [f"{key}={_spelled(value)}" for key, value in given_]
    merged, last = OmegaConf.from_dotlist(dotlist), {key: word for (key, _), word in zip(given_, dotlist, strict=True)}
    run, _ = load_run(None, dotlist)
    origins = run_origins(None, dotlist)
    for key, word in last.items():
        value: object = run
        for part in key.split("."):
            value = getattr(value, part)
        assert value == OmegaConf.select(merged, key)
        assert origins[key] == word
