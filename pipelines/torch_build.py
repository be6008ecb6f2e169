"""Which build of torch the environment gets, and from where: the package index, or torch's own index of builds for CPUs.

On Linux the torch of the package index is built for CUDA and brings 3 GB of NVIDIA's libraries, which a machine without a GPU
has no use for. The choice is said, because on a machine with GPUs the CPU's build would silently leave them idle:

  cuda   never the CPU's build
  cpu    the CPU's build or an error
  URL    whatever the index at URL has under the pinned version (older CUDA, ROCm)
  auto   `cuda` where there is a GPU; else the CPU's build where one is to be had; else what the index has
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

CPU_INDEX = "https://download.pytorch.org/whl/cpu"


@dataclass(frozen=True)
class TorchBuild:
    """What pip is asked for before all else (`requirement` from `options`), and how that is told."""

    requirement: str
    options: tuple[str, ...] = ()
    why: str = ""
    small: bool = False  # nothing of CUDA's comes along


@dataclass(frozen=True)
class Machine:
    """What the choice looks at; pip is asked only where it has to be.

    `own_index()` is whether pip is set to an index other than the public one, `versions(*options)` torch's versions for this
    Python under these options of pip.
    """

    has_gpu: bool
    has_slurm: bool
    on_linux: bool
    own_index: Callable[[], bool]
    versions: Callable[..., set[str]]


def this_machine(pip: list[str], environment: dict[str, str]) -> Machine:
    """The machine that this runs on, asked through the command `pip` and under these variables."""
    return Machine(
        has_gpu=_has_gpu(),
        has_slurm=shutil.which("sbatch") is not None,
        on_linux=sys.platform == "linux",
        own_index=lambda: bool(_settings([*pip, "config", "list"], environment) & {"index-url", "no-index"}),
        versions=lambda *options: _versions([*pip, "index", "versions", "torch", *options], environment),
    )


def choose(asked: str, version: str, machine: Machine, cpu_index: str = CPU_INDEX) -> TorchBuild:
    """The build for what was `asked` and the pinned `version`. Raises `LookupError` where it is not to be had."""
    exact, cpu = f"torch=={version}", f"{version}+cpu"
    if "://" in asked:
        return TorchBuild(exact, ("--index-url", asked), "as the index you named has it")
    if asked == "cuda" and not machine.on_linux:
        raise LookupError("torch=cuda: torch has builds for CUDA on Linux alone")
    if asked == "cuda" or (asked == "auto" and machine.has_gpu):
        why = "you asked for it" if asked == "cuda" else "this machine has a GPU"
        return TorchBuild(f"{exact},!={cpu}", why=f"not the build for CPUs: {why}")
    if not machine.on_linux:
        return TorchBuild(exact, why="the one for this system", small=True)
    if asked == "auto" and machine.has_slurm:
        return TorchBuild(
            exact, why="as pip's index has it: Slurm's nodes may have GPUs (the small one: `just torch=cpu setup`)"
        )
    where = _where(cpu, machine, cpu_index)
    if where is not None:
        why = "you asked for it" if asked == "cpu" else "this machine has no GPU"
        return TorchBuild(
            f"torch=={cpu}", where, f"the build for CPUs: {why} (`just torch=cuda setup` for the other)", small=True
        )
    if asked == "cpu":
        raise LookupError(f"torch {cpu} for this Python is to be had neither from pip's index nor from {cpu_index}")
    return TorchBuild(exact, why="as pip's index has it: no build for CPUs is to be had from here")


def _where(cpu: str, machine: Machine, cpu_index: str) -> tuple[str, ...] | None:
    """pip's options under which it finds this version; who set an index of their own is not sent to another host."""
    if cpu in machine.versions():
        return ()
    options = ("--index-url", cpu_index)
    if machine.own_index() or cpu not in machine.versions(*options, "--retries", "0", "--timeout", "10"):
        return None
    return options


def _settings(argv: list[str], environment: dict[str, str]) -> set[str]:
    config = subprocess.run(argv, capture_output=True, text=True, env=environment).stdout
    return {line.split("=")[0].rsplit(".", 1)[-1] for line in config.splitlines()}


def _versions(argv: list[str], environment: dict[str, str]) -> set[str]:
    done = subprocess.run(argv, capture_output=True, text=True, env=environment)
    listed = [line.partition(":")[2] for line in done.stdout.splitlines() if line.startswith("Available versions:")]
    return {version.strip() for line in listed for version in line.split(",")}


def _has_gpu() -> bool:
    """Whether NVIDIA's driver shows one: its device, or under WSL its program."""
    smi = shutil.which("nvidia-smi") or shutil.which("nvidia-smi", path="/usr/lib/wsl/lib")
    if Path("/dev/nvidia0").exists() or smi is None:
        return Path("/dev/nvidia0").exists()
    listed = subprocess.run([smi, "-L"], capture_output=True, text=True)
    return listed.returncode == 0 and "GPU 0" in listed.stdout
