"""Make a virtual environment of this checkout with pip: what pyproject.toml asks for, in the versions of configs/pins.txt.

The pins are constraints of a real resolution: whichever build of torch is chosen brings what it needs and no more, and a
package without a pin for it is found by the tests. What was installed is compared with configs/pins-hashes.txt before any of
it runs; builds of torch that the package index does not have (+cpu, an index of one's own) are said. `setup.sh` calls this
with a suitable Python, where VENV is not up to date:

    python3 make_venv.py VENV STAMP auto|cpu|cuda|URL
"""

from __future__ import annotations

import fcntl
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, TextIO

import bytecode
import pip_run
import torch_build
import wheel_hashes

ROOT = Path(__file__).resolve().parents[1]
PINS = ROOT / "configs" / "pins.txt"
HASHES = ROOT / "configs" / "pins-hashes.txt"


class SetupError(Exception):
    """One line that says why there is no environment, and what to do."""


@dataclass(frozen=True)
class Size:
    """What an environment takes, as measured on x86-64."""

    download_mb: float
    disk_gb: float
    time: str


SMALL = Size(download_mb=410, disk_gb=1.8, time="one to five minutes")
LARGE = Size(download_mb=2950, disk_gb=5.8, time="three to twenty minutes")


def main(venv: Path, stamp: str, asked: str) -> None:
    """Make the environment, unless another process did so while this one waited for it."""
    started = time.monotonic()
    with _alone(venv) as lock:
        if _is_up_to_date(venv, stamp, asked):
            return
        _empty(venv)
        say(f"making {venv} with Python {sys.version.split()[0]} ({_base_python()})")
        with (venv / "setup.log").open("w", encoding="utf-8") as log:
            _install(_make_pip(venv, log), asked, venv, log, lock)
        version = _installed_torch(venv)
        build = asked if "://" in asked else "cpu" if version.endswith("+cpu") or sys.platform != "linux" else "cuda"
        (venv / "setup.stamp").write_text(f"{stamp} {build}\n")
    say(f"{venv} is ready after {time.monotonic() - started:.0f} s: torch {version}, {_disk_gb(venv):.1f} GB")


def say(text: str) -> None:
    """One line on stderr."""
    print(f"setup: {text}", file=sys.stderr, flush=True)


def _is_up_to_date(venv: Path, stamp: str, asked: str) -> bool:
    """As setup.sh saw it before there was anything to wait for."""
    file = venv / "setup.stamp"
    made = file.read_text().split() if file.is_file() else []
    return made[:1] == [stamp] and asked in ("auto", *made[1:])


@contextmanager
def _alone(venv: Path) -> Iterator[TextIO]:
    """Hold the environment's lock, which pip shares: what a killed set-up left running is waited for too."""
    path = venv / ".lock"
    try:
        venv.mkdir(parents=True, exist_ok=True)
        others = any(file.name != path.name for file in venv.iterdir())  # looked for first: a set-up makes its lock before them
        if others and not path.exists() and not (venv / "pyvenv.cfg").exists():
            raise SetupError(f"{venv} is a folder but no virtual environment: move it away")
        lock = path.open("a")
    except OSError as error:
        raise SetupError(f"cannot write {venv}: {error.strerror}: clone to a folder that you may write to") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another set-up, which is making {venv}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            say(f"warning: no locks in this file system ({error.strerror}): do not run two set-ups at once")
        yield lock


def _empty(venv: Path) -> None:
    """Remove what an older or an interrupted set-up left, its stamp first, but the lock."""
    (venv / "setup.stamp").unlink(missing_ok=True)
    for path in venv.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != ".lock":
            path.unlink()


def _make_pip(venv: Path, log: TextIO) -> list[str]:
    """A virtual environment with pip alone; the command that runs its pip. Debian may lack ensurepip: then another pip does."""
    base, python = _base_python(), str(venv / "bin" / "python")
    options = ["-E", "-s", "-m"]
    if not _worked([base, *options, "venv", "--without-pip", str(venv)], log, venv):
        raise SetupError(f"{base} has no module `venv`: install it (Debian: apt install python3-venv)")
    report = venv / "tmp" / "report.json"
    pinned = ["--constraint", str(PINS), "--report", str(report), "pip"]
    other_pip = [base, *options, "pip", "--python", python, "install", *pinned]
    if not _worked([python, "-I", "-m", "ensurepip"], log, venv):
        if not _worked(other_pip, log, venv):
            raise SetupError(f"{base} has neither `ensurepip` nor `pip`: install one (Debian: apt install python3-venv)")
        _verify(report, venv)
    return [python, "-I", "-u", "-m", "pip"]


def _worked(argv: list[str], log: TextIO, venv: Path) -> bool:
    print("$", *argv, file=log, flush=True)
    env = pip_run.environment(venv / "tmp")
    return subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env).returncode == 0


