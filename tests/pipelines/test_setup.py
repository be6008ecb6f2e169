"""`just setup` on all kinds of machines: real pip on a small project, with an index of tiny wheels on loopback."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from pipelines import pip_run
from support import small_index

BASE = Path(getattr(sys, "_base_executable", sys.executable))
READ_ONLY = Path("/proc/nowhere")


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[small_index.Index]:
    folder = tmp_path_factory.mktemp("index")
    small_index.fill(folder)
    with small_index.serve(folder) as served:
        yield served


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PATH with what set-up itself calls and no Python."""
    folder = tmp_path_factory.mktemp("tools")
    for name in ("bash", "env", "dirname", "cat", "sha256sum"):
        (folder / name).symlink_to(shutil.which(name) or name)
    return folder


def _python(folder: Path, name: str, old: str = "") -> str:
    """A PATH entry with one interpreter under `name`: the one that runs the tests, or one that says it is `old`."""
    folder.mkdir(exist_ok=True)
    script = f'[ "$1" != --version ] || echo Python {old}; [ "$1" = --version ]' if old else f'exec {BASE} "$@"'
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)
    return str(folder)


PREPARED = """#!/bin/sh
case " $* " in
*" -m venv "*) ;;
*make_venv.py*) shift 3; exec {base} -E -s -B "$0.py" "$@" ;;
*) exec {base} "$@" ;;
esac
{base} "$@" || exit
for venv; do :; done
exec {cp} "$0.pth" "$venv"/lib/python*/site-packages
"""
NO_ENSUREPIP = """import sys; "ensurepip" in sys.orig_argv and sys.path.insert(0, {folder!r})"""
THROUGH_IT = """
import os, runpy, sys
sys._base_executable = __file__.removesuffix(".py")
sys.argv = sys.argv[1:]
sys.path[0] = os.path.dirname(sys.argv[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A PATH entry with a `python3` whose virtual environments find the pip that runs here, compiled as it is.

    ensurepip has nothing to do there, and is one that does nothing: finding that out takes it 5 CPU s. The first set-up runs
    the real one.
    """
    folder, packages = tmp_path_factory.mktemp("prepared"), Path(str(metadata.distribution("pip").locate_file("")))
    for path in (packages / "pip", *packages.glob("pip-*.dist-info")):
        shutil.copytree(path, folder / "packages" / path.name)
    (folder / "ensurepip.py").touch()
    (folder / "python3").write_text(PREPARED.format(base=BASE, cp=shutil.which("cp")))
    (folder / "python3").chmod(0o755)
    (folder / "python3.py").write_text(THROUGH_IT)
    (folder / "python3.pth").write_text(f"{folder / 'packages'}\n{NO_ENSUREPIP.format(folder=str(folder))}\n")
    return str(folder)


