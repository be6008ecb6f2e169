"""What a run is, as frozen dataclasses: NeMo-RL's keys with the defaults of the documented `default` config.

Libraries take plain arguments; only the executables and the step planner see these. A field's `minimum`,
`more_than` and `less_than` are checked on load, and that floats are finite.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from nemotron_dpo.config.dpo import DpoConfig
from nemotron_dpo.config.field_kinds import NO_KEY, PATH
from nemotron_dpo.config.logger import LoggerConfig


@dataclass(frozen=True)
class TokenizerConfig:
    """None: the policy's own tokenizer and its own chat template; `chat_template_kwargs` go to every rendering."""

    name: str | None = field(default=None, metadata=PATH)
    chat_template: str | None = field(default=None, metadata=PATH)
    chat_template_kwargs: dict[str, Any] | None = None


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

    With `warmup_init` it is Megatron's: that is the rate of step 1, and the decay ends at step `decay_steps` (None: the last).
    `schedulers` holds (class name below torch.optim.lr_scheduler, keyword arguments); `milestones` are the steps where the
    next one takes over, one fewer than there are schedulers.
    """

    name: Literal["constant", "cosine", "linear", "torch"] = "cosine"
    warmup_steps: int = field(default=50, metadata={"minimum": 0})
    min_lr: float = field(default=0.0, metadata={"minimum": 0})
    schedulers: tuple[tuple[str, dict[str, Any]], ...] = ()
    milestones: tuple[int, ...] = ()
    warmup_init: float | None = field(default=None, metadata={"minimum": 0})
    decay_steps: int | None = field(default=None, metadata={"minimum": 1})


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
    """How megatron-core cuts the model and the batch; sizes count processes, None leaves the choice to megatron-core.

    `freeze_moe_router`, the router's loss and the bias of experts are about models with experts alone. `moe_aux_loss_coeff`
    None is the model's own.
    """

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
    freeze_moe_router: bool = False
    moe_router_load_balancing_type: Literal[
        "none", "aux_loss", "seq_aux_loss", "global_aux_loss", "transformers_aux_loss", "sinkhorn"
    ] = "aux_loss"
    moe_aux_loss_coeff: float | None = field(default=None, metadata={"minimum": 0})
    moe_router_bias_update_rate: float = field(default=1e-3, metadata={"minimum": 0})
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
    """Preference rows: where they lie, what of them is read, the names of unusual columns, what to do with bad rows.

    `path` is a file, a glob, a folder, an id of the Hugging Face hub or a name that preference-tokenize knows. Of several data
    sets, given as a list, `parts` has each; an epoch has `weight` times the pairs of a part. `drop` names the odd pairs that
    are left out. `is_default` marks rows that only data.default names, though data.train names rows of its own. A validation
    set of no rows of its own is `split_from_train`: that share of the training pairs, held out by prompt, which `split_seed`
    draws.
    """

    path: str | None = field(default=None, metadata=PATH)
    prompt_key: str | None = None
    chosen_key: str | None = None
    rejected_key: str | None = None
    limit: int | None = field(default=None, metadata={"minimum": 1})
    on_error: Literal["fail", "skip"] | None = None
    split: str | None = None
    subset: str | None = None
    row_format: Literal["auto", "pair", "conversation", "transcript", "ranked", "helpsteer3"] | None = None
    chosen_reward_key: str | None = None
    rejected_reward_key: str | None = None
    source_name: str | None = None
    drop: tuple[Literal["empty", "whitespace", "inverted", "tied", "both-ways", "duplicates"], ...] | None = None
    weight: float = field(default=1.0, metadata={"more_than": 0})
    parts: tuple[DatasetConfig, ...] = field(default=(), metadata=NO_KEY)
    is_default: bool = field(default=False, metadata=NO_KEY)
    split_from_train: float | None = field(default=None, metadata={**NO_KEY, "more_than": 0, "less_than": 1})
    split_seed: int | None = field(default=None, metadata={**NO_KEY, "minimum": 0})

    @property
    def is_mixture(self) -> bool:
        """Whether an epoch is anything else than all pairs of one data set once."""
        return bool(self.parts) or self.weight != 1


@dataclass(frozen=True)
class DataConfig:
    """`validation` holds (name, dataset); the name is "default" where only one is given.

    A set has the keys of data.train, or `split_from_train`, the share of the training pairs that is held out for it, by prompt,
    and `split_seed`, which draws them (42).
    """

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
    `ft_save_period` saves further steps, to go on from: of those keep_top_k keeps none, `ft_keep_latest_k` the newest of all.
    With `save_optimizer` a step holds all that an interrupted run needs to go on as if nothing had happened. `export_step`, the
    last, the best by the metric or a number, is the one that a run of all stages exports at its end.
    """

    enabled: bool = True
    checkpoint_dir: str | None = field(default=None, metadata=PATH)
    metric_name: str | None = "val:validation-default_loss"
    higher_is_better: bool = False
    keep_top_k: int | None = field(default=3, metadata={"minimum": 1})
    save_period: int = field(default=50, metadata={"minimum": 1})
    ft_save_period: int | None = field(default=None, metadata={"minimum": 1})
    ft_keep_latest_k: int | None = field(default=None, metadata={"minimum": 1})
    checkpoint_must_save_by: str | None = None
    pretrained_checkpoint: PretrainedCheckpoint = PretrainedCheckpoint()
    save_optimizer: bool = False
    export_step: Literal["last", "best"] | int = "last"


@dataclass(frozen=True)
class ClusterConfig:
    """How many processes: one a GPU, or simply that many on a machine without."""

    gpus_per_node: int = field(default=1, metadata={"minimum": 1})
    num_nodes: int = field(default=1, metadata={"minimum": 1})


@dataclass(frozen=True)
class RunConfig:
    """Everything a run is."""

    dpo: DpoConfig = field(default_factory=DpoConfig)
    policy: PolicyConfig = PolicyConfig()
    data: DataConfig = DataConfig()
    checkpointing: CheckpointingConfig = CheckpointingConfig()
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    cluster: ClusterConfig = ClusterConfig()