def _install(pip: list[str], asked: str, venv: Path, log: TextIO, lock: TextIO) -> None:
    progress = pip_run.Progress()

    scratch = venv / "tmp"

    def run(*arguments: str) -> None:
        pip_run.run(pip, *arguments, log=log, progress=progress, keep_open=(lock.fileno(),), scratch=scratch)

    def install(*arguments: str, other_index: bool = False) -> None:
        report = scratch / "report.json"
        run("install", "--report", str(report), "--constraint", str(PINS), "--only-binary", ":all:", "--no-compile", *arguments)
        _verify(report, venv, other_index=other_index)

    install("--no-deps", "--force-reinstall", f"pip=={_pin('pip')}")
    build = torch_build.choose(asked, _pin("torch"), torch_build.this_machine(pip, pip_run.environment(venv / "tmp")))
    size = SMALL if build.small else LARGE
    _announce(build, size, venv)
    progress.total_mb = size.download_mb
    with_progress = ("--progress-bar", "raw")
    install(*with_progress, "--no-deps", *build.options, build.requirement, other_index=bool(build.options))
    install(*with_progress, *_requirements())
    # the builder is of the group dev, and was verified
    run("install", "--no-deps", "--no-build-isolation", "--editable", str(ROOT))
    run("check")
    bytecode.compile_packages(venv, log, progress, (lock.fileno(),))
    shutil.rmtree(scratch, ignore_errors=True)


def _requirements() -> list[str]:
    """What the project and its group `dev` need, which pip would else learn by running the project's builder."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return [*project["project"].get("dependencies", []), *project["dependency-groups"]["dev"]]


def _verify(report: Path, venv: Path, *, other_index: bool = False) -> None:
    """Raise SetupError, and leave nothing that could run, where pip installed what configs/pins-hashes.txt does not name.

    Builds that the package index does not have are said: those with a local version, and torch of an `other_index`.
    """
    unknown = wheel_hashes.unknown(wheel_hashes.read_report(report), wheel_hashes.known(HASHES))
    for one in unknown:
        if one.is_local_build or other_index:
            say(f"{one.said} is no file of the package index, so nothing here vouches for it")
        elif wheel_hashes.are_any_taken():
            say(f"warning: {one.said} is not in {HASHES.name}, and {wheel_hashes.ANY} says to take it")
        else:
            shutil.rmtree(venv / "lib", ignore_errors=True)
            remedy = f"where your index builds its own wheels, {wheel_hashes.ANY}=1 takes them"
            raise SetupError(f"{one.said} is none of the files that {HASHES} names, and nothing of it was run: {remedy}")


def _announce(build: torch_build.TorchBuild, size: Size, venv: Path) -> None:
    """Say what will be fetched before it is."""
    say(f"torch {_pin('torch')}, {build.why}")
    needed = size.disk_gb + size.download_mb / 1000
    free = shutil.disk_usage(venv).free / 1e9
    say(f"fetching about {size.download_mb / 1000:.1f} GB, {size.disk_gb:.1f} GB when installed; this takes {size.time}, once")
    if free < needed:
        say(f"warning: {free:.1f} GB are free in {venv}, and {needed:.1f} GB are needed while it is made")


def _pin(name: str) -> str:
    match = re.search(rf"^{re.escape(name)}==([^\s;]+)", PINS.read_text(encoding="utf-8"), re.M)
    if match is None:
        raise SetupError(f"{PINS}: {name} is missing: `just pins` writes that file")
    return match[1]


def _base_python() -> str:
    """The interpreter under a virtual environment, which may be the very one that is made anew."""
    return getattr(sys, "_base_executable", sys.executable)


def _installed_torch(venv: Path) -> str:
    code = "import importlib.metadata; print(importlib.metadata.version('torch'))"
    argv = [venv / "bin" / "python", "-I", "-c", code]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()


def _disk_gb(folder: Path) -> float:
    return sum(entry.lstat().st_blocks * 512 for entry in folder.rglob("*")) / 1e9


def _end(signum: int, frame: object) -> NoReturn:
    sys.exit(128 + signum)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGHUP, _end)
    folder, own_stamp, wanted = sys.argv[1:]
    try:
        if wanted not in ("auto", "cpu", "cuda") and not re.fullmatch(r"(https?|file)://[^@\s]+", wanted):
            raise SetupError(f"torch={wanted}: it is auto, cpu, cuda or the URL of a package index (passwords: ~/.netrc)")
        main(Path(folder).absolute(), own_stamp, wanted)
    except (SetupError, LookupError, OSError) as error:
        sys.exit(f"setup: error: {error}")
    except pip_run.PipFailed as error:
        sys.exit(f"setup: error: {error} (all that pip said: {folder}/setup.log)")
    except KeyboardInterrupt:
        say("interrupted: the next run starts anew, with what was fetched whole")
        sys.exit(130)
