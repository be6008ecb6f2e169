"""Configs of TRL, Axolotl and LLaMA-Factory in our keys: each key of theirs has a row, and each value its meaning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from nemotron_dpo.config import load_run
from nemotron_dpo.config.key_names import known_keys
from nemotron_dpo.config.theirs import Choices, Converted, as_yaml, convert
from nemotron_dpo.config.theirs.tables import AXOLOTL, COUNTS, FORMER, IDLE, LLAMA_FACTORY, REFUSED
from nemotron_dpo.errors import UserError
from nemotron_dpo.training.schedule import rates
from support.trl_fields import FIELDS

LEAST = {"model_name_or_path": "m", "dataset_name": "rows.jsonl"}


def made(choices: Choices | None = None, /, **theirs: Any) -> Converted:
    return convert({**LEAST, **theirs}, choices or Choices())


def values(choices: Choices | None = None, /, **theirs: Any) -> dict[str, Any]:
    converted = made(choices, **theirs)
    assert not converted.refusals, converted.refusals
    return {item.key: item.value for item in converted.written}


def test_every_field_of_trl_has_one_row() -> None:
    every = {key: value for of_class in FIELDS.values() for key, value in of_class.items()}
    for key, default in every.items():
        assert [key in table for table in (COUNTS, IDLE, REFUSED)].count(True) == 1, key
        if key in COUNTS:
            assert COUNTS[key][0] == default, key
        if key in REFUSED:
            assert default in REFUSED[key].taken, key
    own = {
        "num_processes",
        "warmup_ratio",
        "rpo_alpha",
        "simpo_gamma",
        "datasets",
        "max_samples",
        "wandb_project",
        "wandb_entity",
    }
    assert COUNTS.keys() - every.keys() == own
    for names in (FORMER, AXOLOTL, LLAMA_FACTORY):
        assert set(names.values()) <= {*COUNTS, *IDLE, *REFUSED}
        assert not names.keys() & every.keys() - {"optimizer"}


def test_what_counts_here_is_a_key_of_ours() -> None:
    later = ("dpo.label_smoothing", "dpo.discopop_tau", "dpo.ld_alpha", "dpo.f_divergence", "dpo.f_alpha", "dpo.wpo_weighting",
             "dpo.gamma", "dpo.preference_loss", "policy.hf_config_overrides.router_aux_loss_coef", "data.train.dataset_name",
             "data.validation.split", "logger.wandb.name", "logger.wandb.project", "logger.wandb.entity",
             "logger.<tracker>_enabled", "cluster")  # fmt: skip
    for key, (_, ours) in COUNTS.items():
        for name in ours.partition(", where")[0].split(", "):
            assert name in known_keys() or name in later, (key, name)


# what TRL's config says -> what ours must say, by the meaning that TRL 1.16 and transformers 5.23 give it
MEANINGS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    # the defaults of TRL where its config is silent
    ({}, {"dpo.reference_policy_kl_penalty": 0.1, "policy.optimizer.lr": 1e-6, "policy.scheduler.name": "linear",
          "policy.train_global_batch_size": 8, "dpo.max_num_epochs": 3, "policy.max_total_sequence_length": 1024,
          "policy.precision": "bfloat16", "policy.megatron_cfg.activation_checkpointing": True, "dpo.seed": 42,
          "policy.optimizer.weight_decay": 0.0, "checkpointing.save_period": 500, "checkpointing.keep_top_k": None,
          "checkpointing.save_optimizer": True, "dpo.preference_loss": "dpo", "data.validation": None, "dpo.val_period": 0}),
    # YAML reads 5e-7 as text
    ({"learning_rate": "5e-7", "beta": "0.3"}, {"policy.optimizer.lr": 5e-7, "dpo.reference_policy_kl_penalty": 0.3}),
    ({"per_device_train_batch_size": 4, "gradient_accumulation_steps": 8, "num_processes": 2},
     {"policy.train_global_batch_size": 64, "cluster.gpus_per_node": 2, "cluster.num_nodes": 1}),
    ({"num_processes": 32}, {"policy.train_global_batch_size": 256, "cluster.gpus_per_node": 8, "cluster.num_nodes": 4}),
    # max_steps overrides the epochs, however few they are
    ({"max_steps": 100, "num_train_epochs": 1}, {"dpo.max_num_steps": 100, "dpo.max_num_epochs": 1_000_000}),
    ({"num_train_epochs": 2}, {"dpo.max_num_steps": 1_000_000_000, "dpo.max_num_epochs": 2}),
    # a warm-up below 1 is a part of the steps, rounded up; constant has none
    ({"max_steps": 25, "warmup_steps": 0.1}, {"policy.scheduler.warmup_steps": 3}),
    ({"max_steps": 25, "warmup_ratio": 0.1}, {"policy.scheduler.warmup_steps": 3}),
    ({"lr_scheduler_type": "constant", "warmup_steps": 7}, {"policy.scheduler.name": "constant", "policy.scheduler.warmup_steps": 0}),
    ({"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 7}, {"policy.scheduler.warmup_steps": 7}),
    ({"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": 0.1}, "learning_rate": 1e-5},
     {"policy.scheduler.name": "cosine", "policy.scheduler.min_lr": 1e-5 * 0.1}),
    ({"bf16": False}, {"policy.precision": "float32"}),
    ({"use_peft": True, "lora_dropout": 0.0, "lora_r": 16, "lora_alpha": 32, "use_rslora": True, "lora_target_modules": "all-linear"},
     {"policy.megatron_cfg.peft.dim": 16, "policy.megatron_cfg.peft.alpha": 128, "policy.megatron_cfg.peft.target_modules":
      ["linear_qkv", "linear_proj", "linear_fc1", "linear_fc2"]}),
    ({"use_peft": True, "lora_dropout": 0.0, "lora_target_modules": ["q_proj", "v_proj", "k_proj"]},
     {"policy.megatron_cfg.peft.target_modules": ["linear_qkv"]}),
    ({"rpo_alpha": 0.5}, {"dpo.sft_loss_weight": 0.5, "dpo.sft_average_log_probs": True}),
    ({"eval_strategy": "steps", "eval_steps": 20, "dataset_name": "org/set", "dataset_test_split": "test_prefs", "num_processes": 2},
     {"dpo.val_period": 20, "dpo.val_at_end": False, "dpo.val_batches": -1, "dpo.val_global_batch_size": 16,
      "data.train.dataset_name": "org/set", "data.train.split": "train", "data.validation.split": "test_prefs"}),
    ({"eval_strategy": "steps", "logging_steps": 5, "eval_on_start": True}, {"dpo.val_period": 5, "dpo.val_at_start": True}),
    ({"evaluation_strategy": "steps", "eval_steps": 0.25, "max_steps": 10}, {"dpo.val_period": 3}),
    ({"save_strategy": "no"}, {"checkpointing.save_period": 1_000_000_000}),
    ({"load_best_model_at_end": True, "metric_for_best_model": "eval_rewards/accuracies", "save_total_limit": 2,
      "save_only_model": True},
     {"checkpointing.metric_name": "val:validation-default_accuracy", "checkpointing.higher_is_better": True,
      "checkpointing.keep_top_k": 2, "checkpointing.save_optimizer": False}),
    ({"report_to": ["wandb", "tensorboard"], "run_name": "x"},
     {"logger.wandb_enabled": True, "logger.tensorboard_enabled": True, "logger.wandb.name": "x"}),
]  # fmt: skip


def test_each_value_means_what_it_means_there() -> None:
    for theirs, expected in MEANINGS:
        found = values(**theirs)
        assert {key: found.get(key, "absent") for key in expected} == expected, theirs


def test_parts_of_an_epoch_need_the_number_of_pairs() -> None:
    for theirs, key, expected in (
        ({"warmup_ratio": 0.1}, "policy.scheduler.warmup_steps", 15),  # 3 epochs of 50 steps
        ({"save_strategy": "epoch"}, "checkpointing.save_period", 50),
        ({"eval_strategy": "epoch"}, "dpo.val_period", 50),
        ({"save_steps": 0.2}, "checkpointing.save_period", 30),
    ):
        (refusal,) = made(**theirs).refusals
        assert "not known" in refusal.message
        assert "num_pairs=N" in str(refusal.remedy)
        assert values(Choices(num_pairs=407), **theirs)[key] == expected


REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({"fp16": True}, "fp16 is True, which computes in another precision"),
    ({"optim": "paged_adamw_8bit"}, "optim is paged_adamw_8bit, which is another optimizer"),
    ({"truncation_mode": "keep_end"}, "truncation_mode is keep_end, which cuts prompts on the left"),
    ({"max_prompt_length": 512}, "max_prompt_length is 512, which cuts prompts"),
    ({"use_dora": True}, "use_dora is True"),
    ({"load_in_4bit": True}, "load_in_4bit is True, which trains over quantized weights"),
    ({"sync_ref_model": True}, "sync_ref_model is True"),
    ({"model_revision": "v2"}, "model_revision is v2"),
    ({"lr_scheduler_type": "polynomial"}, "lr_scheduler_type is polynomial, which is another schedule"),
    ({"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"num_cycles": 2}}, "lr_scheduler_kwargs is {'num_cycles': 2}"),
    ({"loss_type": "kto_pair"}, "loss_type has kto_pair, which is not built"),
    ({"loss_type": ["sigmoid", "made_up"]}, "loss_type has made_up, which is not built"),
    ({"loss_type": ["sigmoid"], "loss_weights": [0.5, 0.5]}, "loss_weights has 2 weights for 1 losses"),
    ({"num_train_epochs": 0.5}, "num_train_epochs is 0.5, and whole epochs are built"),
    ({"max_length": None, "dataset_name": None}, "dataset_name is not set"),
    ({"use_peft": True, "lora_target_modules": "all-linear"}, "lora_dropout is 0.05, and dropout is not built"),
    ({"use_peft": True, "lora_dropout": 0, "lora_target_modules": ["q_proj", "v_proj"]}, "has q_proj, v_proj without its neighbours"),
    ({"use_peft": True, "lora_dropout": 0}, "lora_target_modules is not set"),
    ({"use_peft": True, "lora_dropout": 0, "lora_target_modules": "all", "lora_r": 8, "use_rslora": True}, "lora_alpha comes to 90.5"),
    ({"learning_rate": "fast"}, "learning_rate is 'fast' where a number is due"),
    ({"load_best_model_at_end": True, "metric_for_best_model": "eval_bleu"}, "metric_for_best_model is eval_bleu"),
    ({"datasets": [{"path": "a"}, {"path": "b"}]}, "datasets names several data sets"),
    ({"neftune_noise_alpha": 5}, "neftune_noise_alpha is 5, which adds noise"),
]  # fmt: skip


def test_what_would_change_the_result_is_refused_unless_it_is_ignored() -> None:
    for theirs, message in REFUSALS:
        refusals = made(**theirs).refusals
        assert [f"{refusal.key} {refusal.message}" for refusal in refusals if message in f"{refusal.key} {refusal.message}"], (
            theirs,
            refusals,
        )
        assert not made(Choices(ignore=tuple(refusal.key for refusal in refusals)), **theirs).refusals, theirs


def test_nothing_is_dropped() -> None:
    theirs = {
        **LEAST,
        "logging_first_step": True,
        "push_to_hub": True,
        "frobnicate": 1,
        "torch_dtype": "auto",
        "max_prompt_length": 9,
    }
    converted = convert(theirs, Choices(ignore=("max_prompt_length",)))
    said = {*converted.idle, *converted.unknown, *converted.ignored, *LEAST}
    assert said == theirs.keys()
    assert (converted.unknown, converted.ignored) == (("frobnicate",), ("max_prompt_length",))
    text = as_yaml(converted, "theirs.yaml")
    for word in (
        "# UNKNOWN, and without effect here: frobnicate",
        "# Without counterpart: torch_dtype",
        "Left out on request: max_p",
    ):
        assert word in text


AX = {"base_model": "m", "rl": "dpo", "sequence_len": 4096, "micro_batch_size": 2, "gradient_accumulation_steps": 4, "num_epochs": 4,
      "lr_scheduler": "cosine", "learning_rate": "2e-4", "adapter": "lora", "lora_r": 32, "lora_alpha": 16, "lora_target_linear": True,
      "optimizer": "adamw_torch", "bf16": "auto", "warmup_steps": 10, "evals_per_epoch": 4, "saves_per_epoch": 1,
      "datasets": [{"path": "org/set", "split": "train", "type": "chat_template.default"}]}  # fmt: skip
LF = {"model_name_or_path": "m", "stage": "dpo", "finetuning_type": "lora", "lora_rank": 8, "lora_target": "all", "pref_beta": 0.2,
      "pref_loss": "sigmoid", "pref_ftx": 1.0, "cutoff_len": 512, "max_samples": 100, "max_steps": 9, "dataset": "demo"}  # fmt: skip


def test_axolotl_and_llama_factory_are_read_by_their_names() -> None:
    found = {item.key: item.value for item in convert(AX, Choices(num_pairs=320, processes=2)).written}
    expected = {"policy.model_name": "m", "policy.train_global_batch_size": 16, "policy.max_total_sequence_length": 4096,
                "policy.optimizer.lr": 2e-4, "policy.megatron_cfg.peft.dim": 32, "policy.megatron_cfg.peft.alpha": 16,
                "dpo.max_num_epochs": 4, "dpo.val_period": 5, "checkpointing.save_period": 20,
                "data.train.dataset_name": "org/set"}  # fmt: skip
    assert {key: found.get(key) for key in expected} == expected
    (refusal,) = convert(LF, Choices()).refusals
    assert (refusal.key, refusal.remedy) == ("dataset", "give train_data=FILE and ignore=[dataset]")
    choices = Choices(ignore=("dataset",), train_data="mine.jsonl")
    found = {item.key: item.value for item in convert(LF, choices).written}
    # alpha is twice the rank there, dropout none, the learning rate that of transformers
    expected = {"policy.megatron_cfg.peft.alpha": 16, "dpo.reference_policy_kl_penalty": 0.2, "dpo.sft_loss_weight": 1.0,
                "dpo.sft_average_log_probs": True, "data.train.path": "mine.jsonl", "data.train.limit": 100,
                "policy.optimizer.lr": 5e-5, "policy.precision": "float32"}  # fmt: skip
    assert {key: found.get(key) for key in expected} == expected
    for tree, message in (
        ({**AX, "rl": "kto"}, "is kto, and"),
        ({**LF, "stage": "sft"}, "is sft, and preference optimization"),
    ):
        assert message in convert(tree, Choices(num_pairs=99)).refusals[0].message


SCHEDULES = [("linear", {}, 3), ("cosine", {}, 3), ("linear", {}, 0), ("constant_with_warmup", {}, 3), ("constant", {}, 3),
             ("cosine_with_min_lr", {"min_lr": 1e-6}, 2)]  # fmt: skip


def test_the_rates_are_those_of_transformers(tmp_path: Path) -> None:
    from transformers import get_scheduler

    for name, options, warmup in SCHEDULES:
        text = as_yaml(
            made(lr_scheduler_type=name, lr_scheduler_kwargs=options or None, warmup_steps=warmup, max_steps=12), "t"
        )
        (tmp_path / "ours.yaml").write_text(text)
        run, _ = load_run(tmp_path / "ours.yaml", [])
        ours = run.policy.scheduler
        found = rates(ours.name, run.policy.optimizer.lr, 12, warmup_steps=ours.warmup_steps, min_lr=ours.min_lr,
                      warmup_init=ours.warmup_init, decay_steps=ours.decay_steps)  # fmt: skip
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1e-6)
        theirs = get_scheduler(name, optimizer, warmup, 12, scheduler_specific_kwargs=options or None)
        expected = []
        for _ in range(12):
            expected.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            theirs.step()
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-18), name


def test_a_value_that_our_loader_would_fill_in_is_refused() -> None:
    with pytest.raises(UserError, match=r"'\$\{oc.env:HF_TOKEN\}' would be filled in by our loader"):
        as_yaml(made(output_dir="${oc.env:HF_TOKEN}"), "theirs.yaml")


def test_no_secret_is_written() -> None:
    secret = "hf_" + "abcdefghij" * 3
    assert secret not in as_yaml(made(hub_token=secret), "theirs.yaml")
    comments = [line.partition(" # ")[2] for line in as_yaml(made(run_name=f"x {secret}"), "theirs.yaml").splitlines()]
    assert "run_name: x ***" in comments


COUNTERPARTS = {
    "policy.rpo_alpha": "TRL's rpo_alpha is dpo.sft_loss_weight, dpo.sft_average_log_probs here",
    "policy.beta": "TRL's beta is dpo.reference_policy_kl_penalty here",
    "checkpointing.save_total_limit": "TRL's save_total_limit is checkpointing.keep_top_k here",
    "policy.learning_rate": "TRL's learning_rate is policy.optimizer.lr here",
    "policy.warmup_ratio": "TRL's warmup_ratio is policy.scheduler.warmup_steps here",
    "policy.lora_r": "TRL's lora_r is policy.megatron_cfg.peft.dim here",
    "policy.gradient_checkpointing": "TRL's gradient_checkpointing is policy.megatron_cfg.activation_checkpointing here",
    "policy.bf16": "TRL's bf16 is policy.precision here",
    "policy.max_prompt_length": "TRL's max_prompt_length cuts prompts, and is not built",
    "dpo.reference_free": "TRL's reference_free is a loss without a reference, and is not built: "
    "dpo.preference_loss=cpo with dpo.cpo_alpha=0 is dpo without one",
    "policy.sequence_len": "Axolotl's sequence_len is policy.max_total_sequence_length here",
    "dpo.pref_ftx": "LLaMA-Factory's pref_ftx is dpo.sft_loss_weight, dpo.sft_average_log_probs here",
}


def test_an_unknown_key_of_theirs_names_its_counterpart() -> None:
    for key, counterpart in COUNTERPARTS.items():
        with pytest.raises(UserError) as caught:
            load_run(None, [f"{key}=1"])
        assert str(caught.value).endswith(f'"{key}" is no known key: {counterpart}'), key
    with pytest.raises(UserError, match=r"did you mean policy\.optimizer\.lr\?"):  # a slip of our own key is none of theirs
        load_run(None, ["policy.optimizer.lrr=1"])
