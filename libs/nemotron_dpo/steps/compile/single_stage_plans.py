"""Plans of the steps around DPO: convert a checkpoint, check rows, score a policy on held-out pairs, write env.toml."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson

from nemotron_dpo.config import DatasetConfig, plain_tree, redact, to_yaml
from nemotron_dpo.config.steps import (
    EnvTomlConfig,
    HfToMegatronConfig,
    MegatronToHfConfig,
    MergeLoraConfig,
    PreferenceScoreConfig,
    PreferenceTokenizeConfig,
)
from nemotron_dpo.errors import UserError
from nemotron_dpo.preferences.changed_lines import changed_lines
from nemotron_dpo.preferences.data_sources import absence
from nemotron_dpo.sources import resolve_run
from nemotron_dpo.steps.compile.data_parts import data_options
from nemotron_dpo.steps.compile.programs import executable
from nemotron_dpo.steps.compile.stages import Input, Plan, Stage, launched
from nemotron_dpo.steps.profiles.env_toml import checked_settings

# Placeholders that a dry run prints for values that are not set yet.
_UNSET = {"data.path": "PAIRS.jsonl", "hf_model_id": "HF_MODEL", "megatron_path": "CHECKPOINT", "policy.model_name": "POLICY"}


def plan_hf_to_megatron(config: HfToMegatronConfig, job: Path, folder: Path) -> Plan:
    """One ckpt-export to the Megatron format."""
    target = Path(config.megatron_path or job / "checkpoint_megatron")
    source = config.hf_model_id or _UNSET["hf_model_id"]
    stage = export_stage(source, target, "megatron", config.torch_dtype)
    return job_plan(config, job, (stage,), {"checkpoint_megatron": target})


def plan_megatron_to_hf(config: MegatronToHfConfig, job: Path, folder: Path) -> Plan:
    """One ckpt-export to the Hugging Face format."""
    target = Path(config.hf_path or job / "checkpoint_hf")
    source = config.megatron_path or _UNSET["megatron_path"]
    return job_plan(config, job, (export_stage(source, target, "hf", config.torch_dtype),), {"checkpoint_hf": target})


def plan_tokenize(config: PreferenceTokenizeConfig, job: Path, folder: Path) -> Plan:
    """One preference-tokenize that also writes its audit, stats.json and rejects.jsonl, beside the pairs."""
    argv = [
        "--num-workers",
        str(config.num_workers),
        "--stats",
        str(job / "stats.json"),
        "--rejects",
        str(job / "rejects.jsonl"),
    ]
    outputs = (job / "pairs.arrow", job / "stats.json", job / "rejects.jsonl")
    stage = _tokenize(config.data, config.tokenizer or "TOKENIZER", config.max_length, outputs, argv, config.chat_template)
    return job_plan(config, job, (stage,), {"tokenized_pairs": outputs[0], "preference_audit": outputs[1]})


def plan_score(config: PreferenceScoreConfig, job: Path, folder: Path) -> Plan:
    """Tokenize the pairs once, score them under the policy and the other models that are named; then report the figures.

    A model may be the folder of a run: it means the run's last checkpoint.
    """
    policy = _checkpoint(config.policy.model_name) or _UNSET["policy.model_name"]
    stages = [_tokenize(config.data, policy, config.max_length, (job / "pairs.arrow",), [], None)]
    others = {name: _checkpoint(getattr(config, name).model_name) for name in ("reference", "against")}
    models = {"policy": policy} | {name: model for name, model in others.items() if model}
    stages += [_score(config, name, model, job) for name, model in models.items()]
    scored, report = {name: str(job / f"{name}.arrow") for name in models}, job / "scores.json"
    argv = [sys.executable, "-m", "nemotron_dpo.preferences.margins", scored["policy"], "-o", str(report)]
    if "reference" in scored:
        argv += ["--reference", scored["reference"], "--beta", str(config.reference_policy_kl_penalty)]
    argv += ["--against", scored["against"]] if "against" in scored else []
    inputs = {path: Input("stage", path) for path in scored.values()}
    stages.append(Stage("margins", tuple(argv), inputs=inputs, outputs=(report,)))
    num_processes = config.cluster.gpus_per_node * config.cluster.num_nodes
    return job_plan(config, job, tuple(stages), {"eval_results": report}, num_processes)


def _checkpoint(model: str | None) -> str | None:
    """`model`, or where it is the folder of a run that of its last checkpoint."""
    if model is None or not Path(model).is_dir():
        return model
    try:
        return resolve_run(model).name
    except UserError:  # ref-logprobs says what is wrong with it
        return model


def plan_env_toml(config: EnvTomlConfig, job: Path, folder: Path) -> Plan:
    """One command that writes env.toml. It has no outputs in the plan, so it is never up to date and runs every time."""
    target = _env_target(config)
    argv = [
        sys.executable,
        "-m",
        "nemotron_dpo.steps.profiles.env_toml",
        str(config.template),
        *checked_settings(config.sections),
    ]
    argv += ["-o", str(target), *(["--force"] if config.force else [])]
    return job_plan(config, job, (Stage("env-toml", tuple(argv)),), {"env_toml": target})


def missing(config: Any, *, look: bool = True) -> list[str]:
    """Why the step cannot run yet, a line with its remedy for each reason.

    One reason is a required key that is not set. With `look`, which needs the files of the step on this machine, further
    reasons are data that does not exist and an env.toml that exists already and must not be replaced.
    """
    lines = [f"{key} is not set: give {key}={example}" for key, example in _required(config).items()]
    if not look:
        return lines
    if isinstance(config, PreferenceTokenizeConfig | PreferenceScoreConfig) and config.data.path:
        why = absence(config.data.path, config.data.split)
        lines += [f"{redact(config.data.path)}: {why}: it is data.path"] if why else []
    if isinstance(config, EnvTomlConfig) and not config.force and _env_target(config).exists():
        lines.append(f"{_env_target(config)}: exists already: force=true replaces it, output_path=FILE writes another")
    return lines


def report(plan: Plan, config: Any, typed: Sequence[str]) -> str:
    """The result of the step as text: the figures of its JSON reports, then the path of each artifact."""
    facts = [line for path in plan.artifacts.values() if path.suffix == ".json" for line in _figures(path)]
    return "\n".join([*facts, *(f"{name}: {path}" for name, path in plan.artifacts.items())])


def _env_target(config: EnvTomlConfig) -> Path:
    return Path(config.output_path or "env.toml")


def _required(config: Any) -> dict[str, str]:
    required = {
        HfToMegatronConfig: {"hf_model_id": "ID_OR_FOLDER"},
        MegatronToHfConfig: {"megatron_path": "CHECKPOINT_OR_RUN"},
        MergeLoraConfig: {"lora_checkpoint": "RUN_OR_ADAPTERS"},
        PreferenceTokenizeConfig: {"data.path": "FILE", "tokenizer": "ID_OR_FOLDER"},
        PreferenceScoreConfig: {"data.path": "FILE", "policy.model_name": "ID_OR_FOLDER"},
        EnvTomlConfig: {"template": "FILE"},
    }[type(config)]
    return {key: example for key, example in required.items() if _value(asdict(config), key) is None}


def _value(tree: Mapping[str, Any], key: str) -> Any:
    value: Any = tree
    for part in key.split("."):
        value = value[part]
    return value


def job_plan(config: Any, job: Path, stages: tuple[Stage, ...], artifacts: Mapping[str, Path], num_processes: int = 1) -> Plan:
    """The plan of `stages` in the job folder `job`, with the config as its train.yaml."""
    files = {"train.yaml": to_yaml(redact(plain_tree(config)))}
    return Plan(job, job, None, files, None, stages, artifacts, num_processes)


def export_stage(source: str, target: Path, form: str, precision: str | None) -> Stage:
    """One ckpt-export. Raises UserError where it would write over what it reads."""
    if Path(source).resolve() == target.resolve():
        raise UserError("is source and target of the conversion", source=redact(source), remedy="name another target")
    argv = [executable("ckpt-export"), source, "-o", str(target), "--to", form]
    argv += ["--precision", precision] if precision else []
    return Stage("ckpt-export", tuple(argv), inputs={source: Input("policy", source)}, outputs=(target,))


def _tokenize(
    data: DatasetConfig,
    tokenizer: str,
    max_length: int | None,
    outputs: tuple[Path, ...],
    options: list[str],
    template: str | None,
) -> Stage:
    if data.is_mixture:
        raise UserError("is no single data set", field="data", remedy="leave out weights; only rl/nemo_rl/dpo mixes data sets")
    rows = data.path or _UNSET["data.path"]
    for key in (key for key in ("split_from_train", "split_seed") if getattr(data, key) is not None):
        raise UserError("is about training, and here is none", field=f"data.{key}", remedy="leave it out")
    argv = [executable("preference-tokenize"), rows, "-o", str(outputs[0]), "--tokenizer", tokenizer, *options]
    argv += ["--max-length", str(max_length)] if max_length else []
    argv += ["--chat-template", template] if template else []
    argv += data_options(data)
    inputs = {rows: Input("data", rows, data.split, data.subset), tokenizer: Input("tokenizer", tokenizer)}
    inputs |= {template: Input("file", template)} if template else {}
    return Stage("preference-tokenize", tuple(argv), inputs=inputs, outputs=outputs)


def _score(config: PreferenceScoreConfig, name: str, model: str, job: Path) -> Stage:
    pairs, scored = str(job / "pairs.arrow"), job / f"{name}.arrow"
    argv = ["ref-logprobs", pairs, "-o", str(scored), "--policy", model, "--precision", config.precision]
    argv += ["--micro-batch-tokens", str(config.micro_batch_tokens)] if config.micro_batch_tokens else []
    argv += [] if name == "reference" else ["--of-policy"]
    inputs = {pairs: Input("stage", pairs), model: Input("policy", model)}
    stage = Stage(f"ref-logprobs {name}", tuple(argv), inputs=inputs, outputs=(scored,))
    return launched(stage, config.cluster.gpus_per_node * config.cluster.num_nodes)


def _figures(path: Path) -> list[str]:
    """The numbers of a JSON report with their intervals, one a line; those of a section share the line with its name."""
    report = orjson.loads(path.read_bytes())
    edges, changed = report.pop("intervals_95", {}), report.pop("changed_most", None)
    said = _lines(report, edges, "")
    return said if changed is None else [*said, *changed_lines(changed)]


def _lines(section: Mapping[str, Any], edges: Mapping[str, Any], within: str) -> list[str]:
    lines: list[str] = []
    for key, value in section.items():
        known = edges.get(key) or {}
        if isinstance(value, dict):
            deeper = {name: item for name, item in value.items() if isinstance(item, dict)}
            flat = {name: item for name, item in value.items() if isinstance(item, int | float)}
            inner = ", ".join(f"{name} {_figure(item, known.get(name))}" for name, item in flat.items())
            lines += [f"{within}{key}: {inner}"] if inner else []
            lines += _lines(deeper, known, f"{within}{key} ")
        elif isinstance(value, int | float):
            lines.append(f"{within}{key}: {_figure(value, known)}")
    return lines


def _figure(value: float, edges: Sequence[float] | Mapping[str, Any] | None = None) -> str:
    shown = f"{value:.4f}" if isinstance(value, float) else str(value)
    return f"{shown} ({edges[0]:.4f} to {edges[1]:.4f})" if isinstance(edges, list) else shown
