"""Keys that NeMo-RL's schema has and ours does not. We know them so that NeMo-RL's recipes load unchanged.

NO_MEANING holds the keys that cannot change the trained policy here, each with the reason; a run counts and lists them. REFUSED
holds the keys that would change which policy is trained or which checkpoints are kept, unless they have a harmless value.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

_ROUNDING = "says how numbers are computed there, which differs by rounding; NEMOTRON_DPO_KERNELS chooses here"
_MEMORY = "trades memory for time there; the numbers are the same"
_MESSAGES = "is about overlap and messages between processes; the numbers are the same"
_LOADER = "belongs to NeMo-RL's loaders of data sets by name"

# reason -> keys, each of which stands for its whole subtree; "section {a b}" means section.a and section.b.
_NO_MEANING = {
    _ROUNDING: """
policy.megatron_cfg {moe_router_dtype moe_permute_fusion apply_rope_fusion bias_activation_fusion defer_fp32_logits
  gradient_accumulation_fusion use_linear_ce_fusion_loss use_fused_linear_logprobs fused_linear_logprobs_chunk_size
  cuda_graph_impl cuda_graph_modules cuda_graph_warmup_steps use_fused_weighted_squared_relu attention_backend
  transformer_impl moe_grouped_gemm}
policy.optimizer {foreach fused capturable differentiable}
policy.dtensor_cfg {automodel_kwargs}
policy.dtensor_cfg.lora_cfg {use_triton}""",
    _MEMORY: """
policy {fsdp_offload_enabled activation_checkpointing_enabled}
policy.dtensor_cfg {cpu_offload custom_parallel_plan clear_cache_every_n_steps moe_parallelizer}
policy.megatron_cfg {empty_unused_memory_level fine_grained_activation_offloading offload_modules}
policy.megatron_cfg.optimizer {use_distributed_optimizer use_precision_aware_optimizer optimizer_cpu_offload
  optimizer_offload_fraction overlap_cpu_optimizer_d2h_h2d}
policy.megatron_cfg.distributed_data_parallel_config {data_parallel_sharding_strategy use_custom_fsdp}""",
    _MESSAGES: """
policy.dtensor_cfg {defer_fsdp_grad_sync}
policy.megatron_cfg {pipeline_dtype moe_enable_deepep moe_token_dispatcher_type moe_shared_expert_overlap
  moe_flex_dispatcher_backend use_gloo_process_groups virtual_pipeline_model_parallel_size}
policy.megatron_cfg.peft {a2a_experimental}
policy.megatron_cfg.distributed_data_parallel_config {overlap_grad_reduce overlap_param_gather}""",
    "sizes batches by samples there; rows are packed by tokens here, which changes no sum": """
dpo {val_micro_batch_size}
policy {logprob_batch_size dynamic_batching make_sequence_length_divisible_by}
policy.sequence_packing {algorithm logprob_mb_tokens sequence_length_round}""",
    "is about two models on one GPU; the reference is scored in a process of its own here": """
policy {offload_optimizer_for_logprob}""",
    "generates text, which DPO does not": """
policy {generation refit_buffer_size_gb}
policy.megatron_cfg {clear_memory_caches_before_refit}""",
    "chooses among backends of NeMo-RL; there is one here": """
policy.dtensor_cfg {enabled _v2}
policy.megatron_cfg {enabled}""",
    "goes to NeMo-RL's workers; run.env.env_vars goes to the stages here": """
policy {env_vars}
policy.dtensor_cfg {env_vars}
policy.megatron_cfg {env_vars}""",
    "is about the copy that NeMo-RL makes of a model; folders are read as they are here": """
policy.megatron_cfg {converter_type force_overwrite_initial_ckpt force_reconvert_from_hf}""",
    "is set by dpo.max_num_steps and max_num_epochs, there too": """
policy.megatron_cfg {train_iters}""",
    "says what to do with a checkpoint's own schedule; a run that goes on has the one it began with": """
policy.megatron_cfg.scheduler {use_checkpoint_opt_param_scheduler override_opt_param_scheduler}""",
    "only reports": """
policy.megatron_cfg {moe_per_layer_logging track_moe_metrics}""",
    "is what policy.precision says": """
policy.megatron_cfg.optimizer {bf16 params_dtype}""",
    "belongs to another optimizer than AdamW": """
policy.megatron_cfg.optimizer {sgd_momentum}""",
    "is the end of a decay, and the learning rate is constant": """
