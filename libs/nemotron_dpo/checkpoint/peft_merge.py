"""Add the LoRA adapters of a Hugging Face peft folder to the weights of their base, as peft's merge_and_unload does.

peft names an adapter by the Hugging Face module it stands beside, so the product is added to that module's part of a
parameter, in float32. What a folder asks for and this would not compute (DoRA, biases, modules trained whole, weights of
the base that the adapters' start has changed) is refused by name.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from nemotron_dpo import hf_folder
from nemotron_dpo.checkpoint import hf
from nemotron_dpo.checkpoint.families import stored_module
from nemotron_dpo.checkpoint.peft_folder import CONFIG, WEIGHTS
from nemotron_dpo.errors import UserError
from nemotron_dpo.policy.architecture import Architecture
from nemotron_dpo.policy.model import PairPolicy
from nemotron_dpo.weights_file import opened

_KEY = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<part>[AB])(?:\.default)?\.weight")
_COPY = re.compile(r"(?:base_model\.model\.)?(?P<module>.+?)(?:\.base_layer)?\.weight")
_NAME = re.compile(r"[\w.]+")
# Settings that do not change what is added to which weights, besides those that are read.
_IDLE = """task_type auto_mapping peft_version base_model_name_or_path revision inference_mode r target_modules exclude_modules
lora_alpha lora_dropout use_rslora layers_to_transform layers_pattern rank_pattern alpha_pattern megatron_core runtime_config
qalora_group_size ensure_weight_tying loftq_config eva_config"""
_ONLY: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal"),  # the others start from a changed base
}


@dataclass(frozen=True)
class _Scales:
    """`alpha` / rank of every adapter, or over the rank's root; `patterns` maps names of modules to their own alpha."""

    alpha: float
    patterns: Mapping[str, float]
    is_root: bool

    def of(self, module: str, rank: int) -> float:
        own = next((a for name, a in self.patterns.items() if f".{module}".endswith(f".{name}")), self.alpha)
        return own / (math.sqrt(rank) if self.is_root else rank)


def base_of(folder: Path) -> str | None:
    """Where the folder's config says that the base lies: an id or a path."""
    return _config(folder).get("base_model_name_or_path") or None


def merge(model: PairPolicy, folder: Path) -> None:
    """Add the adapters in `folder` to the weights of `model`, their base, whole on this rank.

    Raises UserError where the folder is damaged, asks for what is not built, or adapts what the model does not have.
    """
    scales, (pairs, copies) = _scales(folder, model.architecture), _adapters(folder, model.architecture)
    _refuse_missing(model, pairs.keys(), folder)
    for _, parameter, rule, place in hf.placed(model):
        names = [key.format(*place).removesuffix(".weight") for key in rule.hf]
        if not any(name in pairs or name in copies for name in names):
            continue
        layer = hf.layer_at(model.architecture, place)
        parts = [part.float() for part in rule.split(layer, parameter.detach())]
        for i, name in enumerate(names):
            if name in copies and not torch.equal(copies.pop(name).to(parts[i]), parts[i]):
                what = f"has a {name} of its own, which is not the base's"
                raise UserError(what, source=folder / WEIGHTS, remedy="name the base that the adapters were trained over")
            if name in pairs:
                parts[i] = parts[i] + _product(*pairs.pop(name), scales, name, parts[i].shape, folder).to(parts[i].device)
        with torch.no_grad():
            parameter.copy_(rule.merge(layer, parts))
    _refuse_leftovers({*pairs, *copies}, folder)


def _refuse_missing(model: PairPolicy, adapted: Collection[str], folder: Path) -> None:
    """Refuse a file that lacks adapters which the config names: an interrupted save has none, and would change nothing."""
    config = _config(folder)
    targets = config.get("target_modules")
    missing = [] if adapted else ["any module"]
    if isinstance(targets, list) and not (config.get("layers_to_transform") or config.get("exclude_modules")):
        places = [(key, place) for _, _, rule, place in hf.placed(model) for key in rule.hf if key.endswith(".weight")]
        modules = [key.format(*place).removesuffix(".weight") for key, place in places]
        stored = [stored_module(model.architecture, target) for target in targets]
        missing += [name for name in modules if _is_named(name, stored) and name not in adapted]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        what = f"has no adapter for {missing[0]}{more}, which {CONFIG} names"
        raise UserError(what, source=folder / WEIGHTS, remedy="is it complete, and of this model?")


