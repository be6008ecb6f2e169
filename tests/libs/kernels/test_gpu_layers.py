"""The kernels for GPUs without one: what they compute, by Triton's interpreter against torch, and that they compile."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support import real_assets
from support.kernel_checks import CHECKS

TESTS = Path(__file__).parents[2]

pytestmark = pytest.mark.real


def test_they_compute_what_torch_does() -> None:
    assert _named(TRITON_INTERPRET="1") == 2 * [*(check.__name__ for check in CHECKS), "members"]


def test_they_compile_for_a_gpu(tmp_path: Path) -> None:
    assert len(_named(TRITON_CACHE_DIR=str(tmp_path))) == 6


def _named(**settings: str) -> list[str]:
    """What a program of its own says that passed."""
    path = os.pathsep.join(map(str, (TESTS.parent / "libs", real_assets.triton())))
    argv, environment = [sys.executable, TESTS / "support" / "kernel_checks.py"], {**os.environ, **settings, "PYTHONPATH": path}
    done = subprocess.run(argv, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()
