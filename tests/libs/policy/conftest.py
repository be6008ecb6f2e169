"""CPUs that the compiled kernels are tried for."""

from __future__ import annotations

import ctypes
import functools
import os
import shlex
import shutil
import tempfile
from pathlib import Path

import pytest

from nemotron_dpo.policy.kernels import attention, build, layers, logits

# what -march is given, and the instructions a CPU must have to run what comes of it
CPUS = {"native": "", "x86-64-v4": "avx512vl", "x86-64-v3": "avx2", "x86-64": "sse2"}


@pytest.fixture(params=CPUS)
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ctypes.CDLL:
    """The kernels as they are built for one kind of CPU, in the place of this one's."""
    if shutil.which(_compiler()[0]) is None:
        pytest.skip("no C compiler")
    needed = CPUS[request.param]
    if needed and needed not in Path("/proc/cpuinfo").read_text().split():
        pytest.skip(f"this CPU has no {needed}")
    loaded = _built(request.param)
    for module in (attention, layers, logits):
        monkeypatch.setattr(module, "library", lambda: loaded)
    return loaded


@pytest.fixture
def no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine without a compiler."""
    for module in (attention, layers, logits):
        monkeypatch.setattr(module, "library", lambda: None)


@functools.cache
def _built(cpu: str) -> ctypes.CDLL:
    folder = Path(tempfile.mkdtemp(prefix="kernels-"))
    build.build(folder / "kernels.so", _compiler(), cpu)
    try:
        return build.load(folder / "kernels.so")
    finally:
        shutil.rmtree(folder)  # what is loaded stays


def _compiler() -> list[str]:
    return shlex.split(os.environ.get("CC", "")) or ["cc"]
