"""Which backend a machine gets and why, and what tells one machine's from another's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nemotron_dpo.errors import UserError
from nemotron_dpo.kernels import choice
from nemotron_dpo.kernels.choice import VARIABLE


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of its own: a compiler, a CPU, no GPU."""
    for name in ("proc", "dev", "bin"):
        (tmp_path / name).mkdir()
    (tmp_path / "proc" / "cpuinfo").write_text("model name\t: A\nflags\t\t: sse avx2\n")
    for name in ("cc", "gcc-12"):
        (tmp_path / "bin" / name).write_text("#!/bin/sh\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setattr(choice, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(choice, "_DEVICES", tmp_path / "dev")
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
    ):
        assert choice.compiler(environ) == command, environ


def _on(machine: Path, monkeypatch: pytest.MonkeyPatch, *, triton: bool = True, system: str = "Linux") -> None:
    monkeypatch.setattr(choice.importlib.util, "find_spec", lambda name: object() if triton else None)
    monkeypatch.setattr(choice.platform, "system", lambda: system)


def test_the_fastest_backend_is_chosen_and_what_stands_against_it_is_said(machine: Path, monkeypatch: pytest.MonkeyPatch):
    path, none = str(machine / "bin"), str(machine)
    for has_gpu, triton, system, environ, name, reason in (
        (False, False, "Linux", {"PATH": path}, "c", ""),
        (False, False, "Linux", {"PATH": path, VARIABLE: ""}, "c", ""),
        (False, False, "Linux", {"PATH": path, VARIABLE: "auto"}, "c", ""),
        (False, False, "Linux", {"PATH": path, VARIABLE: "1"}, "c", ""),
        (False, False, "Linux", {"PATH": path, VARIABLE: "c"}, "c", ""),
        (False, False, "Linux", {"PATH": path, VARIABLE: "0"}, "torch", f"{VARIABLE} is 0"),
        (False, False, "Linux", {"PATH": path, VARIABLE: "torch"}, "torch", f"{VARIABLE} is torch"),
        (False, False, "Linux", {"PATH": none}, "torch", "there is no C compiler: cc is not on the PATH"),
        (False, False, "Linux", {"PATH": path, "CC": "icc"}, "torch", "CC is 'icc', which is no compiler here"),
        (False, False, "Linux", {"PATH": path, "CC": '"'}, "torch", "CC is '\"', which is no compiler here"),
        (False, False, "Darwin", {"PATH": path}, "torch", "kernels in C are built on Linux, and this is Darwin"),
        (True, True, "Linux", {"PATH": path}, "gpu", ""),
        (True, True, "Linux", {"PATH": none, VARIABLE: "gpu"}, "gpu", ""),
        (True, False, "Linux", {"PATH": path}, "torch", "Triton is not installed"),
        (True, True, "Linux", {"PATH": path, VARIABLE: "torch"}, "torch", f"{VARIABLE} is torch"),
    ):
        _on(machine, monkeypatch, triton=triton, system=system)
        chosen = choice.backend_for(environ, has_gpu=has_gpu)
        assert (chosen.name, chosen.reason) == (name, reason), environ
        assert chosen.is_wanted == (environ.get(VARIABLE, "") in ("0", "torch", "c", "gpu"))


def test_a_backend_that_cannot_be_had_is_refused_where_it_is_asked_for(machine: Path, monkeypatch: pytest.MonkeyPatch):
    path, none = str(machine / "bin"), str(machine)
    for has_gpu, environ, complaint in (
        (False, {"PATH": path, VARIABLE: "no"}, f"{VARIABLE} is 'no': set it to torch, c, gpu or auto"),
        (False, {"PATH": path, VARIABLE: "C"}, f"{VARIABLE} is 'C': set it to torch, c, gpu or auto"),
        (False, {"PATH": none, VARIABLE: "c"}, "which cannot be: there is no C compiler: cc is not on the PATH"),
        (False, {"PATH": path, VARIABLE: "gpu"}, f"{VARIABLE} is gpu, which cannot be: there is no GPU: unset {VARIABLE}"),
        (True, {"PATH": path, VARIABLE: "c"}, "which cannot be: this process computes on a GPU"),
        (True, {"PATH": path, VARIABLE: "gpu"}, "which cannot be: Triton is not installed"),
    ):
        _on(machine, monkeypatch, triton=False)
        with pytest.raises(UserError) as refusal:
            choice.backend_for(environ, has_gpu=has_gpu)
        assert complaint in str(refusal.value)
        assert refusal.value.usage
        choice.fingerprint(environ)  # those who only ask are not stopped by it


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
    for name in ("auto", "c", ""):
        assert choice.fingerprint({**environ, VARIABLE: name}) == choice.fingerprint(environ)
    seen = {choice.fingerprint(environ), choice.fingerprint({**environ, "NEMOTRON_DPO_KERNELS": "0"})}
    assert choice.fingerprint({**environ, "OTHER": "1"}) in seen
    for change in (_another_cpu, _another_compiler, _gpu_of_no_name, _gpu):
        change(machine)
        seen.add(choice.fingerprint(environ))
    assert len(seen) == 6


def test_hidden_gpus_are_none(machine: Path):
    environ = {"PATH": str(machine / "bin")}
    without = choice.fingerprint(environ)
    _gpu(machine)
    assert choice.fingerprint(environ) != without
    for hidden in ("", "-1"):
        assert choice.fingerprint({**environ, "CUDA_VISIBLE_DEVICES": hidden}) == without
