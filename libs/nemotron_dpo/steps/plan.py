"""Compile a run into stages: what is executed, in which order, on which files. Touches nothing.

The stages are the executables in bin/; no library of theirs is imported, and a printed plan can be pasted and run by hand.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from nemotron_dpo.config import DatasetConfig, RunConfig, dump_run
from nemotron_dpo.errors import UserError
from nemotron_dpo.steps.programs import executable
from nemotron_dpo.steps.tiny_sft import TINY_SFT, Prelude, tiny_sft_prelude

UNSET_DATA = "TRAIN.jsonl"


@dataclass(frozen=True)
class Stage:
    """One command; `env` is added to the environment."""

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """Stages in order, after `prelude` (what must be in the cache); `files` are written into `job` before them."""

    job: Path
    run_dir: Path
    export_dir: Path | None
    files: Mapping[str, str]
    prelude: Prelude | None
    stages: tuple[Stage, ...]


def compile_plan(run: RunConfig, job: Path, step_folder: Path) -> Plan:
    """The plan of `run` in the job folder `job`; what the tiny SFT policy is made from lies in `step_folder`."""
    check_processes(run)
    prelude = tiny_sft_prelude(step_folder) if run.policy.model_name == TINY_SFT else None
    if prelude:
        run = replace(run, policy=replace(run.policy, model_name=str(prelude.checkpoint)))
    files = {"train.yaml": dump_run(run)} | _inline_template(run)
    train, validation = _input(run.data.train), dict(run.data.validation)
    stages = [*_prepare(run, "train", train, job)]
    for name, dataset in validation.items():
        stages += _prepare(run, _validation_name(name), dataset, job)
    stages.append(_train_stage(run, job, list(validation)))
    export_dir = job / "checkpoint_megatron" if run.checkpointing.enabled else None
    if export_dir:
        trained = run.checkpointing.checkpoint_dir or str(job / "run")
        argv = (executable("ckpt-export"), trained, "-o", str(export_dir), "--to", "megatron")
        stages.append(Stage("ckpt-export", argv))
    return Plan(job, job / "run", export_dir, files, prelude, tuple(stages))


def check_processes(run: RunConfig) -> None:
    """Raise UserError where processes or batch do not divide, before torchrun would say so once a process."""
    megatron, num_processes = run.policy.megatron_cfg, run.cluster.gpus_per_node * run.cluster.num_nodes
    copies = megatron.tensor_model_parallel_size * megatron.pipeline_model_parallel_size
    if num_processes % copies:
        message = f"{num_processes} processes (cluster.*) do not divide into tensor x pipeline parallel groups of {copies}"
        raise UserError(message, remedy=f"make cluster.gpus_per_node x num_nodes a multiple of {copies}")
    replicas, batch = num_processes // copies, run.policy.train_global_batch_size
    if batch % replicas:
        message = f"{batch} does not divide over {replicas} data-parallel ranks"
        raise UserError(message, field="policy.train_global_batch_size", remedy=f"make it a multiple of {replicas}")


def missing_inputs(run: RunConfig) -> list[str]:
    """What the plan would stumble on at once: data that is not named or not there, one remedy a line."""
    lines = []
    if run.data.train.path is None:
        lines.append("data.train.prompt_file is not set: give data.train.prompt_file=FILE, preference JSONL")
    for name, dataset in (("train", run.data.train), *run.data.validation):
        if dataset.path is not None and not _there(dataset.path):
            lines.append(f"{dataset.path}: no such file: it is the data of {name}")
    return lines


def _prepare(run: RunConfig, name: str, dataset: DatasetConfig, job: Path) -> list[Stage]:
    """Tokenize `dataset` and, unless nothing is preferred, score it under the reference."""
    pairs = job / f"{name}.pairs.arrow"
    tokenizer = run.policy.tokenizer.name or run.policy.model_name
    argv = [executable("preference-tokenize"), str(dataset.path), "-o", str(pairs), "--tokenizer", tokenizer]
    argv += ["--max-length", str(run.policy.max_total_sequence_length)]
    if run.policy.tokenizer.chat_template:
        argv += ["--chat-template", _template_file(run.policy.tokenizer.chat_template, job)]
    for option in ("prompt_key", "chosen_key", "rejected_key", "limit", "on_error"):
        if (value := getattr(dataset, option)) is not None:
            argv += [f"--{option.replace('_', '-')}", str(value)]
    stages = [Stage(f"preference-tokenize {name}", tuple(argv))]
    if _needs_reference(run):
        stages.append(_score_stage(run, name, pairs, job))
    return stages


def _score_stage(run: RunConfig, name: str, pairs: Path, job: Path) -> Stage:
    argv = ["ref-logprobs", str(pairs), "-o", str(job / f"{name}.scored.arrow"), "--policy", run.policy.model_name]
    argv += ["--precision", run.policy.precision]
    if run.policy.tokenizer.name:
        argv += ["--tokenizer", run.policy.tokenizer.name]
    if run.policy.sequence_packing.train_mb_tokens:
        argv += ["--micro-batch-tokens", str(run.policy.sequence_packing.train_mb_tokens)]
    return _launched(run, Stage(f"ref-logprobs {name}", tuple(argv)))


def _train_stage(run: RunConfig, job: Path, validation: list[str]) -> Stage:
    suffix = "scored.arrow" if _needs_reference(run) else "pairs.arrow"
    argv = ["dpo-train", str(job / f"train.{suffix}"), "--policy", run.policy.model_name, "--run-dir", str(job / "run")]
    for name in validation:
        argv += ["--validation", f"{name}={job / _validation_name(name)}.{suffix}"]
    return _launched(run, Stage("dpo-train", (*argv, "-c", str(job / "train.yaml"))))


def _launched(run: RunConfig, stage: Stage) -> Stage:
    """`stage` under torchrun where the config asks for several processes, which share this machine's cores."""
    num_processes = run.cluster.gpus_per_node * run.cluster.num_nodes
    program = executable(stage.argv[0])
    if num_processes == 1:
        return replace(stage, argv=(program, *stage.argv[1:]))
    launcher = (executable("torchrun"), "--standalone", "--nproc-per-node", str(num_processes), "--no-python")
    threads = str(max(1, (os.cpu_count() or 1) // num_processes))
    return replace(stage, argv=(*launcher, program, *stage.argv[1:]), env={"OMP_NUM_THREADS": threads})


def _needs_reference(run: RunConfig) -> bool:
    return run.dpo.preference_loss_weight > 0


def _validation_name(name: str) -> str:
    return f"validation-{name}"


def _input(dataset: DatasetConfig) -> DatasetConfig:
    return dataset if dataset.path is not None else replace(dataset, path=UNSET_DATA)


def _there(path: str) -> bool:
    folder = Path(path).expanduser().parent
    return Path(path).expanduser().exists() or bool(list(folder.glob(Path(path).name)))


def _is_inline(template: str) -> bool:
    return "{%" in template or "{{" in template


def _inline_template(run: RunConfig) -> dict[str, str]:
    template = run.policy.tokenizer.chat_template
    return {"chat_template.jinja": template} if template and _is_inline(template) else {}


def _template_file(template: str, job: Path) -> str:
    if _is_inline(template):
        return str(job / "chat_template.jinja")
    if not Path(template).is_file():
        raise UserError("no such file", source=template, remedy="policy.tokenizer.chat_template names it")
    return template
