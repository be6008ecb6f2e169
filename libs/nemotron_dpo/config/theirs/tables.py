"""What each key of TRL's DPOConfig, ModelConfig and ScriptArguments (1.16) comes to here; and theirs by other names.

Axolotl and LLaMA-Factory train through TRL's or transformers' trainer: their keys are other names of TRL's, and a few of
their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_SCHEDULE = "policy.scheduler"
_PEFT = "policy.megatron_cfg.peft"
# key -> (TRL's default, the keys here that it decides)
COUNTS: dict[str, tuple[Any, str]] = {
    "model_name_or_path": (None, "policy.model_name"),
    "per_device_train_batch_size": (8, "policy.train_global_batch_size"),
    "gradient_accumulation_steps": (1, "policy.train_global_batch_size"),
    "num_processes": (None, "policy.train_global_batch_size, cluster"),
    "num_train_epochs": (3.0, "dpo.max_num_epochs"),
    "max_steps": (-1, "dpo.max_num_steps"),
    "learning_rate": (1e-6, "policy.optimizer.lr"),
    "lr_scheduler_type": ("linear", f"{_SCHEDULE}.name"),
    "lr_scheduler_kwargs": (None, f"{_SCHEDULE}.min_lr"),
    "warmup_steps": (0.0, f"{_SCHEDULE}.warmup_steps"),
    "warmup_ratio": (0.0, f"{_SCHEDULE}.warmup_steps"),
    "weight_decay": (0.0, "policy.optimizer.weight_decay"),
    "adam_beta1": (0.9, "policy.optimizer.betas"),
    "adam_beta2": (0.999, "policy.optimizer.betas"),
    "adam_epsilon": (1e-8, "policy.optimizer.eps"),
    "max_grad_norm": (1.0, "policy.max_grad_norm"),
    "bf16": (None, "policy.precision"),
    "gradient_checkpointing": (True, "policy.megatron_cfg.activation_checkpointing"),
    "max_length": (1024, "policy.max_total_sequence_length"),
    "beta": (0.1, "dpo.reference_policy_kl_penalty"),
    "loss_type": (["sigmoid"], "dpo.preference_loss"),
    "loss_weights": (None, "dpo.preference_loss"),
    "label_smoothing": (0.0, "dpo.label_smoothing"),
    "discopop_tau": (0.05, "dpo.discopop_tau"),
    "ld_alpha": (None, "dpo.ld_alpha"),
    "f_divergence_type": ("reverse_kl", "dpo.f_divergence"),
    "f_alpha_divergence_coef": (0.5, "dpo.f_alpha"),
    "use_weighting": (False, "dpo.wpo_weighting"),
    "rpo_alpha": (None, "dpo.sft_loss_weight, dpo.sft_average_log_probs"),
    "simpo_gamma": (None, "dpo.gamma"),
    "router_aux_loss_coef": (None, "policy.hf_config_overrides.router_aux_loss_coef"),
    "seed": (42, "dpo.seed"),
    "use_peft": (False, f"{_PEFT}.enabled"),
    "lora_r": (16, f"{_PEFT}.dim"),
    "lora_alpha": (32, f"{_PEFT}.alpha"),
    "lora_dropout": (0.05, f"{_PEFT}.dropout"),
    "lora_target_modules": (None, f"{_PEFT}.target_modules"),
    "use_rslora": (False, f"{_PEFT}.alpha"),
    "output_dir": (None, "checkpointing.checkpoint_dir"),
    "save_strategy": ("steps", "checkpointing.save_period"),
    "save_steps": (500.0, "checkpointing.save_period"),
    "save_total_limit": (None, "checkpointing.keep_top_k"),
    "save_only_model": (False, "checkpointing.save_optimizer"),
    "load_best_model_at_end": (False, "checkpointing.metric_name"),
    "metric_for_best_model": (None, "checkpointing.metric_name"),
    "greater_is_better": (None, "checkpointing.higher_is_better"),
    "eval_strategy": ("no", "dpo.val_period, data.validation"),
    "eval_steps": (None, "dpo.val_period"),
    "eval_on_start": (False, "dpo.val_at_start"),
    "per_device_eval_batch_size": (8, "dpo.val_global_batch_size"),
    "logging_steps": (10.0, "dpo.val_period, where eval_steps is not set"),
    "dataset_name": (None, "data.train.dataset_name"),
    "dataset_config": (None, "data.train.subset"),
    "dataset_train_split": ("train", "data.train.split"),
    "dataset_test_split": ("test", "data.validation.split"),
    "datasets": (None, "data.train.dataset_name"),
    "max_samples": (None, "data.train.limit"),
    "report_to": ("none", "logger.<tracker>_enabled"),
    "run_name": (None, "logger.wandb.name"),
    "wandb_project": (None, "logger.wandb.project"),
    "wandb_entity": (None, "logger.wandb.entity"),
}

_PACKED = "is about padded batches; rows are packed here, which changes no sum"
_LOG = "is about what is printed; metrics.jsonl has every step"
_MEMORY = "trades memory for time; the numbers are the same"
_COMPUTED = "says how numbers are computed, which differs by rounding; NEMOTRON_DPO_KERNELS chooses here"
_LOADS = "is about how rows are loaded; whole files are tokenized before the training"
_PROCESSES = "is about processes and messages between them; policy.megatron_cfg divides the model here"
_HUB = "publishes the model; ckpt-export writes a folder that `hf upload` takes"
_IDLE_TEXT = {
    "is always so: the reference is scored before the training": "precompute_ref_log_probs precompute_ref_batch_size",
    _PACKED: "padding_free pad_to_multiple_of pad_token train_sampling_strategy length_column_name group_by_length "
    "remove_unused_columns label_names label_pad_token_id padding_value packing sample_packing pad_to_sequence_len "
    "eval_sample_packing include_tokens_per_second",
    _LOG: "logging_strategy logging_first_step log_on_each_node logging_nan_inf_filter include_num_input_tokens_seen log_level "
    "log_level_replica disable_tqdm include_for_metrics plot_loss logging_dir project trackio_space_id trackio_bucket_id "
    "trackio_static_space_id prediction_loss_only generate_during_eval wandb_watch wandb_log_model wandb_mode debug",
    _MEMORY: "activation_checkpointing activation_checkpointing_kwargs gradient_checkpointing_kwargs activation_offloading "
    "torch_empty_cache_steps skip_memory_metrics low_cpu_mem_usage eval_accumulation_steps use_cache",
    _COMPUTED: "tf32 torch_compile torch_compile_backend torch_compile_mode use_liger_kernel liger_kernel_config "
    "attn_implementation flash_attention sdp_attention xformers_attention eager_attention flash_attn use_unsloth "
    "enable_liger_kernel "
    "full_determinism use_cpu bf16_full_eval fp16_full_eval use_flash_attention_2 upcast_layernorm",
    _LOADS: "dataset_streaming dataset_num_proc dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers "
    "dataloader_prefetch_factor dataloader_multiprocessing_context dataloader_in_order preprocessing_num_workers "
    "overwrite_cache dataset_prepared_path dataset_processes streaming",
    _PROCESSES: "average_tokens_across_devices accelerator_config accelerate_config parallelism_config deepspeed fsdp "
    "fsdp_config ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph ddp_backend ddp_timeout "
    "local_rank "
    "save_on_each_node eval_do_concat_batches eval_use_gather_object batch_eval_metrics ignore_bias_buffers ddp",
    _HUB: "push_to_hub hub_token hub_private_repo hub_model_id hub_strategy hub_always_push hub_revision hf_use_auth_token",
    "orders the rows there; dpo.seed does here, by a generator of its own": "data_seed",
    "weighs classes there, and DPO has none": "label_smoothing_factor",
    "says which data there are; the keys of the data sets say so here": "do_train do_eval do_predict",
    "says how a run of theirs goes on; the same command resumes one of ours": "ignore_data_skip "
    "restore_callback_states_from_checkpoint enable_jit_checkpoint auto_resume_from_checkpoints overwrite_output_dir",
    "runs code that lies in a model's folder there; none is run here": "trust_remote_code",
    "is how the weights are held there; here they are float32 beside those that are computed with": "dtype",
    "is how a quantized model is held, and none is asked for": "bnb_4bit_quant_type use_bnb_nested_quant "
    "bnb_4bit_quant_storage",
    "is the task of every policy here": "lora_task_type",
    "belongs to sync_ref_model, which is refused": "ref_model_mixup_alpha ref_model_sync_steps",
    "names the class that reads the folder there; config.json says so here": "model_type tokenizer_type strict",
}
IDLE: dict[str, str] = {key: reason for reason, keys in _IDLE_TEXT.items() for key in keys.split()}

_ROWS = "cuts or picks rows"


@dataclass(frozen=True)
class RefusedField:
    """A key that is refused unless its value is one of `taken`; `why` says what another one would do."""

    taken: tuple[Any, ...]
    why: str
    remedy: str | None = None


REFUSED: dict[str, RefusedField] = {
    "optim": RefusedField(
        ("adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw_apex_fused"), "is another optimizer or another precision of it"
    ),
    "optim_args": RefusedField((None, ""), "changes the optimizer"),
    "optim_target_modules": RefusedField((None,), "trains some layers by another optimizer"),
    "fp16": RefusedField((False, None), "computes in another precision", "bf16 is built"),
    "neftune_noise_alpha": RefusedField((None, 0), "adds noise to the embeddings"),
    "auto_find_batch_size": RefusedField((False,), "leaves the batch to the memory there is"),
    "eval_delay": RefusedField((0, None), "leaves out the first validations"),
    "dataloader_drop_last": RefusedField((False, True), "drops rows"),
    "resume_from_checkpoint": RefusedField((None, False), "goes on from a checkpoint of theirs"),
    "model_init_kwargs": RefusedField((None, {}), "changes how the model is made", "say it in the model's folder"),
    "disable_dropout": RefusedField((True,), "trains with dropout"),
    "truncation_mode": RefusedField(("keep_start",), "cuts prompts on the left", "preference-tokenize has --truncation"),
    "max_prompt_length": RefusedField((None,), "cuts prompts"),
    "max_completion_length": RefusedField((None,), "cuts responses"),
    "sync_ref_model": RefusedField((False,), "changes the reference while training"),
    "ref_model": RefusedField((None,), "is another reference than the policy that training starts from"),
    "reference_free": RefusedField(
        (False, None), "is a loss without a reference", "dpo.preference_loss=cpo with dpo.cpo_alpha=0 is dpo without one"
    ),
    "model_revision": RefusedField(("main", None), "is another revision of the model", "download it and give its folder"),
    "lora_target_parameters": RefusedField((None,), "adapts parameters that are no layers"),
    "lora_modules_to_save": RefusedField((None, [], ""), "trains whole modules beside the adapters"),
    "use_dora": RefusedField((False, None), "is another adapter than LoRA"),
    "load_in_8bit": RefusedField((False, None), "trains over quantized weights"),
    "load_in_4bit": RefusedField((False, None), "trains over quantized weights"),
    "test_split_size": RefusedField(
        (None, 0), "takes the validation set from the training set", "split the file, and name both"
    ),
    "dataset_mixer": RefusedField((None, {}), _ROWS, "name the data set with dataset_name"),
    "dataset_splits": RefusedField((None, []), _ROWS, "name the splits with dataset_train_split and dataset_test_split"),
    "chat_template": RefusedField(
        (None, "tokenizer_default"), "is another chat template", "set policy.tokenizer.chat_template"
    ),
}
# Names that older releases of TRL and of transformers used -> today's.
FORMER = {
    "torch_dtype": "dtype",
    "revision": "model_revision",
    "evaluation_strategy": "eval_strategy",
}
AXOLOTL = {
    "base_model": "model_name_or_path",
    "sequence_len": "max_length",
    "micro_batch_size": "per_device_train_batch_size",
    "eval_batch_size": "per_device_eval_batch_size",
    "num_epochs": "num_train_epochs",
    "lr_scheduler": "lr_scheduler_type",
    "optimizer": "optim",
    "rl_beta": "beta",
    "dpo_beta": "beta",
    "dpo_label_smoothing": "label_smoothing",
    "dpo_loss_type": "loss_type",
    "dpo_use_weighting": "use_weighting",
    "lora_target_linear": "lora_target_modules",
    "peft_use_dora": "use_dora",
    "peft_use_rslora": "use_rslora",
    "wandb_name": "run_name",
    "bfloat16": "bf16",
}
LLAMA_FACTORY = {
    "lora_rank": "lora_r",
    "pref_beta": "beta",
    "pref_loss": "loss_type",
    "pref_ftx": "rpo_alpha",
    "dpo_label_smoothing": "label_smoothing",
    "cutoff_len": "max_length",
    "additional_target": "lora_modules_to_save",
    "lora_target": "lora_target_modules",
    "val_size": "test_split_size",
}
# Keys of a program itself that `programs` reads: key -> what it says here.
OWN = {
    "axolotl": {
        "rl": "dpo.preference_loss", "adapter": f"{_PEFT}.enabled", "val_set_size": "data.validation",
        "test_datasets": "data.validation", "evals_per_epoch": "dpo.val_period", "saves_per_epoch": "checkpointing.save_period",
        "special_tokens": "nothing: it is refused", "plugins": "nothing: it is refused",
    },
    "llama_factory": {
        "stage": "dpo.preference_loss", "finetuning_type": f"{_PEFT}.enabled", "dataset": "data.train.path",
        "eval_dataset": "data.validation.path", "dataset_dir": "data.train.path", "template": "policy.tokenizer.chat_template",
        "quantization_bit": "nothing: it is refused", "default_system": "nothing: it is refused",
    },
}  # fmt: skip
NAMES = {"trl": FORMER, "axolotl": {**FORMER, **AXOLOTL}, "llama_factory": {**FORMER, **LLAMA_FACTORY}}
TITLES = {"trl": "TRL", "axolotl": "Axolotl", "llama_factory": "LLaMA-Factory"}
# What differs from TRL's defaults.
DEFAULTS: dict[str, dict[str, Any]] = {
    "trl": {},
    "axolotl": {"num_train_epochs": 1.0, "max_length": 512, "gradient_checkpointing": False, "lr_scheduler_type": "cosine",
                "per_device_train_batch_size": 1, "lora_dropout": 0.0, "save_strategy": "epoch", "adam_epsilon": 1e-8},
    "llama_factory": {"learning_rate": 5e-5, "max_length": 2048, "lora_r": 8, "lora_alpha": None, "lora_dropout": 0.0,
                      "bf16": False, "lora_target_modules": "all"},
}  # fmt: skip
