"""What the checkpoints of a run take of a disk, and whether it has that free. Imports no torch."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from nemotron_dpo.config import RunConfig
from nemotron_dpo.policy.architecture import Architecture
from nemotron_dpo.policy.lora_targets import adapter_parameters
from nemotron_dpo.steps.estimate.sizes import Sizes

_STATE_BYTES = 12  # of a trained weight: its float32 copy and two moments


@dataclass(frozen=True)
class DiskNeed:
    """Bytes of a checkpoint, how many lie there at once at most, and the bytes of the policy that is exported at the end.

    One more than stays, for a new checkpoint is whole before an old one goes.
    """

    checkpoint: float
    most: int
    export: float

    @property
    def total(self) -> float:
        """Bytes of all of them."""
        return self.checkpoint * self.most + self.export


def disk_need(run: RunConfig, architecture: Architecture, sizes: Sizes, steps: int) -> DiskNeed | None:
    """What a run of so many steps leaves on the disk; None where it saves nothing."""
    keep = run.checkpointing
    if not keep.enabled:
        return None
    whole = architecture.num_parameters()
    trained = whole if sizes.lora is None else adapter_parameters(sizes.lora, architecture)
    checkpoint = trained * (sizes.width + (_STATE_BYTES if keep.save_optimizer else 0))
    periodic, between = steps // keep.save_period, steps // keep.ft_save_period if keep.ft_save_period else 0
    saved = periodic + between + (steps % keep.save_period > 0)
    most = saved if keep.keep_top_k is None else min(saved, keep.keep_top_k + max(1, keep.ft_keep_latest_k or 0) + 1)
    return DiskNeed(checkpoint, most, whole * sizes.width)


def checkpoints_folder(run: RunConfig) -> Path:
    """Where the checkpoints lie: in the job's folder, if the config names no other."""
    return Path(run.checkpointing.checkpoint_dir or ".")


def free_bytes(folder: Path) -> int:
    """Bytes that are free where `folder` lies or will lie."""
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    return shutil.disk_usage(there).free
