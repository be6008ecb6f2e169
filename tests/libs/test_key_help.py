"""The keys of a config as text."""

from __future__ import annotations

from nemotron_dpo.config import RunConfig
from nemotron_dpo.config.key_help import key_help
from nemotron_dpo.config.key_names import known_keys


def test_every_key_has_a_line_and_no_line_is_long_but_a_setting_s() -> None:
    lines = key_help(RunConfig)
    keys = [line.split()[0] for line in lines if line and not line.startswith("#")]
    assert sorted(keys) == sorted({*known_keys(), "data.validation"})
    assert all(len(line) <= 120 for line in lines if line.startswith("#"))


def test_types_defaults_and_meanings() -> None:
    shown = {line.split()[0]: " ".join(line.split()[1:]) for line in key_help(RunConfig) if line and not line.startswith("#")}
    for key, rest in {
        "dpo.max_num_steps": "whole number 500",
        "dpo.preference_loss": "text or mapping dpo",
        "dpo.label_smoothing": "number or null 0 or 0.001 share of pairs whose responses are thought swapped",
        "policy.precision": "bfloat16 | float32 bfloat16",
        "policy.optimizer.betas": "list of number [0.9, 0.999]",
        "policy.scheduler.decay_steps": "whole number or null null",
        "data.validation": "a section for each name []",
        "checkpointing.save_optimizer": "true or false false",
    }.items():
        assert shown[key] == rest


def test_a_glob_is_of_the_whole_key_or_of_its_last_part() -> None:
    assert [line.split()[0] for line in key_help(RunConfig, "lr")][-1] == "policy.optimizer.lr"
    found = [line.split()[0] for line in key_help(RunConfig, "policy.optimizer.*") if not line.startswith("#")]
    assert found == [f"policy.optimizer.{name}" for name in ("name", "lr", "weight_decay", "betas", "eps")]
    assert key_help(RunConfig, "nothing") == []
