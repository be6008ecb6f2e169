"""Keys of NeMo-RL's schema that are none of ours: known, so that its recipes load as they are, and without effect.

Naming one of NO_EFFECT earns a warning. One of ONLY_VALUES with another value is refused: it would train something else.
"""

from __future__ import annotations

import re
from typing import Any

# As subtrees; {a b} stands for each.
_NO_EFFECT = """
dpo {val_micro_batch_size preference_loss gt_reward_scale}
policy {logprob_batch_size offload_optimizer_for_logprob dynamic_batching generation make_sequence_length_divisible_by
  hf_config_overrides refit_buffer_size_gb reward_model_cfg fsdp_offload_enabled activation_checkpointing_enabled}
policy.tokenizer {chat_template_kwargs}
policy.optimizer {foreach fused capturable differentiable maximize amsgrad}
policy.sequence_packing {algorithm logprob_mb_tokens sequence_length_round}
policy.dtensor_cfg {enabled _v2 env_vars cpu_offload custom_parallel_plan clear_cache_every_n_steps automodel_kwargs lora_cfg
  expert_parallel_size data_parallel_size tensor_parallel_size context_parallel_size sequence_parallel
  activation_checkpointing moe_parallelizer defer_fsdp_grad_sync}
policy.megatron_cfg {enabled env_vars empty_unused_memory_level converter_type pipeline_dtype freeze_moe_router moe_router_dtype
  moe_router_load_balancing_type moe_router_bias_update_rate moe_permute_fusion moe_per_layer_logging moe_enable_deepep
  moe_token_dispatcher_type moe_shared_expert_overlap apply_rope_fusion bias_activation_fusion defer_fp32_logits
  gradient_accumulation_fusion track_moe_metrics layernorm_epsilon train_iters force_overwrite_initial_ckpt
  force_reconvert_from_hf use_linear_ce_fusion_loss checkpoint use_fused_linear_logprobs fused_linear_logprobs_chunk_size
  cuda_graph_impl cuda_graph_modules cuda_graph_warmup_steps fine_grained_activation_offloading offload_modules
  use_gloo_process_groups use_fused_weighted_squared_relu attention_backend
  transformer_impl moe_grouped_gemm moe_router_num_groups moe_router_group_topk moe_flex_dispatcher_backend
  clear_memory_caches_before_refit model_overrides mtp_num_layers optimizer scheduler
  distributed_data_parallel_config fp8_cfg virtual_pipeline_model_parallel_size}
policy.megatron_cfg.peft {a2a_experimental}
data {max_input_seq_length num_workers dataset_name add_bos add_eos add_generation_prompt add_system_prompt}
data.train {dataset_name split subset split_validation_size seed processor env_name system_prompt_file output_key}
data.validation {dataset_name split subset seed processor env_name system_prompt_file output_key}
data.default {dataset_name split subset split_validation_size seed processor env_name system_prompt_file output_key}
checkpointing {model_save_format save_consolidated model_cache_dir model_repo_id peft_config is_peft}
logger {mlflow_enabled swanlab_enabled monitor_gpus num_val_samples_to_print wandb tensorboard mlflow swanlab gpu_monitoring
  collect_worker_metrics}
cluster {segment_size}
run {env}
"""
NO_EFFECT = frozenset(
    f"{section}.{key}" for section, keys in re.findall(r"(\S+) \{([^}]*)\}", _NO_EFFECT) for key in keys.split()
)

# What would change the training and is not built: (key, the values of it that change nothing).
ONLY_VALUES: tuple[tuple[str, tuple[Any, ...]], ...] = (
    ("dpo.preference_loss", ("dpo", None)),
    ("policy.tokenizer.chat_template_kwargs", (None, {})),
    ("policy.hf_config_overrides", (None, {})),
    ("policy.megatron_cfg.model_overrides", (None, {})),
    ("policy.megatron_cfg.mtp_num_layers", (None, 0)),
    ("policy.megatron_cfg.virtual_pipeline_model_parallel_size", (None, 1)),
    ("policy.megatron_cfg.fp8_cfg.enabled", (False, None)),
    ("policy.reward_model_cfg.enabled", (False, None)),
)
