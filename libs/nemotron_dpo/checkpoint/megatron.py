"""`checkpoint_megatron`: NVIDIA's torch_dist format, written and read through megatron-core's dist_checkpointing.

The caller publishes: `save` fills a folder that must not be visible under its final name before it returns.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.core import CheckpointingException
from megatron.core.dist_checkpointing.mapping import ShardedObject
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException

from nemotron_dpo.checkpoint import hf, run_config
from nemotron_dpo.errors import UserError
from nemotron_dpo.policy.architecture import Architecture
from nemotron_dpo.sources import TRACKER

_CONTENT = {"singleton_local_shards": False}


def save(model: nn.Module, shape: Architecture, root: Path, iteration: int, tokenizer: Path | None) -> None:
    """Write `model` as the only iteration of a checkpoint root; every rank calls it, rank 0 writes the small files.

    `root` must be empty or absent and on storage all ranks share. Raises UserError where it cannot be written.
    """
    folder = root / f"iter_{iteration:07d}"
    if dist.get_rank() == 0:
        folder.mkdir(parents=True)
    dist.barrier()
    state = {
        "model": _with_extra_states(model.sharded_state_dict(metadata=dict(_CONTENT))),  # type: ignore[operator]
        "checkpoint_version": 3.0,
        "iteration": iteration,
    }
    try:
        dist_checkpointing.save(state, str(folder), content_metadata=_CONTENT)
    except (CheckpointException, CheckpointingException, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1].removeprefix("RuntimeError: ")
        raise UserError(f"cannot be written ({reason})", remedy="is the disk full?") from None
    if dist.get_rank() == 0:
        run_config.write(shape, folder)
        hf.copy_tokenizer(tokenizer, folder / "tokenizer")
        torch.save(_train_state(iteration), folder / "train_state.pt")
        shutil.copyfile(folder / "train_state.pt", root / "latest_train_state.pt")
        (root / TRACKER).write_text(str(iteration))
    dist.barrier()


def load(model: nn.Module, folder: Path) -> None:
    """Fill `model` (this rank's shard) from an iteration folder, whatever parallel sizes it was written with.

    Raises UserError where the checkpoint is damaged or is of another model.
    """
    metadata = _content_metadata(folder)
    wanted = model.sharded_state_dict(metadata=metadata)  # type: ignore[operator]
    wanted = {key: value for key, value in wanted.items() if not key.endswith("_extra_state")}
    try:
        state: Any = dist_checkpointing.load({"model": wanted}, str(folder))
    except (CheckpointException, CheckpointingException, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"cannot be loaded ({reason})", source=folder, remedy="is the copy complete?") from None
    missing, unexpected = model.load_state_dict(state["model"], strict=False)
    missing = [key for key in missing if not key.endswith("_extra_state")]
    if missing or unexpected:
        raise UserError(f"lacks {missing} and has {unexpected} besides", source=folder, remedy="is it of another model?")


def _content_metadata(folder: Path) -> dict[str, Any]:
    path = folder / "common.pt"
    if not path.is_file():
        raise UserError("is missing", source=path, remedy="is the copy complete?")
    try:
        common = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever its unpickler met
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"cannot be read safely ({reason})", source=path) from None
    return dict(common.get("content_metadata") or {})


def _with_extra_states(sharded: dict[str, Any]) -> dict[str, Any]:
    """Add the empty `_extra_state` objects that a Transformer Engine model asks for, so that it loads our checkpoints."""
    for value in sharded.values():
        if isinstance(value, ShardedObject) and value.key.endswith("_extra_state") and value.data is None:
            value.data = torch.empty(0, dtype=torch.uint8)
    if parallel_state.is_pipeline_last_stage():
        key = "decoder.final_layernorm._extra_state"
        replica = (
            0,
            parallel_state.get_tensor_model_parallel_rank(),
            parallel_state.get_data_parallel_rank(with_context_parallel=True),
        )
        sharded.setdefault(key, ShardedObject(key, torch.empty(0, dtype=torch.uint8), (1,), (0,), replica))
    return sharded


def _train_state(iteration: int) -> dict[str, torch.Tensor]:
    """What Megatron-Bridge's TrainState reads; it asserts this file beside the tracker for iteration 0."""
    counts = ("consumed_train_samples", "skipped_train_samples", "consumed_valid_samples")
    return {
        "step": torch.tensor(iteration, dtype=torch.int32),
        **{name: torch.tensor(0, dtype=torch.int32) for name in counts},
        "floating_point_operations_so_far": torch.tensor(0.0, dtype=torch.float32),
        **{name: torch.tensor(False) for name in ("do_train", "do_valid", "do_test")},
    }
