"""A package index of a few tiny wheels on loopback, and a checkout that needs them: set-up on a small scale, by real pip."""

from __future__ import annotations

import functools
import hashlib
import http.server
import shutil
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PIP = metadata.version("pip")
PINS = f"pip=={PIP}\ntorch==2.13.0\ncuda-thing==1.0 ; sys_platform == 'linux'\ntool==1.0\n"
_PYPROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[project]
name = "small"
version = "0.1"
dependencies = ["torch", "tool"]
[dependency-groups]
dev = ["pip"]
"""
# A build backend of its own, so that nothing else need be in the index.
_BACKEND = """
import pathlib, zipfile
def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    name = "small-0.1-py3-none-any.whl"
    with zipfile.ZipFile(pathlib.Path(wheel_directory, name), "w") as wheel:
        wheel.writestr("small-0.1.dist-info/METADATA", "Metadata-Version: 2.1\\nName: small\\nVersion: 0.1\\n"
                       "Requires-Dist: torch\\nRequires-Dist: tool\\n")
        wheel.writestr("small-0.1.dist-info/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr("small-0.1.dist-info/RECORD", "")
        wheel.writestr("small.pth", str(pathlib.Path(__file__).parent / "libs") + "\\n")
    return name
"""


@dataclass
class Index:
    """What is served, with the sha256 of each file, and a gate: while it is closed, who asks for `tool` waits there."""

    url: str
    hashes: str
    gate: threading.Event = field(default_factory=threading.Event)
    asked: threading.Event = field(default_factory=threading.Event)


@contextmanager
def serve(folder: Path) -> Iterator[Index]:
    """Serve `folder` for as long as the block lasts."""
    index = Index("", _hashes(folder))

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            if "tool-" in self.path:
                index.asked.set()
                index.gate.wait(600)
            super().do_GET()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    index.url = f"http://127.0.0.1:{server.server_port}/simple"
    index.gate.set()
    yield index
    index.gate.set()
    server.shutdown()


def fill(folder: Path) -> None:
    """Write the wheels of the index: torch as it is for CUDA and for CPUs, what it needs, a tool, and pip itself."""
    simple = folder / "simple"
    _wheel(simple / "torch", "torch", "2.13.0", requires="cuda-thing==1.0")
    _wheel(simple / "torch", "torch", "2.13.0+cpu")
    _wheel(simple / "cuda-thing", "cuda_thing", "1.0")
    _wheel(simple / "tool", "tool", "1.0")
    _pip_as_wheel(simple / "pip")


def _hashes(folder: Path) -> str:
    """As configs/pins-hashes.txt; the CPU's build of torch is not there, as it is not on the public index."""
    text = ""
    for wheel in sorted((folder / "simple").glob("*/*.whl")):
        name, version, _ = wheel.name.split("-", 2)
        if "+" not in version:
            text += f"{name}=={version} \\\n    --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}\n"
    return text


def checkout(folder: Path, hashes: str, pins: str = PINS) -> Path:
    """A checkout that is set up by the same programs as this one."""
    for name in ("setup.sh", "make_venv.py", "bytecode.py", "pip_run.py", "torch_build.py", "wheel_hashes.py"):
        (folder / "pipelines").mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "pipelines" / name, folder / "pipelines" / name)
    for name, text in (
        ("pyproject.toml", _PYPROJECT),
        ("backend.py", _BACKEND),
        ("configs/pins.txt", pins),
        ("configs/pins-hashes.txt", hashes),
        ("libs/small.py", ""),
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return folder


def _wheel(folder: Path, name: str, version: str, requires: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}.py", "")
        needs = f"Requires-Dist: {requires}\n" if requires else ""
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


def _pip_as_wheel(folder: Path) -> None:
    """The pip that is installed here, packed again."""
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / f"pip-{PIP}-py3-none-any.whl", "w") as wheel:
        for file in metadata.files("pip") or ():
            if file.parts[0] != ".." and "__pycache__" not in file.parts:
                wheel.write(str(file.locate()), str(file))
