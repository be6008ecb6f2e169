"""The card, its driver, torch, Triton, and the rate of a large product in bfloat16: what all other figures belong to.

A machine that lacks packages fails here, with their names.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
from importlib import metadata

import check

from benchmarks.processes import ROOT

# of the programs, then of the tests and checks; a module, and its package where that is called otherwise
NEEDED = "click huggingface_hub jinja2 megatron:megatron-core numpy omegaconf orjson psutil pyarrow yaml:pyyaml safetensors"
NEEDED += " tokenizers torch tqdm pytest hypothesis transformers"


def main() -> None:
    """Nothing is asserted but that all packages are there, and a GPU where one is due."""
    here = check.begin(__doc__)
    lacking = [name.rpartition(":")[2] for name in NEEDED.split() if importlib.util.find_spec(name.partition(":")[0]) is None]
    check.require(
        not lacking, f"not installed: {' '.join(lacking)}; fetch them with tests/gpu/wheels.sh DIR {' '.join(lacking)}"
    )
    import torch

    check.require(here.cpu or torch.cuda.is_available(), "torch finds no GPU; --cpu is for a machine that has none")
    card = _cpu() if here.cpu else torch.cuda.get_device_name()
    check.tell(
        here,
        card=card,
        driver=_driver(),
        torch=torch.__version__,
        triton=_version("triton"),
        megatron_core=_version("megatron-core"),
        transformers=_version("transformers"),
        trl=_version("trl"),
        python=platform.python_version(),
        cores=len(os.sched_getaffinity(0)),
        commit=_commit(),
        product_tflops=_product_rate(here.cpu),
    )


def _product_rate(cpu: bool) -> float:
    import sys

    sys.path.append(str(ROOT / "tests" / "benchmarks"))  # its modules import one another by their names
    from benchmarks.bench_gpu import gemm_rate

    return (gemm_rate(512, 2) if cpu else gemm_rate()) / 1e12


def _cpu() -> str:
    return f"CPU only ({platform.machine()})"


def _driver() -> str:
    if shutil.which("nvidia-smi") is None:
        return "none"
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True)
    return done.stdout.split("\n")[0].strip() or "unknown"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"


def _commit() -> str:
    done = subprocess.run(["git", "-C", str(ROOT), "log", "-1", "--format=%h"], capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    main()