def _is_named(module: str, targets: Sequence[str]) -> bool:
    return any(f".{module}".endswith(f".{target}") for target in targets)


def _refuse_leftovers(modules: set[str], folder: Path) -> None:
    if modules:
        more = f" and {len(modules) - 1} more" if len(modules) > 1 else ""
        what = f"has weights for {min(modules)}{more}, which is no weight of the base here"
        raise UserError(what, source=folder / WEIGHTS, remedy="is it of another model?")


def _product(a: Tensor, b: Tensor, scales: _Scales, name: str, shape: torch.Size, folder: Path) -> Tensor:
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1] or (b.shape[0], a.shape[1]) != shape:
        what = f"has A {tuple(a.shape)} and B {tuple(b.shape)} for {name}, which is {tuple(shape)}"
        raise UserError(what, source=folder / WEIGHTS, remedy="is it of another model?")
    return b.float() @ a.float() * scales.of(name, a.shape[0])


def _adapters(folder: Path, architecture: Architecture) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, Tensor]]:
    """Module, by its name in files -> its (A [r, I], B [O, r]); and -> the base's own weight, of which peft may save a copy."""
    try:
        with opened(folder / WEIGHTS, "pt", absent="save the adapters as safetensors") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - safetensors' file is no dict
    except SafetensorError as error:
        raise UserError(f"cannot be read ({error})", source=folder / WEIGHTS) from None
    found: dict[str, dict[str, Tensor]] = {}
    copies: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        if (match := _KEY.fullmatch(key)) and tensor.is_floating_point():
            found.setdefault(stored_module(architecture, match["module"]), {})[match["part"]] = tensor
        elif (match := _COPY.fullmatch(key)) and ".lora_" not in key:
            copies[stored_module(architecture, match["module"])] = tensor
        else:
            raise UserError(f"has {key}, which is no weight of a LoRA adapter", source=folder / WEIGHTS)
    if lonely := sorted(module for module, parts in found.items() if len(parts) < 2):
        raise UserError(f"has one of A and B alone for {lonely[0]}", source=folder / WEIGHTS, remedy="is it complete?")
    return {module: (parts["A"], parts["B"]) for module, parts in found.items()}, copies


def _scales(folder: Path, architecture: Architecture) -> _Scales:
    config, path = _config(folder), folder / CONFIG
    for key, value in {"peft_type": None, **config}.items():
        if (value not in _ONLY[key]) if key in _ONLY else (key not in _IDLE.split() and value):
            raise UserError(f"is {json.dumps(value)}, which is not built", source=path, field=key, remedy="merge with peft")
    patterns = config.get("alpha_pattern") or {}
    numbers = (int, float)
    if not isinstance(config.get("lora_alpha"), numbers) or isinstance(config["lora_alpha"], bool):
        raise UserError("is no number", source=path, field="lora_alpha")
    if not isinstance(patterns, dict) or not all(_NAME.fullmatch(n) and isinstance(a, numbers) for n, a in patterns.items()):
        raise UserError("does not map names of modules to numbers", source=path, field="alpha_pattern")
    patterns = {stored_module(architecture, name): alpha for name, alpha in patterns.items()}
    return _Scales(config["lora_alpha"], patterns, is_root=bool(config.get("use_rslora")))


def _config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        config = hf_folder.parsed_config(path.read_bytes())
    except FileNotFoundError:
        raise UserError("is missing", source=path) from None
    except ValueError as error:
        raise UserError(f"is no JSON ({error})", source=path) from None
    if not isinstance(config, dict):
        raise UserError("is no JSON object", source=path)
    return config
