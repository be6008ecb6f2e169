"""The backends that a CPU has, and the CPUs that kernels in C are tried for."""

from __future__ import annotations

import ctypes
import fcntl
import functools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from nemotron_dpo.kernels import choice, chosen
from nemotron_dpo.kernels.c import build
from nemotron_dpo.kernels.c.table import table_of
from nemotron_dpo.kernels.protocol import Kernels
from nemotron_dpo.kernels.torch_ops.table import torch_kernels

# what -march is given, and the instructions a CPU must have to run what comes of it
CPUS = {"native": "", "x86-64-v4": "avx512vl", "x86-64-v3": "avx2", "x86-64": "sse2"}


@pytest.fixture(params=CPUS)
def c_library(request: pytest.FixtureRequest, everyones: Path) -> ctypes.CDLL:
    """The library as it is built for one kind of CPU."""
    compiler = choice.compiler(os.environ)
    if compiler is None:
        pytest.skip("no C compiler")
    needed = CPUS[request.param]
    if needed and needed not in Path("/proc/cpuinfo").read_text().split():
        pytest.skip(f"this CPU has no {needed}")
    return _built(request.param, tuple(compiler), everyones)


@pytest.fixture
def c_kernels(c_library: ctypes.CDLL) -> Iterator[Kernels]:
    """Its kernels, in the place of the chosen ones."""
    table = table_of(c_library, "tried")
    before = chosen.use(table)
    yield table
    chosen.use(before)


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Work is divided, however many cores there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def torch_alone() -> Iterator[None]:
    """As on a machine without a compiler."""
    before = chosen.use(torch_kernels())
    yield
    chosen.use(before)


@functools.cache
def _built(cpu: str, compiler: tuple[str, ...], folder: Path) -> ctypes.CDLL:
    if cpu == "native":
        return build.library([*compiler], os.environ)[0]  # as programs have it, which may have built it
    place = folder / f"kernels-{cpu}"  # of its own: objects lie beside the library
    place.mkdir(exist_ok=True)
    with (place / "lock").open("w") as lock:  # one worker builds it, the others wait
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (place / "kernels.so").exists():
            build.build(place / "kernels.so", [*compiler], cpu)
    return build.load(place / "kernels.so")
