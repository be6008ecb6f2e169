"""Compile a run into stages: which commands run, in which order, on which files. Compiling writes no file and starts nothing.

Each stage is an executable in bin/. This module imports none of their libraries, and a printed plan can be run by hand.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

from nemotron_dpo.config import (
    CheckpointingConfig,
    DatasetConfig,
    MegatronConfig,
    RunConfig,
    objective_names,
    objective_of,
    redact,
    run_tree,
    to_yaml,
)
from nemotron_dpo.config.dpo import DpoConfig
from nemotron_dpo.config.logger import LoggerConfig
from nemotron_dpo.errors import UserError
from nemotron_dpo.steps.compile.data_parts import data_options, data_parts, held_out_options
from nemotron_dpo.steps.compile.programs import executable
from nemotron_dpo.steps.compile.stages import Input, Length, Plan, Stage, launched
from nemotron_dpo.steps.compile.swapped import swapped
from nemotron_dpo.steps.compile.tiny_sft import tiny_sft_prelude
from nemotron_dpo.steps.tiny_policy import TINY_SFT

MAKE_TRAIN = ("preference-tokenize train", "mixture train")  # the stages of which one makes the whole training set
SLOW = ("ref-logprobs train", "dpo-train")  # those that compute with all of it
UNSET_DATA = "TRAIN.jsonl"


def compile_plan(run: RunConfig, job: Path, step_folder: Path) -> Plan:
    """The plan of `run` in the job folder `job`; `step_folder` holds the files that the tiny SFT policy is made from.

    All data sets are tokenized before any is scored, so that a mistake in the last file is found before the long work. Those of
    a mixture are mixed once they are scored, so that another weight or another part needs no scores anew.

    Raises UserError where the processes or the batch do not divide, or the file of the chat template is missing.
    """
    check_processes(run)
    prelude = tiny_sft_prelude(step_folder) if run.policy.model_name == TINY_SFT else None
    if prelude:
        run = replace(run, policy=replace(run.policy, model_name=str(prelude.checkpoint)))
    files = {"train.yaml": to_yaml(redact(run_tree(_trained(run))))} | _inline_template(run)
    datasets = {"train": _input(run.data.train)} | {f"validation-{name}": dataset for name, dataset in run.data.validation}
    parts = {part: rows for name, dataset in datasets.items() for part, rows in data_parts(name, dataset).items()}
    stages = [_tokenize_stage(run, name, dataset, job) for name, dataset in parts.items() if dataset.split_from_train is None]
    if objective_of(run.dpo).needs.reference:
        stages += [_score_stage(run, name, job) for name in parts]
    stages += [_mixture_stage(run, name, dataset, job) for name, dataset in datasets.items() if dataset.is_mixture]
    stages.append(_train_stage(run, job))
    saves = run.checkpointing.enabled and run.dpo.max_num_steps > 0
    export_dir = job / "checkpoint_megatron" if saves else None
    if export_dir:
        stages.append(_export_stage(run, job, export_dir))
    made = {"checkpoint_megatron": export_dir} if export_dir else {}
    return Plan(job, job / "run", export_dir, files, prelude, tuple(stages), made, num_processes(run), _notes(run))


def _notes(run: RunConfig) -> tuple[str, ...]:
    """That nothing is scored, where it is so, and which data look swapped."""
    if objective_of(run.dpo).needs.reference:
        return tuple(swapped(run))
    names = " and ".join(objective_names(run.dpo))
    return (f"{names}: no reference is needed, so no pairs are scored", *swapped(run))


def num_processes(run: RunConfig) -> int:
    """The number of processes, over all nodes, of each stage that runs a model."""
    return run.cluster.gpus_per_node * run.cluster.num_nodes


def check_processes(run: RunConfig) -> None:
    """Raise UserError where the processes do not divide into parallel groups, or the batch over the data-parallel ranks.

    Without this check every process under torchrun would report the same error.
    """
    size, copies = num_processes(run), _copies(run)
    for what, group in copies.items():
        if size % group:
            message = f"{size} processes (cluster.*) do not divide into {what} parallel groups of {group}"
            raise UserError(message, remedy=f"make cluster.gpus_per_node x num_nodes a multiple of {group}")
    replicas, batch = size // next(iter(copies.values())), run.policy.train_global_batch_size
    if batch % replicas:
        message = f"{batch} does not divide over {replicas} data-parallel ranks"
        raise UserError(message, field="policy.train_global_batch_size", remedy=f"make it a multiple of {replicas}")


def _copies(run: RunConfig) -> dict[str, int]:
    """The number of processes that hold one copy of the model, and the number that hold one copy of its experts."""
    megatron = run.policy.megatron_cfg
    tensor, pipeline = megatron.tensor_model_parallel_size, megatron.pipeline_model_parallel_size
    experts = megatron.expert_model_parallel_size * (megatron.expert_tensor_parallel_size or tensor)
    return {
        "tensor x pipeline x context": tensor * pipeline * megatron.context_parallel_size,
        "expert x expert-tensor x pipeline": experts * pipeline,
    }


def _mixture_stage(run: RunConfig, name: str, dataset: DatasetConfig, job: Path) -> Stage:
    suffix = _suffix(run)
    parts = {str(job / f"{part}.{suffix}"): rows.weight for part, rows in data_parts(name, dataset).items()}
    output = job / f"{name}.{suffix}"
    weights = [str(int(weight)) if weight.is_integer() else repr(weight) for weight in parts.values()]
    argv = (sys.executable, "-m", "nemotron_dpo.preferences.mixture", *parts, "--weights", *weights)
    argv += ("-o", str(output), "--seed", str(run.dpo.seed))
    return Stage(f"mixture {name}", argv, inputs={path: Input("stage", path) for path in parts}, outputs=(output,))


def _suffix(run: RunConfig) -> str:
    """The end of the names of the files that are trained on."""
    return "scored.arrow" if objective_of(run.dpo).needs.reference else "pairs.arrow"


def _tokenize_stage(run: RunConfig, name: str, dataset: DatasetConfig, job: Path) -> Stage:
    pairs, data = job / f"{name}.pairs.arrow", str(dataset.path)
    tokenizer = run.policy.tokenizer.name or run.policy.model_name
    inputs = {data: Input("data", data, dataset.split, dataset.subset), tokenizer: Input("tokenizer", tokenizer)}
    argv = [executable("preference-tokenize"), data, "-o", str(pairs), "--tokenizer", tokenizer]
    argv += ["--max-length", str(run.policy.max_total_sequence_length)]
    if run.policy.tokenizer.chat_template:
        template = _template_file(run.policy.tokenizer.chat_template, job)
        argv += ["--chat-template", template]
        inputs[template] = Input("file", template)
    if run.policy.tokenizer.chat_template_kwargs:
        argv += ["--chat-template-kwargs", json.dumps(run.policy.tokenizer.chat_template_kwargs)]
    argv += data_options(dataset)
    outputs = [pairs]
    if name.partition(".")[0] == "train":
        for held_out, share in run.data.validation:
            argv += held_out_options(held_out, share, path := job / f"validation-{held_out}.pairs.arrow")
            outputs += [path] if share.split_from_train is not None else []
    return Stage(f"preference-tokenize {name}", tuple(argv), inputs=inputs, outputs=tuple(outputs))


def _score_stage(run: RunConfig, name: str, job: Path) -> Stage:
    pairs, scored, policy = str(job / f"{name}.pairs.arrow"), job / f"{name}.scored.arrow", _weights(run)
    inputs = {pairs: Input("stage", pairs), policy: Input("policy", policy)}
    argv = ["ref-logprobs", pairs, "-o", str(scored), "--policy", policy, "--precision", run.policy.precision]
    if policy != run.policy.model_name and run.checkpointing.pretrained_checkpoint.format == "megatron_lm":
        argv += ["--hf-model", run.policy.model_name]
    if run.policy.tokenizer.name:
        argv += ["--tokenizer", run.policy.tokenizer.name]
        inputs = {run.policy.tokenizer.name: Input("tokenizer", run.policy.tokenizer.name), **inputs}
    if run.policy.sequence_packing.train_mb_tokens:
        argv += ["--micro-batch-tokens", str(run.policy.sequence_packing.train_mb_tokens)]
    argv += _layout_options(run.policy.megatron_cfg)
    return _launched(run, Stage(f"ref-logprobs {name}", tuple(argv), inputs=inputs, outputs=(scored,)))


def _weights(run: RunConfig) -> str:
    """The folder or id of the weights that training starts from."""
    return run.checkpointing.pretrained_checkpoint.path or run.policy.model_name


def _layout_options(megatron: MegatronConfig) -> list[str]:
    """The options that make ref-logprobs divide the policy as training does, so that it fits in memory and rounds alike."""
    sizes = {
        "--tensor-parallel": megatron.tensor_model_parallel_size,
        "--pipeline-parallel": megatron.pipeline_model_parallel_size,
        "--context-parallel": megatron.context_parallel_size,
        "--expert-parallel": megatron.expert_model_parallel_size,
    }
    given = {option: size for option, size in sizes.items() if size > 1}
    stages = {
        "--first-stage-layers": megatron.num_layers_in_first_pipeline_stage,
        "--last-stage-layers": megatron.num_layers_in_last_pipeline_stage,
    }
    given |= {option: layers for option, layers in stages.items() if layers is not None}
    return [word for option, size in given.items() for word in (option, str(size))]


def _trained(run: RunConfig) -> RunConfig:
    """What dpo-train is told: not what is exported after it, or another export would train anew."""
    return replace(run, checkpointing=replace(run.checkpointing, export_step=CheckpointingConfig.export_step))


def _train_stage(run: RunConfig, job: Path) -> Stage:
    suffix = _suffix(run)
    data, policy, config = str(job / f"train.{suffix}"), run.policy.model_name, str(job / "train.yaml")
    weights = _weights(run)  # dpo-train reads from train.yaml whether they are a pretrained checkpoint's
    inputs = {data: Input("stage", data), weights: Input("policy", weights), config: Input("file", config)}
    argv = ["dpo-train", data, "--policy", policy, "--run-dir", str(job / "run")]
    for name, _ in run.data.validation:
        path = str(job / f"validation-{name}.{suffix}")
        argv += ["--validation", f"{name}={path}"]
        inputs[f"{name}={path}"] = Input("stage", path)
    # With a checkpoint_dir, training also writes outside the run folder. That cannot be cached, so the stage has no outputs.
    outputs = () if run.checkpointing.checkpoint_dir else (job / "run",)
    keep = run.checkpointing
    stage = Stage("dpo-train", (*argv, "-c", config), inputs=inputs, outputs=outputs)
    resumes, may_stop = keep.enabled and keep.save_optimizer, keep.checkpoint_must_save_by is not None
    stage = replace(stage, resumes=resumes and bool(outputs), may_stop_early=may_stop, length=_length(run) if outputs else None)
    return _launched(run, stage)


def _length(run: RunConfig) -> Length | None:
    """How long training is, beside what it would be the same for at any length: steps of a longer run go on from its own."""
    if not (run.checkpointing.enabled and run.dpo.max_num_steps):
        return None
    dpo = replace(run.dpo, max_num_steps=DpoConfig.max_num_steps, max_num_epochs=DpoConfig.max_num_epochs)
    keep = CheckpointingConfig(pretrained_checkpoint=run.checkpointing.pretrained_checkpoint)
    same = replace(run, dpo=dpo, checkpointing=keep, logger=LoggerConfig(token_metrics=run.logger.token_metrics))
    return Length(run.dpo.max_num_steps, run.dpo.max_num_epochs, to_yaml(run_tree(same)))


def _export_stage(run: RunConfig, job: Path, export_dir: Path) -> Stage:
    trained = run.checkpointing.checkpoint_dir or str(job / "run")
    step = str(run.checkpointing.export_step)
    chosen = () if step == "last" else ("--step", step)
    argv = (executable("ckpt-export"), trained, "-o", str(export_dir), "--to", "megatron", *chosen)
    return Stage("ckpt-export", argv, inputs={trained: Input("stage", trained)}, outputs=(export_dir,))


def _launched(run: RunConfig, stage: Stage) -> Stage:
    """`stage` with its launcher: torchrun if the config asks for several processes, which then share this machine's cores."""
    return launched(stage, num_processes(run))


def _input(dataset: DatasetConfig) -> DatasetConfig:
    return dataset if dataset.path is not None or dataset.parts else replace(dataset, path=UNSET_DATA)


def _is_inline(template: str) -> bool:
    return "{%" in template or "{{" in template


def _inline_template(run: RunConfig) -> dict[str, str]:
    template = run.policy.tokenizer.chat_template
    return {"chat_template.jinja": template} if template and _is_inline(template) else {}


def _template_file(template: str, job: Path) -> str:
    if _is_inline(template):
        return str(job / "chat_template.jinja")
    if not Path(template).is_file():
        raise UserError("no such file", source=redact(template), remedy="policy.tokenizer.chat_template names it")
    return template
