"""Which kernels compute here: decided once, for those that use them and for those that only ask. Imports no torch.

NEMOTRON_DPO_KERNELS=0 leaves everything to torch's operations. Otherwise those for CPUs are built by `CC`, else `cc`, on Linux,
and those for GPUs are compiled by Triton, where it is installed.
"""

from __future__ import annotations

import hashlib
import importlib.util
import platform
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path

_PROC = Path("/proc")
_DEVICES = Path("/dev")


def are_wanted(environ: Mapping[str, str]) -> bool:
    """False where the environment leaves everything to torch's operations."""
    return environ.get("NEMOTRON_DPO_KERNELS") != "0"


def compiler(environ: Mapping[str, str]) -> list[str] | None:
    """The command, its program's full path first, that builds the kernels for CPUs; None where none are to be built."""
    if platform.system() != "Linux" or not are_wanted(environ):
        return None
    try:
        command = shlex.split(environ.get("CC", "")) or ["cc"]
    except ValueError:  # a quotation that does not end
        return None
    program = shutil.which(command[0], path=environ.get("PATH"))
    return [program, *command[1:]] if program else None


def has_triton(environ: Mapping[str, str]) -> bool:
    """Whether kernels for GPUs can be compiled: Triton comes with torch for CUDA."""
    return are_wanted(environ) and importlib.util.find_spec("triton") is not None


def cpu() -> str:
    """The CPU's instructions; a home folder may be shared by hosts that differ in them. Raises OSError."""
    lines = (_PROC / "cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    return platform.machine() + next((line for line in lines if line.lower().startswith(("flags", "features"))), "")


def identity_of(command: list[str]) -> list[str]:
    """Of a compiler's command, what tells it from another one, found without starting it."""
    binary = Path(command[0]).resolve()
    return [*command, str(binary), str(binary.stat().st_mtime_ns)]


def fingerprint(environ: Mapping[str, str]) -> str:
    """What differs wherever a model's numbers may be rounded otherwise: kernels and their compiler, instructions, GPUs.

    It takes no compiling and no torch, so a compiler that cannot build them counts as one that can.
    """
    built_by = compiler(environ)
    words = identity_of(built_by) if built_by else ["torch"]
    try:
        words = [*words, cpu()]
    except OSError:  # a system that has no such file
        words = [*words, platform.machine(), platform.processor()]
    gpus = _gpus(environ)
    words += [*gpus, "triton" if has_triton(environ) else "torch"] if gpus else []
    return hashlib.sha256("\0".join(words).encode()).hexdigest()


def _gpus(environ: Mapping[str, str]) -> list[str]:
    """The kinds of GPUs that torch may use; one that names no kind is still told from none."""
    if environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1"):
        return []
    files = sorted((_PROC / "driver" / "nvidia" / "gpus").glob("*/information"))
    models = {line.partition(":")[2].strip() for file in files for line in _lines(file) if line.startswith("Model:")}
    return sorted(models) or ["a GPU"] * any(_DEVICES.glob("nvidia[0-9]*"))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
