"""Loads data sets with the package `datasets`: those of the hub, and folders with a README like those of the hub.

The package fetches and prepares a data set once, as Arrow files in its cache. The rows are then read from these files like
any others, so all later steps (parts of a split, digests, nulls) are the same for all data. The package's offline modes
stay in force.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from nemotron_dpo import documents
from nemotron_dpo.errors import UserError

_OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
_TRUE = {"1", "ON", "YES", "TRUE"}  # the values that huggingface_hub and datasets read as true
INSTALL = 'pip install "nemotron-dpo[datasets]"'


def hub_files(name: str, subset: str | None, split: str) -> list[str]:
    """The Arrow files of one split of the data set `name`, an id of the hub or a folder.

    Raises UserError where `datasets` is not installed or cannot load it.
    """
    try:
        import datasets  # pyright: ignore[reportMissingImports] - an optional dependency
    except ImportError:
        raise UserError("is read by the package datasets, which is not installed", source=name, remedy=INSTALL) from None
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        rows = datasets.load_dataset(name, subset, split=split, keep_in_memory=False)
    except Exception as error:  # datasets raises whatever its many readers raise
        raise _not_loaded(name, subset, split, error) from None
    return [file["filename"] for file in rows.cache_files]


def _not_loaded(name: str, subset: str | None, split: str, error: Exception) -> UserError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    remedy = None
    offline = offline_variable()
    if offline and not Path(name).exists():
        reason, remedy = f"{offline} is set: {reason}", f"unset {offline}, or load it once where the hub can be reached"
    source = f"{':'.join(filter(None, (name, subset)))} ({split})"
    return UserError(f"cannot be loaded by datasets: {reason}", source=source, remedy=remedy)


def offline_variable() -> str | None:
    """The variable of the environment that forbids asking the hub; None where none does."""
    return next((variable for variable in _OFFLINE if os.environ.get(variable, "").upper() in _TRUE), None)


def describes_itself(folder: Path) -> bool:
    """True where the README of `folder` says which files are which subset and split, in the form that `datasets` reads."""
    import yaml

    readme = folder / "README.md"
    text = readme.read_text(encoding="utf-8", errors="replace") if readme.is_file() else ""
    head = text[4:].partition("\n---")[0] if text.startswith("---\n") else ""
    try:
        facts: Any = documents.parsed_yaml(head, readme)
    except (yaml.YAMLError, UserError):
        return False
    return isinstance(facts, dict) and bool(facts.get("configs"))
