"""The plan of convert/merge_lora: adapters are merged once, into one format that is asked for; the other is made of that."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from nemotron_dpo.config import redact
from nemotron_dpo.config.steps import MergeLoraConfig
from nemotron_dpo.errors import UserError
from nemotron_dpo.steps.compile.single_stage_plans import export_stage, job_plan
from nemotron_dpo.steps.compile.stages import Input, Plan, Stage


def plan_merge_lora(config: MergeLoraConfig, job: Path, folder: Path) -> Plan:
    """One ckpt-export of the adapters, and one of the merged checkpoint where both formats are asked for."""
    adapters, base = config.lora_checkpoint or "ADAPTERS", config.base_megatron_path or config.base_hf_path
    targets = _targets(config, job)
    _refuse_overlap(adapters, base, list(targets.values()))
    precision = None if config.torch_dtype == "auto" else config.torch_dtype
    (form, target), *others = targets.items()
    stages = [_over(base, export_stage(adapters, target, form, precision))]
    for second, path in others:
        stage = export_stage(str(target), path, second, None)
        stages.append(replace(stage, inputs={str(target): Input("stage", str(target))}))
    named = [replace(stage, name=f"ckpt-export {form}") for stage, form in zip(stages, targets, strict=True)]
    return job_plan(config, job, tuple(named), {f"checkpoint_{form}": path for form, path in targets.items()})


def _targets(config: MergeLoraConfig, job: Path) -> dict[str, Path]:
    """Format -> the folder to create. Raises UserError where nothing would be written."""
    targets: dict[str, Path] = {}
    if config.backend != "hf_peft" and (config.output_megatron_path or config.backend == "megatron_bridge"):
        targets["megatron"] = Path(config.output_megatron_path or job / "checkpoint_megatron")
    if config.export_hf:
        targets["hf"] = Path(config.output_hf_path or job / "checkpoint_hf")
    if not targets:
        message = "is false, and no Megatron checkpoint is asked for either"
        raise UserError(message, field="export_hf", remedy="give output_megatron_path=FOLDER")
    return targets


def _refuse_overlap(adapters: str, base: str | None, targets: list[Path]) -> None:
    read = {"lora_checkpoint": adapters} | ({"the base": base} if base else {})
    for target in map(Path.resolve, targets):
        for what, name in read.items():
            if target.is_relative_to(Path(name).resolve()) or Path(name).resolve().is_relative_to(target):
                raise UserError(f"would be written over {what}, {redact(name)}", source=target, remedy="name a new folder")
    if len({target.resolve() for target in targets}) < len(targets):
        raise UserError("is the place of both formats", source=targets[0], remedy="name two folders")


def _over(base: str | None, stage: Stage) -> Stage:
    if base is None:
        return stage
    inputs = {**stage.inputs, base: Input("policy", base)}
    return replace(stage, argv=(*stage.argv, "--base", base), inputs=inputs)
