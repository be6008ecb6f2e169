"""The fields of TRL 1.16.0's dataclasses (on transformers 5.23.0) with their defaults, as dataclasses.fields gives them."""

from __future__ import annotations

from typing import Any

FIELDS: dict[str, dict[str, Any]] = {
    "DPOConfig": {
        "output_dir": None, "per_device_train_batch_size": 8, "num_train_epochs": 3.0, "max_steps": -1,
        "learning_rate": 1e-06, "lr_scheduler_type": "linear", "lr_scheduler_kwargs": None, "warmup_steps": 0,
        "optim": "adamw_torch_fused", "optim_args": None, "weight_decay": 0.0, "adam_beta1": 0.9, "adam_beta2": 0.999,
        "adam_epsilon": 1e-08, "optim_target_modules": None, "gradient_accumulation_steps": 1,
        "average_tokens_across_devices": True, "max_grad_norm": 1.0, "label_smoothing_factor": 0.0, "bf16": None,
        "fp16": False, "bf16_full_eval": False, "fp16_full_eval": False, "tf32": None, "activation_checkpointing": None,
        "activation_checkpointing_kwargs": None, "gradient_checkpointing": True, "gradient_checkpointing_kwargs": None,
        "torch_compile": False, "torch_compile_backend": None, "torch_compile_mode": None, "use_liger_kernel": False,
        "liger_kernel_config": None, "use_cache": False, "neftune_noise_alpha": None, "torch_empty_cache_steps": None,
        "auto_find_batch_size": False, "logging_strategy": "steps", "logging_steps": 10, "logging_first_step": False,
        "log_on_each_node": True, "logging_nan_inf_filter": True, "include_num_input_tokens_seen": "no",
        "log_level": "passive", "log_level_replica": "warning", "disable_tqdm": None, "report_to": "none", "run_name": None,
        "project": "huggingface", "trackio_space_id": None, "trackio_bucket_id": None, "trackio_static_space_id": None,
        "eval_strategy": "no", "eval_steps": None, "eval_delay": 0, "per_device_eval_batch_size": 8,
        "prediction_loss_only": False, "eval_on_start": False, "eval_do_concat_batches": True,
        "eval_use_gather_object": False, "eval_accumulation_steps": None, "include_for_metrics": [],
        "batch_eval_metrics": False, "save_only_model": False, "save_strategy": "steps", "save_steps": 500,
        "save_on_each_node": False, "save_total_limit": None, "enable_jit_checkpoint": False, "push_to_hub": False,
        "hub_token": None, "hub_private_repo": None, "hub_model_id": None, "hub_strategy": "every_save",
        "hub_always_push": False, "hub_revision": None, "load_best_model_at_end": False, "metric_for_best_model": None,
        "greater_is_better": None, "ignore_data_skip": False, "restore_callback_states_from_checkpoint": False,
        "full_determinism": False, "seed": 42, "data_seed": None, "use_cpu": False, "accelerator_config": None,
        "parallelism_config": None, "dataloader_drop_last": False, "dataloader_num_workers": 0, "dataloader_pin_memory": True,
        "dataloader_persistent_workers": False, "dataloader_prefetch_factor": None,
        "dataloader_multiprocessing_context": None, "dataloader_in_order": True, "remove_unused_columns": True,
        "label_names": None, "train_sampling_strategy": "random", "length_column_name": "length",
        "ddp_find_unused_parameters": None, "ddp_bucket_cap_mb": None, "ddp_broadcast_buffers": None,
        "ddp_static_graph": None, "ddp_backend": None, "ddp_timeout": 1800, "fsdp": None, "fsdp_config": None,
        "deepspeed": None, "debug": "", "skip_memory_metrics": True, "do_train": False, "do_eval": False, "do_predict": False,
        "resume_from_checkpoint": None, "local_rank": -1, "model_init_kwargs": None, "trust_remote_code": False,
        "router_aux_loss_coef": None, "disable_dropout": True, "dataset_num_proc": None, "max_length": 1024,
        "truncation_mode": "keep_start", "padding_free": False, "pad_to_multiple_of": "auto",
        "precompute_ref_log_probs": False, "precompute_ref_batch_size": None, "loss_type": ["sigmoid"], "loss_weights": None,
        "ld_alpha": None, "f_divergence_type": "reverse_kl", "f_alpha_divergence_coef": 0.5, "label_smoothing": 0.0,
        "beta": 0.1, "use_weighting": False, "discopop_tau": 0.05, "activation_offloading": False, "sync_ref_model": False,
        "ref_model_mixup_alpha": 0.6, "ref_model_sync_steps": 512, "pad_token": None,
    },
    "ModelConfig": {
        "model_name_or_path": None, "model_revision": "main", "dtype": "float32", "attn_implementation": None,
        "use_peft": False, "lora_r": 16, "lora_alpha": 32, "lora_dropout": 0.05, "lora_target_modules": None,
        "lora_target_parameters": None, "lora_modules_to_save": None, "lora_task_type": "CAUSAL_LM", "use_rslora": False,
        "use_dora": False, "load_in_8bit": False, "load_in_4bit": False, "bnb_4bit_quant_type": "nf4",
        "use_bnb_nested_quant": False, "bnb_4bit_quant_storage": None,
    },
    "ScriptArguments": {
        "dataset_name": None, "dataset_config": None, "dataset_train_split": "train", "dataset_test_split": "test",
        "dataset_streaming": False, "ignore_bias_buffers": False,
    },
}  # fmt: skip