def _environment(index: small_index.Index | None, *path: str, **more: str) -> dict[str, str]:
    """No HOME and none of this machine's settings for pip; the index, if any, is a private one."""
    url = index.url if index else "http://127.0.0.1:9/simple"
    own = {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": url, "PIP_RETRIES": "1", "PIP_TIMEOUT": "600"}
    return own | {"PATH": ":".join(path)} | more


def _start(checkout: Path, environment: dict[str, str], torch: str = "auto", venv: Path | None = None) -> subprocess.Popen[str]:
    argv = ["bash", str(checkout / "pipelines" / "setup.sh"), str(venv or checkout / ".venv"), torch]
    return subprocess.Popen(
        argv, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=checkout, start_new_session=True
    )


def _setup(checkout: Path, environment: dict[str, str], torch: str = "auto", venv: Path | None = None) -> tuple[int, str]:
    process = _start(checkout, environment, torch, venv)
    out, err = process.communicate(timeout=300)
    assert out == ""
    return process.returncode, err


def _packages(venv: Path) -> dict[str, str]:
    """What is installed, but for what the standard library may bring."""
    found = metadata.distributions(path=[str(path) for path in venv.glob("lib/python*/site-packages")])
    return {each.metadata["Name"]: each.version for each in found if each.metadata["Name"] != "setuptools"}


@pytest.mark.slow
def test_from_nothing_to_up_to_date_to_another_build_to_another_place(
    index: small_index.Index, tools: Path, prepared: str, tmp_path: Path
):
    """In a folder with a space and an umlaut, without HOME, with settings of Python's and pip's that would lead astray."""
    checkout = small_index.checkout(tmp_path / "mein Büro", index.hashes)
    astray = tmp_path / "astray"
    shutil.copytree(tmp_path / "mein Büro" / "libs", astray)
    (astray / "tool-1.0.dist-info").mkdir()
    (astray / "tool-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: tool\nVersion: 1.0\n")
    path = _python(tmp_path / "bin", "python3")
    environment = _environment(
        index, path, str(tools), PYTHONPATH=str(astray), PIP_USER="1", PIP_TARGET=str(astray), PIP_NO_DEPS="1", PIP_QUIET="1"
    )

    code, said = _setup(checkout, environment)
    assert code == 0, said
    assert f"with Python {sys.version.split()[0]} (" in said
    assert "is ready after" in said
    venv = checkout / ".venv"
    own = {"pip": small_index.PIP, "small": "0.1", "tool": "1.0"}
    has_gpu = "this machine has a GPU" in said
    assert _packages(venv) == own | ({"torch": "2.13.0", "cuda_thing": "1.0"} if has_gpu else {"torch": "2.13.0+cpu"})
    argv = [venv / "bin" / "python", "-c", "import small, tool; print(small.__file__)"]
    assert subprocess.check_output(argv, text=True).strip() == str(checkout / "libs" / "small.py")
    (packages,) = venv.glob("lib/python*/site-packages")
    assert all(Path(importlib.util.cache_from_source(path)).is_file() for path in packages.rglob("*.py"))
    assert not (venv / "tmp").exists()
    beside = {each.name for each in checkout.iterdir()}
    assert beside - {"__pycache__"} == {".venv", "backend.py", "configs", "libs", "pipelines", "pyproject.toml"}

    stamp = (venv / "setup.stamp").stat().st_mtime_ns
    assert _setup(checkout, _environment(None, str(tools))) == (0, "")  # needs neither Python nor the index
    assert (venv / "setup.stamp").stat().st_mtime_ns == stamp

    # An environment knows the folder that it was made for: the moved one would run the programs of the old place.
    moved = checkout.rename(tmp_path / "moved")
    environment["PATH"] = f"{prepared}:{tools}"
    code, said = _setup(moved, environment, "cuda")
    assert (code, "you asked for it" in said) == (0, True), said
    assert _packages(moved / ".venv") == own | {"torch": "2.13.0", "cuda_thing": "1.0"}
    (pth,) = moved.glob(".venv/lib/python*/site-packages/small.pth")
    assert pth.read_text().strip() == str(moved / "libs")
    for torch in ("cuda", "auto"):
        assert _setup(moved, environment, torch) == (0, "")


@pytest.mark.slow
def test_an_interrupted_setup_starts_over_and_two_at_once_wait(
    index: small_index.Index, tools: Path, prepared: str, tmp_path: Path
):
    checkout = small_index.checkout(tmp_path / "checkout", index.hashes)
    environment = _environment(index, prepared, str(tools), HOME=str(tmp_path))
    try:
        index.gate.clear()
        index.asked.clear()
        first = _start(checkout, environment)
        assert index.asked.wait(300), "the wheel was not asked for"
        os.killpg(first.pid, signal.SIGINT)
        _, said = first.communicate(timeout=300)
        assert first.returncode == 130, said
        assert said.splitlines()[-1].startswith("setup: interrupted: "), said
        assert not (checkout / ".venv" / "setup.stamp").exists()
        index.asked.clear()
        both = [_start(checkout, environment)]
        assert index.asked.wait(300)
        both.append(_start(checkout, environment))
        assert both[1].stderr is not None
        heard = both[1].stderr.readline()
        assert heard.startswith("setup: waiting for another set-up"), heard
    finally:
        index.gate.set()
    ends = [process.communicate(timeout=300)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], ends
    assert "is ready after" in ends[0]
    assert ends[1] == ""
    assert _packages(checkout / ".venv")["tool"] == "1.0"


def test_what_ends_in_one_line_before_anything_is_made(tools: Path, tmp_path: Path):
    """The path of interpreters, torch=, the environment, and what the one line says."""
    checkout = small_index.checkout(tmp_path / "checkout", "")
    own, old = _python(tmp_path / "own", "python3"), _python(tmp_path / "old", "python3", "3.14.0")
    newer = _python(tmp_path / "newer", "python3.12")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "letters.txt").write_text("dear")
    cases: list[tuple[list[str], str, Path | None, str]] = [
        ([old], "auto", None, "Python 3.14.0 on PATH, and neither python3.11, python3.12 nor python3.13: install one of them"),
        ([], "auto", None, "no python3 on PATH, and neither"),
        ([old, newer], "nonsense", None, "torch=nonsense: it is auto, cpu, cuda or the URL"),
        ([own], "https://me:secret@host/simple", None, "passwords"),
        ([own], "auto", READ_ONLY, f"cannot write {READ_ONLY}"),
        ([own], "auto", foreign, "is a folder but no virtual environment: move it away"),
    ]
    for path, torch, venv, message in cases:
        code, said = _setup(checkout, _environment(None, *path, str(tools)), torch, venv)
        assert code == 1, (path, torch)
        assert said.count("\n") == 1, said
        assert said.startswith("setup: error: "), said
        assert message in said
    assert not (checkout / ".venv").exists()
    assert (foreign / "letters.txt").read_text() == "dear"


