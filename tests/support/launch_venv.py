"""A virtual environment with the extra `launch`, made once and cached: what a user has who submits to Lepton or DGX Cloud.

It sees the packages of the interpreter that runs the tests and adds NeMo-Run and what that needs (`launch_pins.txt`, no
dependency unasked), and runapy, the vendor's client of Run:ai, whose types the fake of DGX Cloud reads requests with.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

import pytest

from support.programs import BIN, ROOT
from support.real_assets import cache_folder

_PINS = Path(__file__).with_name("launch_pins.txt")


@functools.cache
def launch_python() -> str:
    """Its interpreter. The test is skipped where the registry cannot be reached."""
    packages = sysconfig.get_path("purelib")
    key = hashlib.sha256(f"{packages}\0{sys.base_prefix}\0{sys.version}\0{_PINS.read_text()}".encode()).hexdigest()[:12]
    target = cache_folder() / f"launch-{key}"
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.with_suffix(".lock").open("w") as lock:  # one worker makes it, the others wait
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.is_dir():
            with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
                _make(Path(scratch) / "venv", packages)
                Path(scratch, "venv").rename(target)
    return str(target / "bin" / "python")


def launch_environment() -> dict[str, str]:
    """Variables under which it finds this checkout."""
    return {"PYTHONPATH": f"{ROOT / 'libs'}:{BIN}", "PYTHONWARNINGS": "ignore"}


def _make(folder: Path, packages: str) -> None:
    venv.create(folder, with_pip=False, symlinks=True)
    (own,) = folder.glob("lib/python*/site-packages")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(own), "-r", str(_PINS)]
    done = subprocess.run(pip, capture_output=True, text=True)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no output"]
        pytest.skip(f"NeMo-Run could not be fetched: {lines[-1][:200]}")
    (own / "tests_own.pth").write_text(f"{packages}\n")
