"""megatron-core's dist_checkpointing for checkpoints that came from anywhere and go to any of NVIDIA's tools.

Saving adds what older tools need (`common.pt`); loading first looks at everything that would be unpickled, and at whether the
files still hold what was written. Callers list their files in integrity.json when they have written the last of them.
"""

from __future__ import annotations

import inspect
import queue
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.core import CheckpointingException
from torch.distributed.checkpoint.api import CheckpointException

from nemotron_dpo.checkpoint import integrity, untrusted
from nemotron_dpo.errors import UserError
from nemotron_dpo.policy.patches import overwrite

_FAILURES = (CheckpointException, CheckpointingException, RuntimeError, OSError)
_DAMAGE = (*_FAILURES, EOFError, ValueError, KeyError, TypeError, AssertionError, AttributeError)


def save(state: dict[str, Any], folder: Path, content: dict[str, Any]) -> None:
    """Write the sharded state dict `state` into the existing, empty `folder`; every rank calls it.

    `content` is the layout of keys as `sharded_state_dict(metadata=...)` was given it. Raises UserError where the folder
    cannot be written.
    """
    _write_in_this_process()
    try:
        dist_checkpointing.save(state, str(folder), content_metadata=content)
        if dist.get_rank() == 0 and not (folder / "common.pt").exists():  # megatron-core < 0.19 reads no other common state
            _, common = untrusted.check(folder)
            torch.save(common, folder / "common.pt")
    except _FAILURES as error:
        raise UserError(
            f"cannot be written ({_reason(error)})", remedy="is the disk full, or /dev/shm closed to this user?"
        ) from None


def load(wanted: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What `folder` holds for the sharded state dict `wanted`; every rank calls it.

    Raises UserError where the checkpoint is damaged, incomplete, of another model, or holds what could run code.
    """
    metadata, common = untrusted.check(folder, wanted)
    integrity.verify(folder, metadata)
    try:
        state = dist_checkpointing.load(wanted, str(folder), **_given(common))
    except _DAMAGE as error:
        what = f"cannot be loaded ({_reason(error)})"
        raise UserError(what, source=folder, remedy="is it of another model?") from None
    assert isinstance(state, dict)
    return state


def _write_in_this_process() -> None:
    """Let megatron-core's writer hand its results over in memory: this process waits for them anyway.

    It would start a server process for them, which takes seconds and outlives a run that is killed, holding its pipes open.
    """
    overwrite("megatron.core.dist_checkpointing.strategies.filesystem_async:_results_queue", queue.Queue())


def _given(common: dict[str, Any]) -> dict[str, Any]:
    """Hand the common state over to a megatron-core that would read common.pt, which those since 0.19 do not write."""
    if "common_strategy" not in inspect.signature(dist_checkpointing.load).parameters:  # from 0.19 on
        return {}
    from megatron.core.dist_checkpointing.strategies import common as strategies

    if not hasattr(strategies, "TorchCommonLoadStrategy"):  # 0.17 and 0.18, whose argument takes None alone
        overwrite("megatron.core.dist_checkpointing.serialization:load_common", lambda checkpoint_dir: dict(common))
        return {}
    strategy = strategies.TorchCommonLoadStrategy()
    strategy.load_common = lambda checkpoint_dir: dict(common)
    return {"common_strategy": strategy}


def _reason(error: BaseException) -> str:
    """One line; of the tracebacks that other ranks and processes send along the last one is the cause."""
    lines = (str(error).strip() or type(error).__name__).splitlines()
    return lines[-1 if "Traceback" in str(error) else 0].removeprefix("RuntimeError: ")
