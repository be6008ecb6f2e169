"""How kernels in C are built, that they are chosen once, and that what stands in their way is said."""

from __future__ import annotations

import importlib.util
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from nemotron_dpo.errors import UserError
from nemotron_dpo.kernels import choice, chosen
from nemotron_dpo.kernels.c import build
from nemotron_dpo.kernels.choice import VARIABLE
from nemotron_dpo.kernels.protocol import Unavailable

CC = ["cc"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache; what this process has chosen is forgotten for the time."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in (VARIABLE, "CC"):
        monkeypatch.delenv(name, raising=False)
    before = chosen.use(None)
    yield tmp_path / "cache" / "nemotron-dpo"
    chosen.use(before)


@pytest.fixture
def quickly(made_quickly: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of kernels that are built once, in a third of the time, by flags that make slow ones of the same sources."""
    monkeypatch.setattr(build, "_FLAGS", (*build._FLAGS, "-O0"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(made_quickly))
    return made_quickly / "nemotron-dpo"


@pytest.fixture(scope="module")
def made_quickly(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("quickly")


def said(lines: list[str]) -> str:
    """The one line that is said when kernels are chosen."""
    chosen.choose("bfloat16", lines.append)
    (line,) = lines
    return line


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.slow
def test_built_once_and_said_never(cache: Path) -> None:
    lines: list[str] = []
    table = chosen.choose("bfloat16", lines.append)
    assert table.name == "c"
    assert not lines
    (made,) = cache.iterdir()
    assert made.stem == f"kernels-{table.identity.split()[1].rstrip(',')}"
    assert b"libgomp" not in made.read_bytes()  # torch's threads serve
    before = made.stat().st_mtime_ns
    chosen.use(None)
    assert chosen.choose().identity == table.identity
    assert [path.stat().st_mtime_ns for path in cache.iterdir()] == [before]


@pytest.mark.usefixtures("quickly")
@pytest.mark.slow
def test_a_cpu_without_wide_vectors_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = choice.cpu()
    assert choice.has_wide_vectors() == ("avx2" in flags.split())
    monkeypatch.setattr(choice, "has_wide_vectors", lambda: False)
    assert said([]) == "warning: kernels: c in vectors of 4 numbers, and so of no known speed: this CPU has no AVX2"


@pytest.mark.usefixtures("quickly")
@pytest.mark.slow
def test_chosen_once(monkeypatch: pytest.MonkeyPatch) -> None:
    table = chosen.choose()
    monkeypatch.setenv(VARIABLE, "torch")
    assert chosen.choose() is table
    assert chosen.kernels() is table


def test_what_is_not_chosen_by_a_program_is_chosen_at_first_use(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(VARIABLE, "0")
    assert chosen.kernels().name == "torch"
    assert [record.getMessage() for record in caplog.records] == [f"warning: kernels: torch instead of c: {VARIABLE} is 0"]


def test_torch_serves_where_nothing_can_be_built_and_the_reason_is_said(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    complaint = "echo 'note: x'; echo 'a.c:1:2: fatal error: omp.h: No such file' >&2; echo 'more error' >&2; exit 1"
    clang = 'case "$*" in *-dM*) echo "#define __GNUC__ 4"; echo "#define __clang__ 1";; *) exit 3;; esac'
    unlinked = 'for last; do :; done; while [ "$1" != -o ]; do shift; done; echo text > "$2"'
    for name, value, reason in (
        ("CC", "/nowhere/cc", "CC is '/nowhere/cc', which is no compiler here"),
        ("CC", '"', "CC is '\"', which is no compiler here"),
        ("CC", script(tmp_path / "gcc", complaint), "does not compile them: a.c:1:2: fatal error: omp.h: No such file"),
        ("CC", script(tmp_path / "clang", clang), "clang, which is not GCC, does not compile them: it ends with status 3"),
        ("CC", "true", "true, which is not GCC, compiles is not kept or not loaded: [Errno 2]"),
        ("CC", script(tmp_path / "unlinked", unlinked), "compiles is not kept or not loaded"),
        ("PATH", str(tmp_path), "there is no C compiler: cc is not on the PATH"),
        (VARIABLE, "0", f"{VARIABLE} is 0"),
        (VARIABLE, "torch", f"{VARIABLE} is torch"),
    ):
        with monkeypatch.context() as patched:
            patched.setenv(name, value)
            line = said([])
            assert line.startswith("warning: kernels: torch instead of c: ")
            assert reason in line
            assert chosen.kernels().identity.startswith("torch ")
            chosen.use(None)
            patched.setenv(VARIABLE, "c" if name != VARIABLE else "gpu")
            with pytest.raises(UserError, match="which cannot be"):
                chosen.choose("bfloat16")
        for leftover in cache.glob("*") if cache.exists() else ():
            leftover.unlink()  # fails where it is a folder that should be gone


def test_a_cache_that_cannot_be_written_is_said(cache: Path) -> None:
    cache.parent.mkdir()
    cache.write_text("not a folder")
    assert "is not kept or not loaded: [Errno 17]" in said([])


@pytest.mark.slow
def test_a_library_that_is_damaged_is_said(quickly: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen.choose()
    (made,) = quickly.iterdir()
    chosen.use(None)
    damaged = tmp_path / "another" / "nemotron-dpo" / made.name  # by its own path this process has it in memory
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))
    assert str(damaged) in said([])


def test_a_user_without_a_home_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    assert "kernels in C have no place: Could not determine home directory." in said([])


def test_the_digest_tells_sources_flags_and_compilers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = [build._digest([script(tmp_path / "cc", "")])]
    os.utime(tmp_path / "cc", (1, 1))
    seen.append(build._digest([str(tmp_path / "cc")]))
    edited = tmp_path / "attention.c"
    edited.write_bytes(build._SOURCES[0].read_bytes() + b"\n")
    with monkeypatch.context() as patched:
        patched.setattr(build, "_SOURCES", [edited, *build._SOURCES[1:]])
        seen.append(build._digest([str(tmp_path / "cc")]))
    monkeypatch.setattr(build, "_FLAGS", ("-O3",))
    seen.append(build._digest([str(tmp_path / "cc")]))
    assert len(set(seen)) == 4


def test_what_is_wrong_with_the_sources_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        build.build(tmp_path / "kernels.so", CC, "no-such-cpu")


def test_a_gpu_without_a_working_triton_is_none() -> None:
    """On a machine without a GPU nothing of it works; the reason is one line."""
    from nemotron_dpo.kernels.gpu.table import gpu_kernels

    if importlib.util.find_spec("triton") is not None:
        pytest.skip("Triton is installed, as with torch for CUDA, and compiles for a GPU that is not there")
    with pytest.raises(Unavailable, match="Triton does not work here: ") as failed:
        gpu_kernels()
    assert "\n" not in str(failed.value)