@pytest.mark.slow
def test_what_pip_cannot_do_is_said_in_one_line(index: small_index.Index, tools: Path, prepared: str, tmp_path: Path):
    pins = small_index.PINS
    tool = hashlib.sha256(index.hashes.encode()).hexdigest()
    doctored = re.sub(r"(tool==1.0 .*\n.*sha256:)\w+", rf"\g<1>{tool}", index.hashes)
    cases = [
        (None, pins, index.hashes, "the package index could not be reached: "),
        (
            index,
            pins.replace("tool==1.0", "tool==7.0"),
            index.hashes,
            "The user requested tool; The user requested (constraint) tool==7.0",
        ),
        (
            index,
            pins,
            doctored,
            f"is none of the files that {tmp_path}/checkout2/configs/pins-hashes.txt names, and nothing of it was run",
        ),
    ]
    for number, (served, pins, hashes, message) in enumerate(cases):
        checkout = small_index.checkout(tmp_path / f"checkout{number}", hashes, pins)
        code, said = _setup(checkout, _environment(served, prepared, str(tools)))
        assert code == 1, said
        last = said.splitlines()[-1]
        assert last.startswith("setup: error: "), said
        assert message in last
        assert "Traceback" not in said
        assert not (checkout / ".venv" / "setup.stamp").exists()
        assert "none of the files" not in last or not (checkout / ".venv" / "lib").exists()


def test_a_persons_index_and_proxy_count_and_their_habits_do_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    kept = {"PIP_INDEX_URL": "https://mirror/simple", "HTTPS_PROXY": "http://proxy:3128", "SSL_CERT_FILE": "/certs"}
    for name, value in (kept | {"PIP_TARGET": "/elsewhere", "PIP_USER": "1"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("TMPDIR", raising=False)
    under = pip_run.environment(tmp_path / "tmp")
    assert kept.items() <= under.items()
    assert "PIP_TARGET" not in under
    assert (under["PIP_USER"], under["TMPDIR"]) == ("0", str(tmp_path / "tmp"))
    monkeypatch.setenv("TMPDIR", "/large")
    assert pip_run.environment(tmp_path / "tmp")["TMPDIR"] == "/large"


def test_progress_counts_what_was_fetched():
    """3 MB finished, 5 MB taken from pip's cache, 2 of 8 MB under way; a file's metadata is not the file."""
    said = io.StringIO()
    progress = pip_run.Progress(total_mb=20, stream=said)
    for line in (
        "Collecting numpy==2.4.6",
        "  Downloading numpy-2.4.6-cp312-cp312-manylinux_2_27_x86_64.whl (3.0 MB)",
        "Progress 1000000 of 3000000",
        "Progress 3000000 of 3000000",
        "  Downloading x-1-py3-none-any.whl.metadata (9.0 MB)",
        "  Using cached torch-2.13.0-cp312-cp312-linux.whl (5.0 MB)",
        "  Downloading http://mirror/simple/nvidia_nccl_cu13-2.29.7-py3-none-manylinux_2_18_x86_64.whl (8.0 MB)",
        "Progress 2000000 of 8000000",
    ):
        progress.read(line)
    progress.show()
    assert said.getvalue() == ""  # too early to say
    progress.shown_at -= 31
    progress.show()
    assert said.getvalue() == "setup:    0 s, 10 of about 20 MB, fetching nvidia_nccl_cu13\n"
    progress.read("Installing collected packages: numpy, torch, nvidia-nccl-cu13")
    progress.shown_at -= 31
    progress.show()
    assert said.getvalue().endswith("installing 3 packages\n")


def test_a_set_up_that_begins_in_the_same_moment_makes_no_foreign_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Another makes its lock and its first folder while this one looks."""
    monkeypatch.syspath_prepend(str(Path(pip_run.__file__).parent))
    make_venv = importlib.import_module("make_venv")
    real = Path.iterdir

    def iterdir(folder: Path) -> Iterator[Path]:
        (folder / ".lock").touch()
        (folder / "bin").mkdir(exist_ok=True)
        return real(folder)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    with make_venv._alone(tmp_path / ".venv"):
        assert (tmp_path / ".venv" / "bin").is_dir()