policy.megatron_cfg.optimizer {min_lr}""",
    "belongs to fp8_cfg, which is not enabled": """
policy.megatron_cfg.fp8_cfg {enabled fp8 fp8_recipe fp8_param}""",
    "belongs to a reward model, which DPO has none of": """
policy {reward_model_cfg}""",
    "is about how a checkpoint is written; steps are written before training goes on": """
policy.megatron_cfg.checkpoint {async_save is_async ckpt_assume_constant_structure}
policy.dtensor_cfg {checkpoint}
checkpointing {is_async model_save_format save_consolidated model_cache_dir model_repo_id peft_config is_peft}""",
    "names processes that load data; whole files are tokenized before the training": """
data {num_workers}""",
    "is not read by NeMo-RL's DPO either": """
data {add_bos add_eos add_generation_prompt add_system_prompt}""",
    _LOADER: """
data.train {processor env_name output_key}
data.validation {processor env_name output_key}
data.default {processor env_name output_key}""",
    "is the seed of split_validation_size, which must be 0": """
data.train {seed}
data.validation {seed}
data.default {seed}""",
    "is not read by NeMo-RL either: events lie in logger.log_dir": """
logger {tensorboard}""",
    "is about NeMo-RL's workers": """
logger {collect_worker_metrics}
logger.wandb {log_nemo_gym_full_result_tables}""",
    "counts where logger.wandb takes it, as in NVIDIA's configs": """
run {wandb}""",
    "places nodes; a profile of env.toml says where a job runs": """
cluster {segment_size}
run {env}""",
}
NO_MEANING: dict[str, str] = {
    f"{section}.{key}": reason
    for reason, text in _NO_MEANING.items()
    for section, keys in re.findall(r"(\S+) \{([^}]*)\}", text)
    for key in keys.split()
}


@dataclass(frozen=True)
class Refused:
    """A key that is refused unless it has one of the `harmless` values. `why` says what another value would do."""

    key: str
    harmless: tuple[Any, ...]
    why: str
    remedy: str | None = None


_SYSTEM = tuple(
    Refused(f"data.{section}.system_prompt_file", (None,), "puts a system message before every prompt")
    for section in ("train", "validation", "default")
)
_HELD_OUT = tuple(
    Refused(
        f"data.{section}.split_validation_size",
        (None, 0, 0.0),
        "holds rows out of the training set (NeMo-RL's DPO does not)",
        "data.validation.split_from_train=0.05 does, by prompt",
    )
    for section in ("train", "validation", "default")
)
_KEY = "belongs into no file"
_TEMPLATE = Refused(
    "data.default.prompt_file", (None,), "names a template for the first message of every prompt", "name rows for each set"
)
_GROUPS = "chooses other experts than the model was trained with"
REFUSED: tuple[Refused, ...] = (
    Refused("dpo.objective", (None,), "runs code of a file", "give it as dpo-train --objective FILE.py:NAME"),
    Refused("policy.optimizer.amsgrad", (False, None), "is another optimizer"),
    Refused("policy.optimizer.maximize", (False, None), "climbs the loss"),
    Refused("policy.megatron_cfg.optimizer.fp16", (False, None), "computes in another precision"),
    Refused("policy.megatron_cfg.optimizer.decoupled_weight_decay", (True, None), "is Adam with L2 regularization"),
    Refused(
        "policy.megatron_cfg.scheduler.weight_decay_incr_style", ("constant", None), "changes the weight decay step by step"
    ),
    Refused("policy.megatron_cfg.model_overrides", (None, {}), "changes the model", "change the config of the model's folder"),
    Refused("policy.megatron_cfg.layernorm_epsilon", (None,), "changes the model", "change the config of the model's folder"),
    Refused("policy.megatron_cfg.mtp_num_layers", (None, 0), "trains additional layers"),
    Refused("policy.megatron_cfg.moe_router_num_groups", (None,), _GROUPS),
    Refused("policy.megatron_cfg.moe_router_group_topk", (None,), _GROUPS),
    Refused("policy.megatron_cfg.fp8_cfg.enabled", (False, None), "computes in another precision"),
    Refused("policy.reward_model_cfg.enabled", (False, None), "trains a reward model"),
    Refused("logger.wandb.api_key", (None,), _KEY, "set WANDB_API_KEY in the environment"),
    Refused("logger.swanlab.api_key", (None,), _KEY, "set SWANLAB_API_KEY in the environment"),
    *_SYSTEM,
    *_HELD_OUT,
    _TEMPLATE,
)
