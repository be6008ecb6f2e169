"""Checkpoints that hold LoRA adapters alone: what their run_config.yaml says of the adapters and of their base.

The adapters' keys and the `peft` section are Megatron-Bridge's. `checkpoint.pretrained_checkpoint` says where the base lies.
Our own section has the digest of the base's weights: the same adapters over other weights would be another policy.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch.distributed as dist
import yaml

from nemotron_dpo import documents, file_digests
from nemotron_dpo.checkpoint.run_config import NAME
from nemotron_dpo.checkpoint.weights_digest import OF_FILES, is_digest_of, weights_digest
from nemotron_dpo.errors import UserError
from nemotron_dpo.folder_files import has_file
from nemotron_dpo.policy.architecture import Architecture
from nemotron_dpo.policy.lora import Adapted, Base
from nemotron_dpo.policy.lora_targets import Lora, linear_names
from nemotron_dpo.sources import ModelSource, resolve

_TARGET = "megatron.bridge.peft.lora.LoRA"
_DIGEST = "base_weights_digest"


def base_of(source: ModelSource, digest: str) -> Base:
    """`source` as adapters name their base: its folder, or the Hugging Face id that it was downloaded by."""
    local = Path(source.name).expanduser().exists()
    return Base(str(source.path.resolve()) if local else source.name, digest)


def describe(adapted: Adapted, folder: Path) -> None:
    """Add the adapters and their base to the run_config.yaml of an iteration folder."""
    path = folder / NAME
    sections = yaml.safe_load(path.read_text())
    sections["peft"] = _peft(adapted.lora)
    sections.setdefault("checkpoint", {})["pretrained_checkpoint"] = adapted.base.location
    sections.setdefault("nemotron_dpo", {})[_DIGEST] = adapted.base.digest
    path.write_text(yaml.safe_dump(sections, sort_keys=True))


def read(source: ModelSource) -> Adapted | None:
    """The adapters that `source` holds; None for a whole policy. Raises UserError where their description is damaged."""
    path = source.path / NAME
    if source.kind != "megatron" or not has_file(path):
        return None
    file_digests.check(source.path, NAME)
    try:
        sections = documents.read_yaml(path)
        peft = sections.get("peft")
        if peft is None:
            return None
        base = Base(source.base or sections["checkpoint"]["pretrained_checkpoint"], _digest(sections, source))
        return Adapted(_lora(peft), base)
    except (yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        what = f"does not describe adapters ({type(error).__name__}: {error})"
        raise UserError(what.replace("\n", " "), source=path) from None


def names_no_weights(source: ModelSource) -> bool:
    """Whether `source` holds adapters that do not say by digest which weights they were trained over, as ours do."""
    if source.kind == "peft":
        return True
    adapted = read(source)
    return adapted is not None and not adapted.base.digest


def open_base(adapted: Adapted, source: ModelSource) -> ModelSource:
    """The base of the adapters in `source`. Raises UserError where it is gone, or its weights are not those they began with."""
    base, folder = adapted.base, source.path
    if not source.base and Path(base.location).is_absolute() and not Path(base.location).exists():
        remedy = "put it back, or name it with ckpt-export --base: adapters mean nothing without their base"
        raise UserError(f"holds adapters over {base.location}, which is gone", source=folder, remedy=remedy)
    found = resolve(base.location)
    if base.digest and dist.get_rank() == 0 and not is_digest_of(base.digest, found):
        now = found.files_digest() if base.digest.startswith(OF_FILES) else weights_digest(found)
        seen = f"({now} where {base.digest} is due)"
        if source.base:
            what, remedy = f"holds adapters over other weights than those of {base.location} {seen}", "name their own base"
        else:
            what = f"holds adapters over {base.location}, whose weights have changed {seen}"
            remedy = "put the weights back that the run began with"
        raise UserError(what, source=folder, remedy=remedy)
    return found


def refuse_behind_norms(adapted: Adapted, architecture: Architecture, source: ModelSource) -> None:
    """Raise UserError where Megatron-Bridge trained adapters whose products it adds behind a norm, as peft and we do not.

    Its linear layers have the norm of what a sublayer adds within. Adapters of ours are told by the digest of their base.
    """
    normed = any(getattr(sublayer, "norm_after", False) for sublayer in architecture.sublayers())
    names = (name for name in linear_names(architecture) if name.endswith(("linear_proj", "linear_fc2")))
    if normed and not adapted.base.digest and (name := next((name for name in names if adapted.lora.picks(name)), None)):
        what = (
            f"holds an adapter of {name}, which Megatron-Bridge adds behind the norm that follows: no weight can be like that"
        )
        raise UserError(
            what, source=source.path, remedy="train adapters of linear_qkv and linear_fc1 alone there, or train here"
        )


def _digest(sections: dict[str, Any], source: ModelSource) -> str:
    """The digest of the base's weights; empty for Megatron-Bridge's adapters, which have none, where a user named the base."""
    digest = (sections.get("nemotron_dpo") or {}).get(_DIGEST)
    if digest is None and source.base is None:
        what = "does not say by digest over which weights its adapters were trained"
        raise UserError(what, source=source.path, remedy="name their base with ckpt-export --base")
    return digest or ""


def _peft(lora: Lora) -> dict[str, Any]:
    """Megatron-Bridge's section. Fields that we have no setting for get the value that has no effect."""
    return {
        "_target_": _TARGET,
        "a2a_experimental": False,
        "alpha": lora.alpha,
        "dim": lora.dim,
        "dropout": 0.0,
        "dropout_position": "pre",
        "exclude_modules": list(lora.exclude_modules),
        "lora_A_init_method": lora.a_init,
        "lora_B_init_method": "zero",
        "lora_dtype": {"_call_": False, "_target_": f"torch.{lora.dtype}"} if lora.dtype else None,
        "target_modules": list(lora.target_modules),
    }


def _lora(peft: dict[str, Any]) -> Lora:
    if peft.get("_target_", _TARGET) != _TARGET:
        raise ValueError(f"{peft['_target_']} is not supported, LoRA is")
    dtype = peft.get("lora_dtype")
    return Lora(
        dim=int(peft["dim"]),
        alpha=int(peft["alpha"]),
        target_modules=tuple(peft.get("target_modules") or ()),
        exclude_modules=tuple(peft.get("exclude_modules") or ()),
        a_init=peft.get("lora_A_init_method", "xavier"),
        dtype=dtype["_target_"].removeprefix("torch.") if dtype else None,
    )
