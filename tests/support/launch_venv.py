"""A virtual environment with the extra `launch`, made once and cached: what a user has who submits to Lepton or DGX Cloud.

It sees the packages of the interpreter that runs the tests and adds NeMo-Run and what that needs (`launch_pins.txt`, no
dependency unasked), and runapy, the vendor's client of Run:ai, whose types the fake of DGX Cloud reads requests with.
"""

from __future__ import annotations

import functools
import hashlib
import os
import sys
import sysconfig
import tempfile
import venv
from contextlib import suppress
from pathlib import Path

from support.programs import BIN, ROOT
from support.real_assets import cache_folder, pinned_packages

_PINS = Path(__file__).with_name("launch_pins.txt")


@functools.cache
def launch_python() -> str:
    """Its interpreter. The test is skipped where the registry cannot be reached."""
    paths = f"{pinned_packages('launch', _PINS)}\n{sysconfig.get_path('purelib')}\n"
    key = hashlib.sha256(f"{paths}\0{sys.base_prefix}\0{sys.version}".encode()).hexdigest()[:12]
    target = cache_folder() / f"launch-venv-{key}"
    if not target.is_dir():
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            folder = Path(scratch) / "venv"
            venv.create(folder, with_pip=False, symlinks=True)
            (own,) = folder.glob("lib/python*/site-packages")
            (own / "tests_own.pth").write_text(paths)
            with suppress(OSError):  # another worker was first
                folder.rename(target)
    return os.fspath(target / "bin" / "python")


def launch_environment() -> dict[str, str]:
    """Variables under which it finds this checkout."""
    return {"PYTHONPATH": f"{ROOT / 'libs'}:{BIN}", "PYTHONWARNINGS": "ignore"}
