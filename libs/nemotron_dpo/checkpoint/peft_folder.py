"""LoRA adapters as a folder of Hugging Face's peft, which its users and inference servers load beside the base model.

In peft the query, key and value projections (and gate and up) have separate adapters. Each gets our common A and its own rows
of B.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from nemotron_dpo import machine_errors
from nemotron_dpo.checkpoint.families import FAMILIES, module_of, rules, wrapper_of
from nemotron_dpo.errors import UserError
from nemotron_dpo.policy.architecture import Architecture
from nemotron_dpo.policy.lora import Adapted, adapted_of, adapters
from nemotron_dpo.policy.model import PairPolicy

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def save(model: PairPolicy, folder: Path, dtype: torch.dtype) -> None:
    """Write the adapters of `model` (whole, TP = PP = 1) into the existing folder. Raises UserError where that fails."""
    adapted = adapted_of(model)
    assert adapted is not None
    modules = _modules(model)
    tensors = {
        f"base_model.model.{name}.{part}.weight": weight.detach().to("cpu", dtype, copy=True).contiguous()
        for name, pair in modules.items()
        for part, weight in zip(("lora_A", "lora_B"), pair, strict=True)
    }
    (folder / CONFIG).write_text(json.dumps(_config(adapted, list(modules), model.architecture), indent=2) + "\n")
    try:
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    except SafetensorError as error:
        found = machine_errors.behind(error) or UserError(str(error))
        raise UserError(f"cannot be written ({found.message})", remedy=found.remedy) from None
    shutil.copymode(folder / CONFIG, folder / WEIGHTS)  # safetensors writes 0600, whatever the umask


def _modules(model: PairPolicy) -> dict[str, tuple[Tensor, Tensor]]:
    """Name of each adapted Hugging Face module -> its (A [r, I], B [O, r])."""
    by_name, found = {rule.megatron: rule for rule in rules(model.architecture)}, {}
    for name, layer in adapters(model).items():
        if ".local_experts." in name:
            what = "has adapters of experts, for which transformers has no modules that peft could put them beside"
            raise UserError(what, remedy="--to hf merges them")
        number = int(name.split(".")[2])
        rule = by_name[re.sub(r"layers\.\d+\.", "layers.{}.", name) + ".weight"]
        parts = rule.split(model.architecture.layers[number], layer.adapter.linear_out.weight)
        if lost := [key for key in rule.hf if key.split(".")[-2] in FAMILIES[model.architecture.family].lost_in_peft]:
            what = f"has adapters of {lost[0].format(number).removesuffix('.weight')}, which peft leaves out without a word"
            raise UserError(what, remedy="--to hf merges them")
        for key, part in zip(rule.hf, parts, strict=True):
            found[module_of(model.architecture, key.format(number))] = layer.adapter.linear_in.weight, part
    return found


def _config(adapted: Adapted, modules: list[str], architecture: Architecture) -> dict[str, Any]:
    """Modules are named by their ends where all that end so are adapted; a tower beside the text model may have some too."""
    own = sorted({name.rpartition(".")[2] for name in modules})
    by_kind = len(modules) == len(own) * len(architecture.layers) and wrapper_of(architecture) is None
    return {
        "base_model_name_or_path": adapted.base.location,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "lora_alpha": adapted.lora.alpha,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": adapted.lora.dim,
        "target_modules": own if by_kind else sorted(modules),
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }
