"""What a run is, as frozen dataclasses: NeMo-RL's keys with the defaults of the documented `default` config.

Libraries take plain arguments; only the executables and the step planner see these. A field's `minimum`,
`more_than` and `less_than` are checked on load, and that floats are finite.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Literal

# Of a field that names a file, a folder or a model: see `with_home`.
PATH = {"is_path": True}


@dataclass(frozen=True)
class DpoConfig:
    """The objective and the length of the run; batch sizes count pairs.

    `val_batches` <= 0 means all, `val_period` <= 0 never.
    """

    max_num_epochs: int = field(default=1, metadata={"minimum": 1})
    max_num_steps: int = field(default=500, metadata={"minimum": 1})
    val_period: int = 50
    val_batches: int = 8
    val_global_batch_size: int = field(default=8, metadata={"minimum": 1})
    val_at_start: bool = True
    val_at_end: bool = True
    seed: int = field(default=42, metadata={"minimum": 0, "less_than": 2**63})
    reference_policy_kl_penalty: float = field(default=0.05, metadata={"minimum": 0})
    preference_average_log_probs: bool = False
    sft_average_log_probs: bool = False
    preference_loss_weight: float = field(default=1.0, metadata={"minimum": 0})
    sft_loss_weight: float = field(default=0.0, metadata={"minimum": 0})
    allow_reference_mismatch: bool = False


@dataclass(frozen=True)
class TokenizerConfig:
    """None: the policy's own tokenizer and its own chat template."""

    name: str | None = field(default=None, metadata=PATH)
    chat_template: str | None = field(default=None, metadata=PATH)


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with decoupled weight decay."""

    name: Literal["adamw"] = "adamw"
    lr: float = field(default=5e-7, metadata={"more_than": 0})
    weight_decay: float = field(default=0.01, metadata={"minimum": 0})
    betas: tuple[float, float] = field(default=(0.9, 0.999), metadata={"minimum": 0, "less_than": 1})
    eps: float = field(default=1e-8, metadata={"more_than": 0})


@dataclass(frozen=True)
class ScheduleConfig:
    """Learning rate by step: a named shape after a linear warm-up, or ("torch") a chain of torch schedulers.

    `schedulers` holds (class name below torch.optim.lr_scheduler, keyword arguments); `milestones` are the steps where the
    next one takes over, one fewer than there are schedulers.
    """

    name: Literal["constant", "cosine", "linear", "torch"] = "cosine"
    warmup_steps: int = field(default=50, metadata={"minimum": 0})
    min_lr: float = field(default=0.0, metadata={"minimum": 0})
    schedulers: tuple[tuple[str, dict[str, Any]], ...] = ()
    milestones: tuple[int, ...] = ()


@dataclass(frozen=True)
class PeftConfig:
    """LoRA, as NeMo-RL's Megatron backend spells it; empty `target_modules` are all linear layers but `exclude_modules`."""

    enabled: bool = False
    target_modules: tuple[str, ...] = ()
    exclude_modules: tuple[str, ...] = ()
    dim: int = field(default=32, metadata={"minimum": 1})
    alpha: int = field(default=32, metadata={"minimum": 1})
    dropout: float = field(default=0.0, metadata={"minimum": 0, "less_than": 1})
    dropout_position: Literal["pre", "post"] = "pre"
    lora_A_init_method: Literal["xavier", "normal", "kaiming", "uniform"] = "xavier"
    lora_B_init_method: Literal["zero"] = "zero"
    lora_dtype: Literal["bfloat16", "float32"] | None = None


@dataclass(frozen=True)
class MegatronConfig:
    """How megatron-core cuts the model and the batch; sizes count processes, None leaves the choice to megatron-core."""

    tensor_model_parallel_size: int = field(default=1, metadata={"minimum": 1})
    pipeline_model_parallel_size: int = field(default=1, metadata={"minimum": 1})
    context_parallel_size: int = field(default=1, metadata={"minimum": 1})
    expert_model_parallel_size: int = field(default=1, metadata={"minimum": 1})
    expert_tensor_parallel_size: int | None = field(default=None, metadata={"minimum": 1})
    num_layers_in_first_pipeline_stage: int | None = field(default=None, metadata={"minimum": 1})
    num_layers_in_last_pipeline_stage: int | None = field(default=None, metadata={"minimum": 1})
    sequence_parallel: bool = False
    activation_checkpointing: bool = False
    recompute_granularity: Literal["full", "selective"] | None = None
    recompute_method: Literal["uniform", "block"] | None = None
    recompute_num_layers: int | None = field(default=None, metadata={"minimum": 1})
    recompute_modules: tuple[Literal["core_attn", "layernorm", "mlp", "moe"], ...] | None = None
    peft: PeftConfig = PeftConfig()
    use_distributed_optimizer: bool = True
    grad_reduce_in_fp32: bool = True


