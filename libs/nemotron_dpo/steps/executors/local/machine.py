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
    number, kind = devices or devices_here()
    nodes, each = cluster.num_nodes, cluster.gpus_per_node
    if nodes == 1 and each <= number:
        return []
    asked = f"{nodes} node{'s' * (nodes > 1)} of {each} process{'es' * (each > 1)}"
    here = f"this machine has {number} {kind}{'s' * (number > 1)}"
    remedy = f"give cluster.num_nodes=1 cluster.gpus_per_node={min(each, number)}, or a profile with -r or -b"
    remedy += ", or --oversubscribe" if nodes == 1 else ""
    return [f"cluster.* asks for {asked}, and {here}: {remedy}"]


def gpus_here() -> list[str]:
    """The GPUs that a process here may use, by the names that CUDA_VISIBLE_DEVICES gives them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    number, _ = devices_here()
    if not any(re.fullmatch(r"nvidia[0-9]+", path.name) for path in Path("/dev").glob("nvidia*")):
        return []
    names = [name.strip() for name in visible.split(",") if name.strip()] if visible is not None else map(str, range(number))
    return list(names)[:number]


def devices_here() -> tuple[int, str]:
    """How many processes can each have one of its own, and what these are."""
    gpus = len([path for path in Path("/dev").glob("nvidia*") if re.fullmatch(r"nvidia[0-9]+", path.name)])
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if gpus and visible is not None:
        gpus = min(gpus, len([name for name in visible.split(",") if name.strip() and not name.strip().startswith("-")]))
    return (gpus, "GPU") if gpus else (len(os.sched_getaffinity(0)), "CPU core")
