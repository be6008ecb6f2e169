"""The memory that a rank of a run has: what a profile says, that of a usual GPU, or its share of this machine's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nemotron_dpo.config import RunConfig
from nemotron_dpo.steps.profiles.profile import Profile

_GPU_GIGABYTES = 80


@dataclass(frozen=True)
class Budget:
    """The memory of one rank, where that is known from, and whether it is a GPU's."""

    bytes: float
    source: str
    is_gpu: bool


def budget_of(run: RunConfig, profile: Profile) -> Budget:
    """The memory of one rank of `run` where `profile` says that it runs."""
    stated = profile.settings.get("gpu_memory_gb")
    if stated:
        return Budget(1e9 * float(stated), f"gpu_memory_gb of profile {profile.name}", is_gpu=True)
    if profile.executor != "local" or Path("/dev/nvidia0").exists():
        source = f"assumed: {_GPU_GIGABYTES} GB a GPU, unless a profile's gpu_memory_gb says otherwise"
        return Budget(1e9 * _GPU_GIGABYTES, source, is_gpu=True)
    ranks = run.cluster.gpus_per_node
    return Budget(_ram() / ranks, f"this machine's, over {ranks} rank{'s' * (ranks > 1)}", is_gpu=False)


def _ram(path: Path = Path("/proc/meminfo")) -> float:
    """Bytes of this machine's memory."""
    (line,) = [line for line in path.read_text(encoding="ascii").splitlines() if line.startswith("MemTotal:")]
    return 1024.0 * int(line.split()[1])
