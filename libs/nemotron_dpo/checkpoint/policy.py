"""Open any policy source as a model on this rank: an HF folder, a checkpoint_megatron, or adapters over one of these."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from nemotron_dpo import hf_folder
from nemotron_dpo.checkpoint import adapters, hf, megatron, megatron_lm, peft_merge, run_config
from nemotron_dpo.checkpoint.carried import required
from nemotron_dpo.checkpoint.families import config, wrapper_of
from nemotron_dpo.errors import UserError
from nemotron_dpo.folder_files import has_file, has_folder, refuse_link_outside
from nemotron_dpo.policy.architecture import Architecture
from nemotron_dpo.policy.lora import adapt, merge
from nemotron_dpo.policy.model import PairPolicy, build_policy
from nemotron_dpo.policy.precision import set_precision
from nemotron_dpo.policy.recompute import Recompute
from nemotron_dpo.sources import ModelSource, resolve

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def read_architecture(source: ModelSource) -> Architecture:
    """The architecture that the source describes, without reading weights. Its dtype comes from the weights' headers."""
    if source.kind == "peft":
        return read_architecture(_peft_base(source))
    if source.kind == "hf":
        architecture = config.read(source.path)
        return _stored_in(architecture, hf_folder.precision(source.path), hf_folder.states_precision(source.path))
    return _stored_in(_described(source), *megatron.precisions(source.path))


def _stored_in(architecture: Architecture, weights: str | None, states: str | None) -> Architecture:
    in_float32 = architecture.states_in_float32 if states is None else states == "float32"
    return replace(architecture, dtype=weights or architecture.dtype, states_in_float32=in_float32)


def _described(source: ModelSource) -> Architecture:
    if source.hf_model is None and (run_config.describes(source.path) or not megatron_lm.describes(source.path)):
        return run_config.read(source.path)
    return megatron_lm.read(source.path, None if source.hf_model is None else config.read(source.hf_model))


def open_policy(
    source: ModelSource,
    precision: str | None,
    *,
    max_length: int | None = None,
    recompute: Recompute | None = None,
    merged: bool = True,
) -> PairPolicy:
    """Build the model on this rank's device and load its weights; process groups must exist.

    `precision` None keeps the stored one, and what is stored in float32 because less would spoil it stays so. `max_length` None
    allows as many tokens as the policy takes. Adapters are merged into the weights of their base, unless `merged` is False.
    """
    stored = read_architecture(source)
    architecture = replace(stored, dtype=precision or stored.dtype)
    dtype = DTYPES.get(architecture.dtype, torch.float32)
    architecture = replace(architecture, dtype=str(dtype).removeprefix("torch."))
    model = build_policy(
        architecture, dtype, max_length=max_length or architecture.max_position_embeddings, recompute=recompute
    )
    set_precision(model, dtype, states_in_float32=architecture.states_in_float32)
    _fill(model, source, merged=merged)
    return model


def _fill(model: PairPolicy, source: ModelSource, *, merged: bool = True) -> None:
    adapted = adapters.read(source)
    if source.kind == "peft":
        _fill(model, _peft_base(source))
        peft_merge.merge(model, source.path)
    elif adapted is not None:
        adapters.refuse_behind_norms(adapted, model.architecture, source)
        _fill(model, adapters.open_base(adapted, source))
        adapt(model, adapted)
        megatron.load(model, source.path)
        if merged:
            merge(model)
    elif source.kind == "hf":
        hf.load(model, source.path)
    else:
        if wrapper := wrapper_of(model.architecture):
            required(wrapper, rest_folder(source))  # or nothing of the policy could be exported when it is trained
        megatron.load(model, source.path)


def _peft_base(source: ModelSource) -> ModelSource:
    """The base of a peft folder's adapters: what the user named, else what the folder's config says."""
    named = source.base or peft_merge.base_of(source.path)
    if named is None:
        raise UserError("does not say over which model these adapters are", source=source.name, remedy="name it with --base")
    return resolve(named)


def tokenizer_folder(source: ModelSource) -> Path | None:
    """The source's tokenizer folder; None where it does not exist.

    Raises UserError where it is a link out of a Megatron checkpoint: its files would be copied as the checkpoint's own.
    """
    if source.kind == "peft" and not has_file(source.path / "tokenizer.json"):
        return tokenizer_folder(_peft_base(source))
    folder = source.tokenizer_folder
    if source.kind == "megatron" and folder != source.hf_model:
        refuse_link_outside(folder, source.path)
    return folder if has_folder(folder) else None


def rest_folder(source: ModelSource) -> Path | None:
    """The folder with what a multimodal model has around its text model: of adapters, that of their base."""
    adapted = adapters.read(source)
    if source.kind == "peft":
        return rest_folder(_peft_base(source))
    if adapted is not None:
        return rest_folder(adapters.open_base(adapted, source))
    return tokenizer_folder(source)
