"""Our values of theirs: length of the run, batch, schedule, precision, adapters. Each function takes a few keys together."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from nemotron_dpo.config.theirs.given import Given

UNLIMITED_STEPS, UNLIMITED_EPOCHS = 1_000_000_000, 1_000_000
_GPUS_A_NODE = 8
_SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant", "constant_with_warmup": "constant",
              "cosine_with_min_lr": "cosine"}  # fmt: skip
_PARTS = {"linear_qkv": ("q_proj", "k_proj", "v_proj"), "linear_proj": ("o_proj",), "linear_fc1": ("gate_proj", "up_proj"),
          "linear_fc2": ("down_proj",)}  # fmt: skip
_WHOLE = {"qkv_proj": "linear_qkv", "gate_up_proj": "linear_fc1"}
_ALL = ("all", "all-linear", True)


@dataclass(frozen=True)
class TheirRun:
    """What a config does not say: how many processes train, and how many pairs there are (None: unknown)."""

    processes: int | None = None
    num_pairs: int | None = None


def model(given: Given, run: TheirRun) -> None:
    name = given.get("model_name_or_path")
    if name is None:
        given.refuse("model_name_or_path", "is not set", "say which model is trained")
    given.write("policy.model_name", name, "model_name_or_path")


def batch(given: Given, run: TheirRun) -> int:
    """Writes the pairs of a step, which it returns, and the processes that train them."""
    processes = run.processes or int(given.get("num_processes") or 1)
    note = f"on {processes} processes" if run.processes or given.says("num_processes") else "on 1 process: say processes=N"
    pairs = int(given.get("per_device_train_batch_size") * given.get("gradient_accumulation_steps")) * processes
    keys = ("per_device_train_batch_size", "gradient_accumulation_steps", "num_processes")
    given.write("policy.train_global_batch_size", pairs, *keys, note=f"pairs, {note}")
    nodes = processes // _GPUS_A_NODE if processes % _GPUS_A_NODE == 0 and processes > _GPUS_A_NODE else 1
    given.write("cluster.gpus_per_node", processes // nodes, "num_processes", note=note)
    given.write("cluster.num_nodes", nodes, "num_processes", note=note)
    if not given.values.get("dataloader_drop_last"):
        given.differ("dataloader_drop_last", "an incomplete last batch of an epoch is left out here, and trained there")
    return pairs


def length(given: Given, run: TheirRun, pairs: int) -> int | None:
    """Writes epochs and steps; the number of steps where it is known."""
    steps, epochs = int(given.get("max_steps")), given.get("num_train_epochs")
    if steps > 0:
        given.write("dpo.max_num_steps", steps, "max_steps")
        given.write("dpo.max_num_epochs", UNLIMITED_EPOCHS, "max_steps", note="the steps count alone")
        return steps
    if epochs != int(epochs) or epochs < 1:
        given.refuse("num_train_epochs", f"is {epochs:g}, and whole epochs are built", "give max_steps")
    epochs = max(1, int(epochs))
    given.write("dpo.max_num_epochs", epochs, "num_train_epochs")
    given.write("dpo.max_num_steps", UNLIMITED_STEPS, "num_train_epochs", note="the epochs count alone")
    return None if run.num_pairs is None else epochs * (run.num_pairs // pairs)


def schedule(given: Given, steps: int | None) -> None:
    theirs = str(given.get("lr_scheduler_type")).lower()
    options = given.get("lr_scheduler_kwargs") or {}
    if theirs not in _SCHEDULES:
        given.refuse("lr_scheduler_type", f"is {theirs}, which is another schedule", f"there are {', '.join(_SCHEDULES)}")
    name, key = _SCHEDULES.get(theirs, "constant"), "warmup_steps" if given.says("warmup_steps") else "warmup_ratio"
    rate, warmup = given.get("learning_rate"), _part(given, key, steps)
    given.write("policy.optimizer.lr", rate, "learning_rate")
    given.write("policy.scheduler.name", name, "lr_scheduler_type")
    note = "constant has no warm-up in transformers" if theirs == "constant" and warmup else ""
    given.write("policy.scheduler.warmup_steps", 0 if note else warmup, key, note=note)
    given.write("policy.scheduler.warmup_init", 0.0, key, note="transformers' first step of a warm-up has the rate 0")
    given.write(
        "policy.scheduler.min_lr", _least(given, options, rate, theirs), "lr_scheduler_kwargs", note="where a decay ends"
    )


def _least(given: Given, options: Any, rate: float, theirs: str) -> float:
    known = {"min_lr", "min_lr_rate"} if theirs == "cosine_with_min_lr" else set()
    if not isinstance(options, dict) or options.keys() - known:
        given.refuse(
            "lr_scheduler_kwargs", f"is {options}, which changes the schedule", "min_lr of cosine_with_min_lr is built"
        )
        return 0.0
    return float(options.get("min_lr") or rate * float(options.get("min_lr_rate") or 0.0))


def _part(given: Given, key: str, steps: int | None) -> int:
    """A number of steps; below 1 it is a part of all of them, rounded up as transformers does."""
    value = given.get(key)
    if (value >= 1 and key == "warmup_steps") or value == 0:
        return int(value)
    if steps is None:
        given.refuse(key, f"is {value:g} of a number of steps that is not known", "say num_pairs=N, or give max_steps")
        return 0
    return math.ceil(steps * value)


def every(given: Given, key: str, steps: int | None, pairs: int, run: TheirRun) -> int:
    """A period in steps, which may be given as a part of the run."""
    value = given.get(key)
    if value >= 1:
        return int(value)
    if steps is None:
        given.refuse(key, f"is {value:g} of a number of steps that is not known", "say num_pairs=N, or give max_steps")
        return 1
    return max(1, math.ceil(steps * value))


def epoch_steps(given: Given, key: str, pairs: int, run: TheirRun) -> int:
    """The steps of an epoch, for what `key` asks once in each."""
    if run.num_pairs is None:
        given.refuse(key, f"is {given.get(key)}, and the steps of an epoch are not known", "say num_pairs=N, or give steps")
        return 1
    return max(1, run.num_pairs // pairs)


def optimizer(given: Given) -> None:
    given.write("policy.optimizer.weight_decay", given.get("weight_decay"), "weight_decay")
    given.write("policy.optimizer.betas", [given.get("adam_beta1"), given.get("adam_beta2")], "adam_beta1", "adam_beta2")
    given.write("policy.optimizer.eps", given.get("adam_epsilon"), "adam_epsilon")
    given.write("policy.max_grad_norm", given.get("max_grad_norm"), "max_grad_norm")
    given.write("dpo.seed", int(given.get("seed")), "seed")


def precision(given: Given) -> None:
    """TRL computes in bfloat16 unless it is told not to, or told to take fp16, which is refused."""
    said = given.get("bf16")
    is_bfloat = said in (None, True, "auto", "true", "full")
    given.write(
        "policy.precision", "bfloat16" if is_bfloat else "float32", "bf16", note="" if given.says("bf16") else "their default"
    )
    recompute = bool(given.get("gradient_checkpointing"))
    given.write("policy.megatron_cfg.activation_checkpointing", recompute, "gradient_checkpointing")
    longest = given.get("max_length")
    if not isinstance(longest, int | float) or longest < 2:
        given.refuse("max_length", "is no length, and one is needed here", "give the most tokens of prompt and response")
        longest = 1024
    given.write("policy.max_total_sequence_length", int(longest), "max_length")
    if given.says("router_aux_loss_coef"):
        coefficient = given.get("router_aux_loss_coef")
        given.write("policy.hf_config_overrides.router_aux_loss_coef", coefficient, "router_aux_loss_coef")


def adapters(given: Given) -> None:
    if not given.get("use_peft"):
        return
    rank = int(given.get("lora_r"))
    alpha = given.get("lora_alpha")
    alpha = 2 * rank if alpha is None else alpha
    if given.get("use_rslora"):
        alpha *= math.sqrt(rank)
        given.differ("use_rslora", "alpha is multiplied by the root of the rank instead, which is the same scale")
    if alpha != int(alpha):
        given.refuse("lora_alpha", f"comes to {alpha:g}, and a whole number is due")
    if given.get("lora_dropout"):
        given.refuse("lora_dropout", f"is {given.get('lora_dropout'):g}, and dropout is not built", "set it to 0.0")
    for ours, value, key in (("enabled", True, "use_peft"), ("dim", rank, "lora_r"), ("alpha", int(alpha), "lora_alpha")):
        given.write(f"policy.megatron_cfg.peft.{ours}", value, key)
    given.write("policy.megatron_cfg.peft.lora_A_init_method", "kaiming", "use_peft", note="as peft's A begins")
    given.write("policy.megatron_cfg.peft.target_modules", _targets(given), "lora_target_modules")


def _targets(given: Given) -> list[str]:
    said = given.get("lora_target_modules")
    names = [name.strip() for name in said.split(",")] if isinstance(said, str) else said
    if said in _ALL or names in (["all"], ["all-linear"]):
        names = [name for parts in _PARTS.values() for name in parts]
    if not isinstance(names, list):
        given.refuse("lora_target_modules", "is not set, and peft's choice differs by model", "name the modules")
        return []
    named = {_WHOLE.get(name, name) for name in map(str, names)}
    found = [ours for ours, parts in _PARTS.items() if ours in named or named.issuperset(parts)]
    left = named.difference(found, *(_PARTS[ours] for ours in found))
    if left:
        message = f"has {', '.join(sorted(left))} without its neighbours: q_proj, k_proj and v_proj are one layer here"
        given.refuse("lora_target_modules", f"{message}, and so are gate_proj and up_proj", "name all of a layer or none")
    if {"linear_qkv", "linear_fc1"} & set(found):
        text = "q_proj, k_proj and v_proj share one A here, as gate_proj and up_proj do; in peft each has its own"
        given.differ("lora_target_modules", text)
    return found
