"""The stages' programs: where each lies, and what its output depends on besides its input (source, packages, machine)."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from nemotron_dpo import __version__
from nemotron_dpo.kernels.choice import fingerprint

_ROOT = Path(__file__).resolve().parents[2]
_FOLDERS = ("sources.py", "step_folders.py", "folder_files.py", "hf_folder.py", "weights_file.py", "file_digests.py")
_ROWS = ("preferences", "wilson.py", "streams", *_FOLDERS)
_BELOW = ("torch", "megatron-core", "triton")
# program -> the parts of this package that decide what it writes, and the packages it computes with; others: all.
_PARTS = {
    "preference-tokenize": (_ROWS, ("tokenizers", "jinja2")),
    "mixture": (_ROWS, ("numpy",)),
    "ref-logprobs": ((*_ROWS, "scoring", "policy", "kernels", "checkpoint"), _BELOW),
}
_ALL = (
    (*_ROWS, "scoring", "policy", "kernels", "objective", "checkpoint", "training", "config", "wiring", "model_card"),
    _BELOW,
)
# those that run a model; their numbers depend on the machine
COMPUTE = frozenset({"ref-logprobs", "dpo-train"})


def executable(name: str) -> str:
    """`name` where the shell would find the right one, else its full path next to the running Python or program.

    A virtual environment need not be active; without one, installers put programs apart from the Python that runs them.
    """
    folders = (Path(sys.executable).parent, Path(sys.argv[0]).absolute().parent)
    beside = next((folder / name for folder in folders if (folder / name).is_file()), None)
    found = shutil.which(name)
    if beside is None or (found and Path(found) == beside):
        return name
    return str(beside)


@functools.cache
def program_version(name: str) -> str:
    """What changes when the program would write something else: our version, our source, and the packages below it."""
    parts, packages = _PARTS.get(name, _ALL)
    digest = hashlib.sha256(__version__.encode())
    for path in sorted(file for part in parts for file in _sources(_ROOT / part)):
        digest.update(f"{path.relative_to(_ROOT)}\0".encode() + path.read_bytes())
    main = importlib.util.find_spec(name.replace("-", "_"))
    if main is not None and main.origin:
        digest.update(Path(main.origin).read_bytes())
    versions = ",".join(f"{package} {_version(package)}" for package in packages)
    return f"{name} {digest.hexdigest()} {versions}"


def machine(name: str, environ: Mapping[str, str]) -> str:
    """What changes where the program, run with `environ`, may round otherwise: the kernels, the CPU and GPUs it would take."""
    return fingerprint(environ) if name in COMPUTE else ""


def _sources(part: Path) -> list[Path]:
    """Every file of the package that is no product of running it and no page to read: Python, C, shell."""
    files = [part] if part.is_file() else part.rglob("*")
    return [path for path in files if path.is_file() and path.suffix not in (".pyc", ".md")]


def _version(package: str) -> str:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"
