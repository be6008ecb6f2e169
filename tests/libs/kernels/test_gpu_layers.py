"""The kernels for GPUs without one: what they compute, by Triton's interpreter against torch, and that they compile."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from support import kernel_checks, real_assets
from support.kernel_checks import CHECKS
from support.programs import execute

pytestmark = pytest.mark.real


def test_they_compute_what_torch_does() -> None:
    assert _named(TRITON_INTERPRET="1") == 2 * [*(check.__name__ for check in CHECKS), "members"]


def test_they_compile_for_a_gpu(tmp_path: Path) -> None:
    assert len(_named(TRITON_CACHE_DIR=str(tmp_path))) == 6


def _named(**settings: str) -> list[str]:
    """What a program of its own says that passed."""
    argv = [sys.executable, kernel_checks.__file__, str(real_assets.triton())]
    done = execute(argv, env={**os.environ, "OMP_NUM_THREADS": "1", **settings})
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().split()
