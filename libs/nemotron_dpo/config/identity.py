"""Divide the settings of a run into those that a resumed run must share with it and those that it may change."""

from __future__ import annotations

import re
from dataclasses import asdict
from functools import reduce
from typing import Any

from nemotron_dpo.config.dpo import DpoConfig
from nemotron_dpo.config.key_names import known_keys
from nemotron_dpo.config.objective import canonical_name
from nemotron_dpo.config.objective_settings import neutral, settings_of
from nemotron_dpo.config.schema import RunConfig

# May change, with a warning: how long the run is and what is measured on the way.
_FREE = (
    "dpo.max_num_epochs",
    "dpo.max_num_steps",
    "dpo.val_at_end",
    "dpo.val_at_start",
    "dpo.val_batches",
    "dpo.val_global_batch_size",
    "dpo.val_period",
    "dpo.val_sets",
)
# May change without a word, as keys or whole sections: where things lie (digests say what they are), what is kept and
# logged, and how model and batch are cut, on which results do not depend. {a b} stands for each.
_IRRELEVANT = """
{checkpointing cluster data.train data.validation dpo.allow_reference_mismatch dpo.on_divergence logger}
policy.{max_total_sequence_length model_name sequence_packing tokenizer train_micro_batch_size}
policy.megatron_cfg.{tensor_model_parallel_size pipeline_model_parallel_size
  num_layers_in_first_pipeline_stage num_layers_in_last_pipeline_stage context_parallel_size expert_model_parallel_size
  expert_tensor_parallel_size sequence_parallel activation_checkpointing recompute_granularity recompute_method
  recompute_num_layers recompute_modules}
"""
# These are about routers alone: of a policy without experts they say nothing, whatever they are.
_ROUTERS = ("freeze_moe_router", "moe_router_load_balancing_type", "moe_aux_loss_coeff")
_BIASES = "policy.megatron_cfg.moe_router_bias_update_rate"  # and this about those with a bias
_SECTIONS = tuple(f"{section}{key}." for section, keys in re.findall(r"(\S*)\{([^}]*)\}", _IRRELEVANT) for key in keys.split())


def identity(run: RunConfig, *, has_routers: bool, has_biases: bool = False) -> tuple[dict[str, Any], dict[str, Any]]:
    """(fixed, free) settings of `run` by dotted key; a key that is not listed here is fixed.

    `has_routers`: the policy has experts; `has_biases`: these are picked with a bias. What asks for nothing of them is None, as
    of a run that was saved before there were such settings.
    """
    keys = [key for key in known_keys() if not f"{key}.".startswith(_SECTIONS)]
    fixed = {key: _value(run, key) for key in keys if key not in _FREE}
    for key in (f"policy.megatron_cfg.{name}" for name in _ROUTERS):
        fixed[key] = None if not has_routers or fixed[key] is False or fixed[key] == "none" else fixed[key]
    if not has_biases or run.policy.megatron_cfg.peft.enabled or fixed[_BIASES] == 0:
        fixed[_BIASES] = None
    return fixed | _objective(run.dpo), {key: _value(run, key) for key in _FREE if key != "dpo.val_sets"} | _val_sets(run.dpo)


def _val_sets(dpo: DpoConfig) -> dict[str, Any]:
    """What the sets have of their own; None where none has anything, as of a run that was saved before they could."""
    return {"dpo.val_sets": {name: asdict(own) for name, own in dpo.val_sets.items()} or None}


def _objective(dpo: DpoConfig) -> dict[str, Any]:
    """What is trained, by whatever alias it was named and whether its defaults were written out or not.

    What asks for nothing is None, so that a run that was saved before there was such a setting is the same run. The two that
    were there first have their values.
    """
    settings = {name: None if value == neutral(name) else value for name, value in settings_of(dpo).items()}
    averages = {name: bool(settings.get(name)) for name in ("preference_average_log_probs", "sft_average_log_probs")}
    beta = {"reference_policy_kl_penalty": dpo.reference_policy_kl_penalty}
    found: dict[str, Any] = {f"dpo.{key}": value for key, value in (settings | averages | beta).items()}
    if dpo.own_objective is not None:
        found["--objective"] = f"{dpo.own_objective.entry.name} of a file {dpo.own_objective.digest}"
    elif isinstance(dpo.preference_loss, str):
        name = canonical_name(dpo.preference_loss)
        found["dpo.preference_loss"] = None if name == DpoConfig.preference_loss else name
    else:
        # a list, because the order counts: rewards are those of the first that has any
        found["dpo.preference_loss"] = [[canonical_name(name), weight] for name, weight in dpo.preference_loss.items()]
    return found


def _value(run: RunConfig, key: str) -> Any:
    return reduce(getattr, key.split("."), run)
