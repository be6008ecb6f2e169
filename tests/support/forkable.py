"""Which programs a fork can be, and with which environment."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

PROGRAMS = ("preference-tokenize", "ref-logprobs", "dpo-train", "dpo-torchrun", "ckpt-export", "nemotron-steps", "nemotron",
            "dpo-report", "dpo-runs", "dpo-sweep")  # fmt: skip


def can_be_honoured(environment: Mapping[str, str], here: Mapping[str, str] = os.environ) -> bool:
    """Whether a fork can have `environment`: what a Python, a C library or torch reads when it starts is the same `here`."""
    threads = environment.get("OMP_NUM_THREADS", "1")
    return threads.isdigit() and int(threads) > 0 and read_at_start(environment) == read_at_start(here)


def read_at_start(environment: Mapping[str, str]) -> dict[str, str]:
    """The part of `environment` that is read once, by an interpreter or a library that starts."""
    families = ("PYTHON", "LC_", "LANG", "LD_", "MALLOC_", "GLIBC_", "OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "ATEN_",
                "TORCH_", "PYTORCH_", "CUDA_", "NPY_", "NUMPY_")  # fmt: skip
    later = ("OMP_NUM_THREADS", "TORCH_NCCL_")  # torchrun sets one of NCCL's, which are read where groups of it are made
    return {name: value for name, value in environment.items() if name.startswith(families) and not name.startswith(later)}


def is_ours(argv: Sequence[str]) -> bool:
    """Whether `argv` is one of our programs, or `python -m` with one of our modules."""
    module = module_of(argv)
    return module.startswith("nemotron_dpo.") or module.replace("_", "-") in PROGRAMS or bool(script_of(argv))


def module_of(argv: Sequence[str]) -> str:
    """The module that `argv` lets Python find by its name; "" where it does not."""
    return str(argv[2]) if [str(word) for word in argv[:2]] == [sys.executable, "-m"] and len(argv) > 2 else ""


def script_of(argv: Sequence[str]) -> str | None:
    """The Python file that `argv` runs, where it is one of our programs."""
    first = str(argv[0])
    if first == sys.executable and len(argv) > 1 and str(argv[1]).endswith(".py"):
        return str(argv[1])
    found = Path(shutil.which(first) or first)
    return str(found) if found.name in PROGRAMS and found.parent == Path(sys.executable).parent else None
