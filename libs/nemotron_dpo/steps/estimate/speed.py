"""How fast a run's devices compute: GPUs by a table, a CPU by measuring it once. Imports no torch."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import orjson

from nemotron_dpo import paths
from nemotron_dpo.config import RunConfig
from nemotron_dpo.kernels import choice
from nemotron_dpo.steps.profiles.profile import Profile

# Dense bfloat16 TFLOP/s as NVIDIA's data sheets have them, by a word of the GPU's name; the first that occurs counts.
_PEAKS = {
    "gb300": 2500, "b300": 2250, "gb200": 2500, "b200": 2250, "gh200": 989, "h200": 989, "h100 pcie": 756, "h100": 989,
    "h800": 989, "h20": 148, "a100": 312, "a800": 312, "l40s": 362, "l40": 181, "a10g": 70, "a10": 125, "a30": 165, "a40": 150,
    "l4": 121, "rtx 6000 ada": 364, "rtx 5090": 210, "rtx 4090": 165, "rtx 3090": 71,
}  # fmt: skip
_ASSUMED = "h100"
# Of those rates, what a step reaches: measured with 0.5B to 1.5B on an H200 and an H100, with 135M on CPUs
# (tests/benchmarks/README.md). A policy of few parameters reaches less.
_SHARE_OF_GPU, _SHARE_OF_CPU = 0.4, 0.7
_SECONDS = 60.0  # the longest that a measurement may take


@dataclass(frozen=True)
class Speed:
    """FLOP/s that a run may expect of all its devices together, and where that is known from."""

    flops: float
    source: str


def speed_of(run: RunConfig, profile: Profile, environ: Mapping[str, str] = os.environ) -> Speed | None:
    """The speed of `run`, or None where nothing is known of it: a GPU that is not in the table, float32 on a GPU."""
    gpus = choice.gpus(environ) if profile.executor == "local" else _named(profile)
    if not gpus:
        return _of_cpu(run.policy.precision, environ)
    peak = next((peak for word, peak in _PEAKS.items() if word in gpus[0].lower()), None)
    if peak is None or run.policy.precision != "bfloat16":
        return None
    number = run.cluster.gpus_per_node * run.cluster.num_nodes
    what = f"{number} GPU{'s' * (number > 1)} ({gpus[0]}) of {peak} TFLOP/s each"
    return Speed(_SHARE_OF_GPU * number * peak * 1e12, f"{_SHARE_OF_GPU} of {what}")


def _named(profile: Profile) -> list[str]:
    """The GPU that a cluster's profile names in whatever key, else the one that is taken for granted."""
    words = " ".join(str(value) for value in profile.settings.values() if isinstance(value, str)).lower()
    return [next((word for word in _PEAKS if word in words), f"{_ASSUMED.upper()}, assumed")]


def _of_cpu(precision: str, environ: Mapping[str, str]) -> Speed | None:
    rate = _measured(precision, environ)
    if rate is None:
        return None
    what = f"the {rate / 1e9:.0f} GFLOP/s at which this machine multiplies {precision} matrices"
    return Speed(_SHARE_OF_CPU * rate, f"{_SHARE_OF_CPU} of {what}")


def _measured(precision: str, environ: Mapping[str, str]) -> float | None:
    """FLOP/s of matrix products here, measured once for this kind of machine and remembered; None where that fails."""
    threads = environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0))
    key = f"{precision} by {threads} threads of {choice.fingerprint(environ)[:16]}"
    file = paths.cache_home(environ) / "nemotron-dpo" / "product-rate.json"
    known = _read(file)
    if key in known:
        return known[key]
    argv = [sys.executable, "-m", "nemotron_dpo.kernels.product_rate", precision]
    try:
        done = subprocess.run(argv, capture_output=True, timeout=_SECONDS, env=dict(environ), check=True)
        rate = float(done.stdout)
    except (subprocess.SubprocessError, OSError, ValueError):
        return None
    _remember(file, known | {key: rate})
    return rate


def _read(file: Path) -> dict[str, float]:
    try:
        return {str(key): float(rate) for key, rate in orjson.loads(file.read_bytes()).items()}
    except (OSError, ValueError, TypeError, AttributeError):  # none yet, or damaged: measured anew
        return {}


def _remember(file: Path, rates: Mapping[str, float]) -> None:
    """Keep `rates` where that can be: a home that cannot be written costs the next dry run a measurement."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(orjson.dumps(rates, option=orjson.OPT_INDENT_2))
        temporary.replace(file)
    except OSError:
        temporary.unlink(missing_ok=True)
