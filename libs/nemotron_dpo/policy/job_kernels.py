"""The kernels that the processes of a job compute by. Hosts may differ in compilers, CPUs and GPUs, and so in the last bits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import torch.distributed as dist

from nemotron_dpo import launcher
from nemotron_dpo.kernels.chosen import kernels, why_not_faster


def kernels_of_job() -> str:
    """The identities of the kernels that the processes of the job compute by, each once. All call it, once they have joined."""
    return ", ".join(sorted({identity for identity, _ in _everyones_kernels()}))


def _everyones_kernels() -> list[tuple[str, str]]:
    """Of each rank, what its kernels are and why they are not faster ones."""
    mine = kernels().identity, why_not_faster()
    everyones = [mine] * launcher.job_size()
    if launcher.job_size() > 1:
        dist.all_gather_object(everyones, mine)
    return everyones


def warn_of_mixed(say: Callable[[str], object]) -> None:
    """Say it where the processes of a job compute by different kernels. All call it, once they have joined."""
    everyones = _everyones_kernels()
    if len({identity for identity, _ in everyones}) > 1:
        say(f"warning: {mixed(everyones)}")


def mixed(everyones: Sequence[tuple[str, str]]) -> str:
    """How many processes compute by which kernels, the first rank of each, and why it has no faster ones."""
    identities = [identity for identity, _ in everyones]
    parts = []
    for name, number in Counter(identities).items():
        first = identities.index(name)
        why = f": {everyones[first][1]}" if everyones[first][1] else ""
        parts.append(f"{number} by {name} (from rank {first} on{why})")
    return f"processes compute by different kernels: {', '.join(parts)}"
