"""What is taken to compute here: the environment, the compiler, the CPU and the GPUs, each told from the others."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nemotron_dpo.policy import backend


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of its own: a compiler, a CPU, no GPU."""
    for name in ("proc", "dev", "bin"):
        (tmp_path / name).mkdir()
    (tmp_path / "proc" / "cpuinfo").write_text("model name\t: A\nflags\t\t: sse avx2\n")
    for name in ("cc", "gcc-12"):
        (tmp_path / "bin" / name).write_text("#!/bin/sh\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setattr(backend, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(backend, "_DEVICES", tmp_path / "dev")
    return tmp_path


def test_who_compiles(machine: Path):
    path = str(machine / "bin")
    cc, gcc = str(machine / "bin" / "cc"), str(machine / "bin" / "gcc-12")
    for environ, command in (
        ({"PATH": path}, [cc]),
        ({"PATH": path, "CC": "gcc-12 -m64"}, [gcc, "-m64"]),
        ({"PATH": path, "CC": "gcc-12 '"}, None),
        ({"PATH": path, "CC": "icc"}, None),
        ({"PATH": str(machine)}, None),
        ({"PATH": path, "NEMOTRON_DPO_KERNELS": "0"}, None),
        ({"PATH": path, "NEMOTRON_DPO_KERNELS": "1"}, [cc]),
    ):
        assert backend.compiler(environ) == command, environ


def _another_cpu(machine: Path) -> None:
    (machine / "proc" / "cpuinfo").write_text("model name\t: A\nflags\t\t: sse avx2 amx_bf16\n")


def _another_compiler(machine: Path) -> None:
    os.utime(machine / "bin" / "cc", (1, 1))


def _gpu(machine: Path) -> None:
    folder = machine / "proc" / "driver" / "nvidia" / "gpus" / "0000:19:00.0"
    folder.mkdir(parents=True)
    (folder / "information").write_text("Model: \t\t NVIDIA H100 80GB HBM3\nIRQ:   \t\t 16\n")


def _gpu_of_no_name(machine: Path) -> None:
    (machine / "dev" / "nvidia0").touch()


def test_fingerprint_tells_machines_apart(machine: Path):
    environ = {"PATH": str(machine / "bin")}
    seen = {backend.fingerprint(environ), backend.fingerprint({**environ, "NEMOTRON_DPO_KERNELS": "0"})}
    assert backend.fingerprint({**environ, "OTHER": "1"}) in seen
    for change in (_another_cpu, _another_compiler, _gpu_of_no_name, _gpu):
        change(machine)
        seen.add(backend.fingerprint(environ))
    assert len(seen) == 6


def test_hidden_gpus_are_none(machine: Path):
    environ = {"PATH": str(machine / "bin")}
    without = backend.fingerprint(environ)
    _gpu(machine)
    assert backend.fingerprint(environ) != without
    for hidden in ("", "-1"):
        assert backend.fingerprint({**environ, "CUDA_VISIBLE_DEVICES": hidden}) == without


def test_programs_ask_the_same(monkeypatch: pytest.MonkeyPatch):
    """Where it names no compiler, no library is built or loaded."""
    from nemotron_dpo.policy.kernels import build

    monkeypatch.setattr(build, "_built", lambda command: pytest.fail("built"))
    monkeypatch.setenv("NEMOTRON_DPO_KERNELS", "0")
    assert build.library.__wrapped__() is None
    monkeypatch.setenv("NEMOTRON_DPO_KERNELS", "1")
    monkeypatch.setenv("CC", "no-such-compiler")
    assert build.library.__wrapped__() is None