@dataclass(frozen=True)
class SequencePackingConfig:
    """Rows of whole pairs; `train_mb_tokens` bounds a row, None lets the trainer choose."""

    enabled: bool = True
    train_mb_tokens: int | None = field(default=None, metadata={"minimum": 1})


@dataclass(frozen=True)
class PolicyConfig:
    """The model and how it is trained; `model_name` is an HF id, an HF folder or a Megatron checkpoint."""

    model_name: str = field(default="meta-llama/Llama-3.2-1B-Instruct", metadata=PATH)
    tokenizer: TokenizerConfig = TokenizerConfig()
    train_global_batch_size: int = field(default=32, metadata={"minimum": 1})
    train_micro_batch_size: int = field(default=1, metadata={"minimum": 1})
    max_total_sequence_length: int = field(default=4096, metadata={"minimum": 2})
    precision: Literal["bfloat16", "float32"] = "bfloat16"
    max_grad_norm: float | None = field(default=1.0, metadata={"more_than": 0, "remedy": "null leaves gradients as they are"})
    optimizer: OptimizerConfig = OptimizerConfig()
    scheduler: ScheduleConfig = ScheduleConfig()
    megatron_cfg: MegatronConfig = MegatronConfig()
    sequence_packing: SequencePackingConfig = SequencePackingConfig()


@dataclass(frozen=True)
class DatasetConfig:
    """A file of preference rows, the names of its columns where unusual, how many rows to read, what to do with bad ones."""

    path: str | None = field(default=None, metadata=PATH)
    prompt_key: str | None = None
    chosen_key: str | None = None
    rejected_key: str | None = None
    limit: int | None = field(default=None, metadata={"minimum": 1})
    on_error: Literal["fail", "skip"] | None = None


@dataclass(frozen=True)
class DataConfig:
    """`validation` holds (name, dataset); the name is "default" where only one is given."""

    train: DatasetConfig = DatasetConfig()
    validation: tuple[tuple[str, DatasetConfig], ...] = ()
    shuffle: bool = True


@dataclass(frozen=True)
class PretrainedCheckpoint:
    """A Megatron checkpoint whose weights training starts from; of Megatron-LM's, policy.model_name says what model it is."""

    path: str | None = field(default=None, metadata=PATH)
    format: Literal["megatron_bridge", "megatron_lm"] = "megatron_bridge"


@dataclass(frozen=True)
class CheckpointingConfig:
    """When to save and what to keep.

    `checkpoint_must_save_by` is DD:HH:MM:SS from process start; keep_top_k None keeps all; without a metric the newest count.
    With `save_optimizer` a step holds all that an interrupted run needs to go on as if nothing had happened.
    """

    enabled: bool = True
    checkpoint_dir: str | None = field(default=None, metadata=PATH)
    metric_name: str | None = "val:validation-default_loss"
    higher_is_better: bool = False
    keep_top_k: int | None = field(default=3, metadata={"minimum": 1})
    save_period: int = field(default=50, metadata={"minimum": 1})
    checkpoint_must_save_by: str | None = None
    pretrained_checkpoint: PretrainedCheckpoint = PretrainedCheckpoint()
    save_optimizer: bool = False


@dataclass(frozen=True)
class LoggerConfig:
    """metrics.jsonl is always written; these name what else is."""

    log_dir: str | None = field(default=None, metadata=PATH)
    tensorboard_enabled: bool = False
    wandb_enabled: bool = False


@dataclass(frozen=True)
class ClusterConfig:
    """How many processes: one a GPU, or simply that many on a machine without."""

    gpus_per_node: int = field(default=1, metadata={"minimum": 1})
    num_nodes: int = field(default=1, metadata={"minimum": 1})


@dataclass(frozen=True)
class RunConfig:
    """Everything a run is."""

    dpo: DpoConfig = DpoConfig()
    policy: PolicyConfig = PolicyConfig()
    data: DataConfig = DataConfig()
    checkpointing: CheckpointingConfig = CheckpointingConfig()
    logger: LoggerConfig = LoggerConfig()
    cluster: ClusterConfig = ClusterConfig()


# Keys of NeMo-RL's schema, as subtrees, that change nothing here: naming one earns a warning. {a b} stands for each.
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

# Settings that would change what is trained and that are not built: (key, the values that change nothing).
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
