"""Compare the processes that a config asks for with what this machine has."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any


def too_large(config: Any, devices: tuple[int, str] | None = None) -> list[str]:
    """A line where `config` asks for more nodes, or for more processes a node, than the one machine that this is has.

    `devices` are those of this machine where they are not given: GPUs, or CPU cores where there is no GPU.
    """
    cluster = getattr(config, "cluster", None)
    if cluster is None:
        return []
    number, kind = devices or _devices()
    nodes, each = cluster.num_nodes, cluster.gpus_per_node
    if nodes == 1 and each <= number:
        return []
    asked = f"{nodes} node{'s' * (nodes > 1)} of {each} process{'es' * (each > 1)}"
    here = f"this machine has {number} {kind}{'s' * (number > 1)}"
    remedy = f"give cluster.num_nodes=1 cluster.gpus_per_node={min(each, number)}, or a profile with -r or -b"
    remedy += ", or --oversubscribe" if nodes == 1 else ""
    return [f"cluster.* asks for {asked}, and {here}: {remedy}"]


def _devices() -> tuple[int, str]:
    """How many processes can each have one of its own, and what these are."""
    gpus = len([path for path in Path("/dev").glob("nvidia*") if re.fullmatch(r"nvidia[0-9]+", path.name)])
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if gpus and visible is not None:
        gpus = min(gpus, len([name for name in visible.split(",") if name.strip() and not name.strip().startswith("-")]))
    return (gpus, "GPU") if gpus else (len(os.sched_getaffinity(0)), "CPU core")
