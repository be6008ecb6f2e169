"""Which backend a machine gets, and why not a faster one: for the programs that compute and for those that only ask.

NEMOTRON_DPO_KERNELS names a backend: torch (or 0), c or gpu. Without it, or with auto, a machine gets the fastest that it can
have. Kernels in C are built by `CC`, else `cc`, on Linux; those for a GPU are compiled by Triton, where it is installed.

Nothing here imports torch or starts a compiler.
"""

from __future__ import annotations

import hashlib
import importlib.util
import platform
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nemotron_dpo.errors import UserError

VARIABLE = "NEMOTRON_DPO_KERNELS"
_NAMES = {"": "auto", "auto": "auto", "1": "auto", "0": "torch", "torch": "torch", "c": "c", "gpu": "gpu"}
_PROC = Path("/proc")
_DEVICES = Path("/dev")


@dataclass(frozen=True)
class BackendChoice:
    """A backend, whether the environment insists on it, and why it is not a faster one ("" where it is the fastest)."""

    name: str
    is_wanted: bool = False
    reason: str = ""


def backend_for(environ: Mapping[str, str], *, has_gpu: bool) -> BackendChoice:
    """The backend for a process that computes on a GPU or, without one, on the CPU.

    Raises UserError (usage) where the environment asks for one that does not exist, or that this process cannot have.
    """
    fastest, wanted = "gpu" if has_gpu else "c", asked_for(environ)
    if wanted == "torch":
        return BackendChoice("torch", True, f"{VARIABLE} is {environ[VARIABLE]}")
    if wanted == "c" and has_gpu:
        raise refused(environ, "this process computes on a GPU")
    if wanted == "gpu" and not has_gpu:
        raise refused(environ, "there is no GPU")
    reason = obstacle(fastest, environ)
    if reason and wanted != "auto":
        raise refused(environ, reason)
    return BackendChoice("torch" if reason else fastest, wanted != "auto", reason)


def asked_for(environ: Mapping[str, str]) -> str:
    """The backend that the environment asks for, or auto. Raises UserError (usage) where there is none of that name."""
    asked = environ.get(VARIABLE, "")
    if asked not in _NAMES:
        raise UserError(f"{VARIABLE} is {asked!r}", remedy="set it to torch, c, gpu or auto", usage=True)
    return _NAMES[asked]


def refused(environ: Mapping[str, str], reason: str) -> UserError:
    """The error of a process that cannot have the backend which the environment insists on."""
    message = f"{VARIABLE} is {environ.get(VARIABLE)}, which cannot be: {reason}"
    return UserError(message, remedy=f"unset {VARIABLE}", usage=True)


def obstacle(name: str, environ: Mapping[str, str]) -> str:
    """What is missing for backend `name`; "" where nothing is known to be."""
    if name == "gpu":
        return "" if importlib.util.find_spec("triton") else "Triton is not installed"
    if platform.system() != "Linux":
        return f"kernels in C are built on Linux, and this is {platform.system()}"
    if compiler(environ) is None:
        words = environ.get("CC", "")
        return f"CC is {words!r}, which is no compiler here" if words else "there is no C compiler: cc is not on the PATH"
    return ""


def compiler(environ: Mapping[str, str]) -> list[str] | None:
    """The command, its program's full path first, that builds kernels in C; None where there is none."""
    try:
        command = shlex.split(environ.get("CC", "")) or ["cc"]
    except ValueError:  # a quotation that does not end
        return None
    program = shutil.which(command[0], path=environ.get("PATH"))
    return [program, *command[1:]] if program else None


def cpu() -> str:
    """The CPU's instructions; a home folder may be shared by hosts that differ in them. Raises OSError."""
    lines = (_PROC / "cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    return platform.machine() + next((line for line in lines if line.lower().startswith(("flags", "features"))), "")


def has_wide_vectors() -> bool:
    """Whether kernels in C are built of wide vectors here; the others were tried for their numbers, not for their speed."""
    try:
        return "avx2" in cpu().split()
    except OSError:
        return False


def compiler_identity(command: list[str]) -> list[str]:
    """Of a compiler's command, what tells it from another one, found without starting it."""
    binary = Path(command[0]).resolve()
    return [*command, str(binary), str(binary.stat().st_mtime_ns)]


def fingerprint(environ: Mapping[str, str]) -> str:
    """What differs wherever a model's numbers may be rounded otherwise: the backend, its compiler, instructions, GPUs.

    It takes no compiling and no torch, so a compiler that cannot build kernels counts as one that can. The sources of the
    kernels are not in it. What the environment asks for in vain is left for the program that computes to refuse.
    """
    found = gpus(environ)
    try:
        name = backend_for(environ, has_gpu=bool(found)).name
    except UserError:
        name = f"refused {environ.get(VARIABLE)}"
    built_by = compiler(environ) if name == "c" else None
    words = [name, *(compiler_identity(built_by) if built_by else [])]
    try:
        words = [*words, cpu()]
    except OSError:  # a system that has no such file
        words = [*words, platform.machine(), platform.processor()]
    return hashlib.sha256("\0".join([*words, *found]).encode()).hexdigest()


def gpus(environ: Mapping[str, str]) -> list[str]:
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
