"""Find keys that are set and have no effect, because the value of another key decides so."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import fields

from nemotron_dpo.config.layer import ConfigLayer
from nemotron_dpo.config.logger import LoggerConfig
from nemotron_dpo.config.objective_settings import idle_settings as idle_objective
from nemotron_dpo.config.schema import MegatronConfig, RunConfig
from nemotron_dpo.config.tree import Tree

# section -> its keys that count even where its `enabled` is false
_SWITCHED = {
    "checkpointing": ("pretrained_checkpoint", "checkpoint_dir"),
    "policy.sequence_packing": (),
    "policy.megatron_cfg.peft": (),
}


def idle_settings(run: RunConfig) -> dict[str, str]:
    """Dotted keys whose value asks for something that `run` does not do, with the reason; the policy is the same without."""
    megatron, policy = run.policy.megatron_cfg, run.policy
    is_alone = megatron.sequence_parallel and megatron.tensor_model_parallel_size == 1
    usual_rate = MegatronConfig.moe_router_bias_update_rate
    is_floor = policy.scheduler.name == "constant" and policy.scheduler.min_lr > 0
    asked = (
        *((f"logger.{name}", True, reason) for name, reason in _idle_logger(run.logger).items()),
        ("policy.megatron_cfg.sequence_parallel", is_alone, "divides nothing where tensor_model_parallel_size is 1"),
        (
            "policy.train_micro_batch_size",
            policy.sequence_packing.enabled and policy.train_micro_batch_size > 1,
            "counts pairs where rows are packed by tokens: policy.sequence_packing.train_mb_tokens does",
        ),
        (
            "policy.megatron_cfg.moe_aux_loss_coeff",
            bool(megatron.moe_aux_loss_coeff) and megatron.moe_router_load_balancing_type == "none",
            "weighs an auxiliary loss, and moe_router_load_balancing_type is none",
        ),
        (
            "policy.megatron_cfg.moe_router_bias_update_rate",
            megatron.peft.enabled and megatron.moe_router_bias_update_rate not in (0, usual_rate),
            "moves biases of the base, which adapters leave as it is",
        ),
        ("policy.scheduler.min_lr", is_floor, "is the end of a decay, and the learning rate is constant"),
    )
    idle = {key: reason for key, is_asked, reason in asked if is_asked}
    idle |= dict.fromkeys(_idle_recompute(megatron), "counts for nothing with the other recompute keys as they are")
    return idle | idle_objective(run.dpo)


def taken_elsewhere(tree: Tree, layers: Sequence[ConfigLayer]) -> frozenset[str]:
    """{"run.wandb"} where interpolations take all that it says, as those of NVIDIA's configs in logger.wandb do."""
    run = tree.get("run")
    wandb = run.get("wandb") if isinstance(run, dict) else None
    names = wandb if isinstance(wandb, dict) else {}
    taken = [rf"\$\{{[^}}]*\brun\.wandb\.{re.escape(name)}\b" for name in map(str, names)]
    is_taken = bool(taken) and all(any(re.search(one, layer.text) for layer in layers) for one in taken)
    return frozenset({"run.wandb"} if is_taken else ())


def switched_off(run: RunConfig, layers: Sequence[ConfigLayer]) -> dict[str, str]:
    """Keys of a section that is not enabled, with the reason, where they are overrides or where no file says so."""
    switches = (run.checkpointing.enabled, run.policy.sequence_packing.enabled, run.policy.megatron_cfg.peft.enabled)
    keys: dict[str, str] = {}
    for (section, exempt), is_on in zip(_SWITCHED.items(), switches, strict=True):
        found = [(layer, name) for layer in layers for name in _names(layer, section)]
        is_said = any(layer.is_file and name == "enabled" for layer, name in found)
        idle = [name for layer, name in found if not (layer.is_file and is_said) and name not in ("enabled", *exempt)]
        keys |= {} if is_on else {f"{section}.{name}": f"belongs to {section}, which is not enabled" for name in idle}
    return keys


def _names(layer: ConfigLayer, section: str) -> Iterator[str]:
    """What `layer` sets in `section`."""
    tree = layer.plain
    for part in section.split("."):
        tree = tree.get(part) if isinstance(tree, dict) else None
    yield from (str(name) for name in tree) if isinstance(tree, dict) else ()


def _idle_logger(logger: LoggerConfig) -> dict[str, str]:
    """What is set for trackers that are not enabled: a section of one of them, or what all of them share."""
    switches = [item.name for item in fields(logger) if item.name.endswith("_enabled")]
    off = [name.removesuffix("_enabled") for name in switches if not getattr(logger, name)]
    idle = {name: f"belongs to a tracker that logger.{name}_enabled does not ask for" for name in off if hasattr(logger, name)}
    if len(off) == len(switches):
        idle |= dict.fromkeys(("log_dir", "gpu_monitoring"), "belongs to trackers, of which none is enabled")
    elif not logger.monitor_gpus:
        idle["gpu_monitoring"] = "belongs to logger.monitor_gpus, which is false"
    return {name: reason for name, reason in idle.items() if getattr(logger, name) != getattr(LoggerConfig, name)}


def _idle_recompute(megatron: MegatronConfig) -> list[str]:
    """The recompute keys that are set where, as in NeMo-RL, another one decides that they count for nothing."""
    full = ("recompute_method", "recompute_num_layers")
    idle = ("recompute_modules",) if megatron.recompute_granularity != "selective" else full
    if not megatron.activation_checkpointing:
        idle = ("recompute_granularity", "recompute_modules", *full)
    return [f"policy.megatron_cfg.{name}" for name in idle if getattr(megatron, name) is not None]
