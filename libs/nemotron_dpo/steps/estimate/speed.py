"""How fast a run's devices compute: GPUs by a table, a CPU by measuring it once. Imports no torch."""

from __future__ import annotations

import contextlib
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
from nemotron_dpo.policy.peak_flops import known_gpu, peak_flops
from nemotron_dpo.published import replacing
from nemotron_dpo.steps.profiles.profile import Profile

_ASSUMED = "H100"
# Of those rates, what a step reaches: measured with 0.5B to 1.5B on an H200 and an H100, with 135M on CPUs
# (tests/benchmarks/README.md). A policy of few parameters reaches less.
_SHARE_OF_GPU, _SHARE_OF_CPU = 0.4, 0.7
_SECONDS = 60.0  # the longest that a measurement may take


@dataclass(frozen=True)
class Speed:
    """FLOP/s that a run may expect of all its devices together, and where that is known from."""

    flops: float
    source: str


def speed_of(
    run: RunConfig, profile: Profile, environ: Mapping[str, str] = os.environ, *, measures: bool = True
) -> Speed | None:
    """The speed of `run`, or None where nothing is known of it, as of a GPU that is not in the table.

    That of a CPU which was never measured is measured now where `measures` allows it.
    """
    gpus = choice.gpus(environ) if profile.executor == "local" else _named(profile)
    if not gpus:
        return _of_cpu(run.policy.precision, environ, measures=measures)
    peak = peak_flops(gpus[0], run.policy.precision)
    if peak is None:
        return None
    number = run.cluster.gpus_per_node * run.cluster.num_nodes
    what = f"{number} GPU{'s' * (number > 1)} ({gpus[0]}) of {peak / 1e12:g} TFLOP/s each"
    return Speed(_SHARE_OF_GPU * number * peak, f"{_SHARE_OF_GPU} of {what}")


def _named(profile: Profile) -> list[str]:
    """The GPU that a cluster's profile names in whatever key, else the one that is taken for granted."""
    words = " ".join(str(value) for value in profile.settings.values() if isinstance(value, str))
    return [known_gpu(words) or f"{_ASSUMED}, assumed"]


def _of_cpu(precision: str, environ: Mapping[str, str], *, measures: bool) -> Speed | None:
    rate = _rate(precision, environ, measures=measures)
    if rate is None:
        return None
    what = f"the {rate / 1e9:.0f} GFLOP/s at which this machine multiplies {precision} matrices"
    return Speed(_SHARE_OF_CPU * rate, f"{_SHARE_OF_CPU} of {what}")


def _rate(precision: str, environ: Mapping[str, str], *, measures: bool) -> float | None:
    """FLOP/s of matrix products here, measured once for this kind of machine and remembered; None where that fails."""
    threads = environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0))
    key = f"{precision} by {threads} threads of {choice.fingerprint(environ)[:16]}"
    file = paths.cache_home(environ) / "nemotron-dpo" / "product-rate.json"
    known = _read(file)
    if key in known:
        return known[key]
    if not measures:
        return None
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
    """Keep `rates` in the cache that is there: a dry run makes no folder, and measures again next time."""
    if not file.parent.is_dir():
        return
    with contextlib.suppress(OSError), replacing(file) as temporary:
        temporary.write_bytes(orjson.dumps(rates, option=orjson.OPT_INDENT_2))
