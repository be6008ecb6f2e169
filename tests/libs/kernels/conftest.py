"""The backends that a CPU has, and the CPUs that kernels in C are tried for."""

from __future__ import annotations

import ctypes
import fcntl
import functools
import os
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from nemotron_dpo.kernels import chosen
from nemotron_dpo.kernels.c import build
from nemotron_dpo.kernels.c.table import table_of
from nemotron_dpo.kernels.protocol import Kernels
from nemotron_dpo.kernels.torch_ops.table import torch_kernels

# what -march is given, and the instructions a CPU must have to run what comes of it
CPUS = {"native": "", "x86-64-v4": "avx512vl", "x86-64-v3": "avx2", "x86-64": "sse2"}


@pytest.fixture(params=CPUS)
def c_library(request: pytest.FixtureRequest, everyones: Path) -> ctypes.CDLL:
    """The library as it is built for one kind of CPU."""
    if shutil.which(_compiler()[0]) is None:
        pytest.skip("no C compiler")
    needed = CPUS[request.param]
    if needed and needed not in Path("/proc/cpuinfo").read_text().split():
        pytest.skip(f"this CPU has no {needed}")
    return _built(request.param, everyones)


@pytest.fixture
def c_kernels(c_library: ctypes.CDLL) -> Iterator[Kernels]:
    """Its kernels, in the place of the chosen ones."""
    table = table_of(c_library, "tried")
    before = chosen.use(table)
    yield table
    chosen.use(before)


@pytest.fixture
def torch_alone() -> Iterator[None]:
    """As on a machine without a compiler."""
    before = chosen.use(torch_kernels())
    yield
    chosen.use(before)


@functools.cache
def _built(cpu: str, folder: Path) -> ctypes.CDLL:
    place = folder / f"kernels-{cpu}"  # of its own: objects lie beside the library
    place.mkdir(exist_ok=True)
    with (place / "lock").open("w") as lock:  # one worker builds it, the others wait
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (place / "kernels.so").exists():
            build.build(place / "kernels.so", _compiler(), cpu)
    return build.load(place / "kernels.so")


def _compiler() -> list[str]:
    return shlex.split(os.environ.get("CC", "")) or ["cc"]
