"""Numbers out of their range, and settings that come to something else together than each alone says."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemotron_dpo.config import DatasetConfig, RunConfig, load_plain, load_run, ranking, seconds_until
from nemotron_dpo.config.steps import PreferenceScoreConfig
from nemotron_dpo.errors import UserError

VALIDATED = "data.validation.path=v.jsonl"
LOSS = "val:validation-default_loss"
CHAIN = "{name: torch.optim.lr_scheduler.StepLR, kwargs: {step_size: 3}}"


def _error(overrides: list[str], config: Path | None = None) -> str:
    with pytest.raises(UserError) as caught:
        load_run(config, overrides)
    return str(caught.value)


NUMBERS = [
    ("policy.optimizer.lr", ".inf", "inf where a finite number is due"),
    ("policy.optimizer.lr", "1e999", "inf where a finite number is due"),
    ("policy.optimizer.lr", "nan", "nan where a finite number is due"),
    ("policy.optimizer.lr", "0", "0.0 where more than 0 is due"),
    ("policy.optimizer.lr", "-1e-6", "-1e-06 where more than 0 is due"),
    ("policy.optimizer.betas", "[0.9, 1]", "[0.9, 1.0] where less than 1 is due"),
    ("policy.optimizer.betas", "[-0.1, 0.9]", "[-0.1, 0.9] where at least 0 is due"),
    ("policy.optimizer.betas", "[0.9, .nan]", "nan where a finite number is due"),
    ("policy.optimizer.eps", "0", "0.0 where more than 0 is due"),
    ("policy.optimizer.weight_decay", "-0.1", "-0.1 where at least 0 is due"),
    ("policy.max_grad_norm", "0", "0.0 where more than 0 is due: null leaves gradients as they are"),
    ("policy.max_grad_norm", ".inf", "inf where a finite number is due"),
    ("policy.scheduler.min_lr", "-.inf", "-inf where a finite number is due"),
    ("policy.megatron_cfg.peft.dropout", "1", "1.0 where less than 1 is due"),
    ("dpo.reference_policy_kl_penalty", "-0.1", "-0.1 where at least 0 is due"),
    ("dpo.reference_policy_kl_penalty", ".nan", "nan where a finite number is due"),
    ("dpo.preference_loss_weight", ".inf", "inf where a finite number is due"),
    ("dpo.seed", "-1", "-1 where at least 0 is due"),
    ("dpo.seed", str(2**63), f"{2**63} where less than {2**63} is due"),
    ("checkpointing.keep_top_k", "0", "0 where at least 1 is due"),
]


def test_numbers_out_of_range_are_refused_with_their_override():
    for key, value, words in NUMBERS:
        assert _error([f"{key}={value}"]) == f'{key}={value}: "{key}" is {words}'
    assert _error(["policy.optimizer.lr=1" + "0" * 400]).endswith("where a finite number is due")
    with pytest.raises(UserError, match="is inf where a finite number is due"):
        load_plain(PreferenceScoreConfig, None, ["reference_policy_kl_penalty=.inf"])


def test_secrets_of_trackers_belong_into_the_environment():
    for key, value, variable in (
        ("mlflow.tracking_uri", "http://me:hunter2@host", "MLFLOW_TRACKING_URI"),
        ("mlflow.tracking_uri", "postgresql://me:hunter2@host/db", "MLFLOW_TRACKING_URI"),
        ("wandb.api_key", "hunter2", "WANDB_API_KEY"),
        ("swanlab.api_key", "hunter2", "SWANLAB_API_KEY"),
    ):
        line = _error([f"logger.{key}={value}"])
        assert line.endswith(f": set {variable} in the environment")
        assert "hunter2" not in line
    assert load_run(None, ["logger.mlflow_enabled=true", "logger.mlflow.tracking_uri=http://host:5000"])[1] == []


def test_line_is_that_of_the_spelling_that_was_used(tmp_path: Path):
    path = tmp_path / "it.yaml"
    nested = "policy:\n  optimizer:\n    kwargs:\n      weight_decay: 0.1\n      lr: .inf\n"
    megatron = "policy:\n  megatron_cfg:\n    enabled: true\n    optimizer:\n      lr: 1.0e-6\n      adam_eps: 0\n"
    for text, override, place in (
        (nested, "policy.optimizer.weight_decay=0.2", '5: "policy.optimizer.lr" is inf'),
        (megatron, "dpo.seed=1", '6: "policy.optimizer.eps" is 0.0'),
    ):
        path.write_text(text)
        assert _error([override], path).startswith(f"{path}:{place}")


TEXTS = [
    ("checkpointing.checkpoint_must_save_by", "10:00:00:00", "a number to YAML (2160000)"),
    ("checkpointing.checkpoint_dir", "20261126", "a number to YAML (20261126)"),
    ("data.train.path", "1.5", "a number to YAML (1.5)"),
    ("policy.model_name", "yes", "true or false to YAML (true)"),
]


def test_text_that_yaml_reads_as_something_else():
    for key, value, named in TEXTS:
        assert _error([f"{key}={value}"]) == f'{key}={value}: "{key}" is {named} where text is due: quote it'
        run = load_run(None, [f'{key}="{value}"'])[0]
        assert value in str(run)


def test_time_limits():
    assert seconds_until("00:00:01:30") == 90.0
    assert seconds_until("1:02:03:04") == 93784.0
    for text in ("90", "00:01:30", "a:b:c:d", "-1:00:00:00", "1:00:00:00\n", f"{'9' * 400}:00:00:00", f"{'9' * 5000}:0:0:0"):
        with pytest.raises(UserError, match="where DD:HH:MM:SS is due"):
            seconds_until(text)
    override = "checkpointing.checkpoint_must_save_by='00:01'"
    assert _error([override]) == f"{override}: \"checkpointing.checkpoint_must_save_by\" is '00:01' where DD:HH:MM:SS is due"


REFUSED = [
    (["dpo.preference_loss_weight=0"], '"dpo.preference_loss_weight" is 0, and so is dpo.sft_loss_weight: nothing'),
    (["policy.scheduler.min_lr=1e-3"], '"policy.scheduler.min_lr" is 0.001, above policy.optimizer.lr (5e-07)'),
    (
        [f"policy.scheduler=[{CHAIN}, {CHAIN}, {CHAIN}, {{milestones: [4, 4]}}]"],
        '"policy.scheduler" has milestones [4, 4]',
    ),
    ([f"policy.scheduler=[{CHAIN}, {CHAIN}, {{milestones: [0]}}]"], '"policy.scheduler" has milestones [0], and each must'),
    (
        [f"policy.scheduler=[{CHAIN}, {CHAIN}, {{milestones: [1]}}, {{milestones: [2]}}]"],
        '"policy.scheduler" holds an entry that is neither',
    ),
    (["policy.scheduler={name: torch.optim.lr_scheduler.StepLR, kwargs: 3}"], "is 3 where a mapping is due"),
    (
        ["checkpointing.enabled=false", 'checkpointing.checkpoint_must_save_by="0:10:00:00"'],
        '"checkpointing.checkpoint_must_save_by" would end the run, and with checkpointing.enabled=false nothing',
    ),
    (["data.val_data_paths={a/b: v.jsonl}"], "\"data.validation\" has a set called 'a/b': its name is part of file and"),
]


def test_settings_that_cannot_be_meant_together():
    for overrides, words in REFUSED:
        message = _error(overrides)
        assert words in message, message
        assert message.startswith(overrides[-1]), message  # the override that says so


SFT = ["dpo.preference_loss_weight=0", "dpo.sft_loss_weight=1"]
METRICS = [
    # overrides, name: None where it is fine, else what is said of it
    ([VALIDATED], LOSS, None),
    ([VALIDATED], "train:accuracy", None),
    ([VALIDATED], "val:validation-default_rewards_chosen_mean", None),
    ([VALIDATED], "val:validation-default_acuracy", "which nothing measures: did you mean val:validation-default_accuracy?"),
    ([VALIDATED], "val_loss", "which nothing measures: there are train:{loss, preference_loss, "),
    ([VALIDATED], "val:validation-default_grad_norm", "which nothing measures"),
    ([], "train:loss", None),
    ([], "val:validation-default_accuracy", "which nothing measures: without validation there are train:{loss,"),
    (["data.val_data_paths={hard: v.jsonl}"], "val:validation-hard_loss", None),
    (["data.val_data_paths={hard: v.jsonl}"], "val:validation-herd_loss", "did you mean val:validation-hard_loss?"),
    ([VALIDATED, "dpo.val_period=0", "dpo.val_at_end=false"], LOSS, "of a validation that never runs while training"),
    ([VALIDATED, "dpo.val_period=0", "dpo.val_at_end=false", "checkpointing.keep_top_k=null"], LOSS, None),
    ([VALIDATED, "dpo.val_period=0"], LOSS, None),
    ([VALIDATED, "dpo.val_at_end=false"], LOSS, None),
    (["checkpointing.enabled=false"], "anything", None),
    ([VALIDATED], "val:validation-default_sft_loss", "which is 0 at every step with the objective of this run (preference)"),
    ([VALIDATED], "val:validation-default_entropy", "which is measured where it is asked for: set logger.token_metrics=true"),
    ([VALIDATED, "logger.token_metrics=true"], "val:validation-default_entropy", None),
    (["logger.token_metrics=true"], "train:mean_token_accuracy", None),
    (["logger.token_metrics=true"], "train:mean_token_acc", "did you mean train:mean_token_accuracy?"),
    (["logger.token_metrics=true"], "val:validation-default_entropy", "which nothing measures"),
    (SFT, "train:sft_loss", None),
    (SFT, "train:preference_loss", "which is 0 at every step with the objective of this run (sft): rank by the loss"),
    (SFT, "train:accuracy", "which is 0 at every step"),
    ([*SFT, VALIDATED], "val:validation-default_rewards_chosen_mean", "which is 0 at every step"),
]


def test_metric_that_checkpoints_are_ranked_by():
    for overrides, name, words in METRICS:
        override = f"checkpointing.metric_name={name}"
        if words is None:
            load_run(None, [*overrides, override])
            continue
        message = _error([*overrides, override])
        assert message.startswith(f"{override}: \"checkpointing.metric_name\" is '{name}', "), message
        assert words in message, message


def test_metric_of_the_sets_that_the_caller_validates():
    override = "checkpointing.metric_name=val:validation-easy_loss"
    run, _ = load_run(None, [override], validation=["easy"])
    assert ranking(run, ["easy"]) == "val:validation-easy_loss"
    with pytest.raises(UserError, match="which nothing measures"):
        load_run(None, [override, "data.val_data_paths={easy: v.jsonl}"], validation=[])


def test_default_metric_gives_way_to_the_newest():
    assert ranking(RunConfig(), ["default"]) == LOSS
    assert ranking(RunConfig(), []) is None
    run, warnings = load_run(None, ["data.val_data_paths={hard: v.jsonl}"])
    assert run.data.validation == (("hard", DatasetConfig("v.jsonl")),)
    assert ranking(run, ["hard"]) is None
    (warning,) = warnings
    assert warning == (
        f'"checkpointing.metric_name" is {LOSS}, and the validation sets are hard: the newest checkpoints count as best'
    )


REMARKS = [
    ([], []),
    (["dpo.reference_policy_kl_penalty=0"], ["dpo.reference_policy_kl_penalty=0: ", "ln 2 whatever the policy does"]),
    (["dpo.max_num_steps=51"], []),
    (["dpo.max_num_steps=50"], ['"policy.scheduler.warmup_steps" is 50, and the run has no more than 50 steps']),
    (["policy.scheduler.warmup_steps=500"], ["policy.scheduler.warmup_steps=500: ", "all of it is warm-up"]),
    (["checkpointing.metric_name=train:accuracy"], ["takes lower values of train:accuracy for better: it keeps the worst"]),
    (["checkpointing.metric_name=train:accuracy", "checkpointing.higher_is_better=true"], []),
    (
        ["logger.token_metrics=true", "checkpointing.metric_name=train:mean_token_accuracy"],
        ["takes lower values of train:mean_token_accuracy for better"],
    ),
    ([VALIDATED, "checkpointing.higher_is_better=true"], [f"takes higher values of {LOSS} for better"]),
    (["checkpointing.metric_name=train:grad_norm", "checkpointing.higher_is_better=true"], []),
    (["checkpointing.metric_name=train:accuracy", "checkpointing.keep_top_k=null"], []),
    (["checkpointing.enabled=false"], []),
    (["checkpointing.ft_save_period=5"], ["without save_optimizer no run goes on from these steps"]),
    (["checkpointing.ft_save_period=5", "checkpointing.save_optimizer=true"], []),
    (["checkpointing.save_period=3", "checkpointing.enabled=false"], ['"checkpointing.save_period" has no meaning here']),
    (["policy.megatron_cfg.peft.dim=8"], ['"policy.megatron_cfg.peft.dim" has no meaning here']),
    (["policy.megatron_cfg.peft={dim: 8, enabled: true}"], []),
    (
        ["policy.sequence_packing={enabled: false, train_mb_tokens: 64}"],
        ['"policy.sequence_packing.train_mb_tokens" has no meaning here'],
    ),
    (["policy.train_micro_batch_size=2"], ['"policy.train_micro_batch_size" has no meaning here']),
    (["policy.train_micro_batch_size=2", "policy.sequence_packing.enabled=false"], []),
    (["policy.scheduler={name: constant, min_lr: 1e-8}"], ['"policy.scheduler.min_lr" has no meaning here']),
    (["dpo.sft_average_log_probs=true"], ['"dpo.sft_average_log_probs" has no meaning here']),
    (["dpo.sft_average_log_probs=true", "dpo.preference_average_log_probs=true"], []),
    (
        ["dpo.preference_loss_weight=0", "dpo.sft_loss_weight=1", "dpo.reference_policy_kl_penalty=0.1"],
        ['"dpo.reference_policy_kl_penalty" has no meaning here'],
    ),
    (
        [VALIDATED, "dpo.val_period=0", "dpo.val_at_end=false", "dpo.val_at_start=false", "checkpointing.metric_name=null"],
        ["dpo.val_period=0: ", "nothing is ever validated"],
    ),
]


def test_settings_that_come_to_nothing_are_remarked_on_once():
    for overrides, parts in REMARKS:
        warnings = load_run(None, overrides)[1]
        assert len(warnings) == bool(parts), (overrides, warnings)
        assert all(part in warnings[0] for part in parts), (overrides, warnings)


def test_section_that_a_file_switches_off_is_not_remarked_on(tmp_path: Path):
    """As NeMo-RL's own configs have it; where an override sets one of its keys, or no file says so, it is."""
    path = tmp_path / "it.yaml"
    for text, overrides, count in (
        ("policy: {megatron_cfg: {peft: {enabled: false, dim: 8}}}\n", [], 0),
        ("policy: {megatron_cfg: {peft: {enabled: false, dim: 8}}}\n", ["policy.megatron_cfg.peft.alpha=16"], 1),
        ("policy: {megatron_cfg: {peft: {dim: 8}}}\n", [], 1),
        ("checkpointing: {save_period: 3}\n", ["checkpointing.enabled=false"], 1),
        ("checkpointing: {enabled: false, save_period: 3, pretrained_checkpoint: {path: p}}\n", [], 0),
    ):
        path.write_text(text)
        assert len(load_run(path, overrides)[1]) == count, text
