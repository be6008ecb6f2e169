"""Open any policy source as a model on this rank: an HF folder or a checkpoint_megatron."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from nemotron_dpo.checkpoint import hf, megatron, run_config
from nemotron_dpo.policy import architecture
from nemotron_dpo.policy.architecture import Architecture
from nemotron_dpo.policy.model import PairPolicy, build_policy
from nemotron_dpo.sources import ModelSource

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def read_architecture(source: ModelSource) -> Architecture:
    """What the source says it is, without reading weights."""
    return architecture.from_hf(source.path) if source.kind == "hf" else run_config.read(source.path)


def open_policy(
    source: ModelSource, precision: str | None, *, max_length: int | None = None, recompute: bool = False
) -> tuple[PairPolicy, Architecture]:
    """Build the model on this rank's device and load its weights; process groups must exist.

    `precision` None keeps the stored one; `max_length` None allows all positions. The architecture's dtype is the model's.
    """
    stored = read_architecture(source)
    shape = replace(stored, dtype=precision or stored.dtype)
    dtype = DTYPES.get(shape.dtype, torch.float32)
    shape = replace(shape, dtype=str(dtype).removeprefix("torch."))
    model = build_policy(shape, dtype, max_length=max_length or shape.max_position_embeddings, recompute=recompute)
    if source.kind == "hf":
        hf.load(model, shape, source.path)
    else:
        megatron.load(model, source.path)
    return model, shape


def tokenizer_folder(source: ModelSource) -> Path | None:
    """The source's tokenizer folder where it has one."""
    return source.tokenizer_folder if source.tokenizer_folder.is_dir() else None
