"""The versions of torch and megatron-core that were tried, and the installed ones. Neither package is imported.

We overwrite some of their names (`policy/patches.py`) and replace some of their classes, so a version that nobody tried may
compute something else. It is not refused; a warning names it.
"""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass

from nemotron_dpo.errors import UserError


@dataclass(frozen=True)
class Range:
    """The first and the last minor version that were tried."""

    first: tuple[int, int]
    last: tuple[int, int]

    def __str__(self) -> str:
        return " to ".join(".".join(map(str, version)) for version in (self.first, self.last))


TRIED = {"torch": Range((2, 11), (2, 15)), "megatron-core": Range((0, 16), (0, 19))}
_IMPORTS_TRITON = (0, 18)  # this megatron-core and later ones, on a CPU too


def called(package: str) -> str:
    """`package` and its version. A checkout on PYTHONPATH has no known version."""
    from importlib import metadata  # imported here: it takes half the time of printing a manual

    try:
        return f"{package} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        return f"{package} of unknown version"


def untried() -> list[str]:
    """One line for each package whose installed version was not tried."""
    return [f"{called(package)} was not tried: {tried} were" for package, tried in TRIED.items() if not _is_tried(package)]


def remedy(package: str) -> str:
    """What to tell a user whose `package` lacks what is needed."""
    return f"install {package} {TRIED[package]}"


def require_triton() -> None:
    """Raise UserError where megatron-core imports Triton and it is missing: torch's own builds for CPUs do not bring it."""
    if (_number("megatron-core") or (0, 0)) >= _IMPORTS_TRITON and importlib.util.find_spec("triton") is None:
        message = f"{called('megatron-core')} does not work without triton"
        raise UserError(message, remedy=f"install triton, or megatron-core before {'.'.join(map(str, _IMPORTS_TRITON))}")


def _is_tried(package: str) -> bool:
    number = _number(package)
    return number is not None and TRIED[package].first <= number <= TRIED[package].last


def _number(package: str) -> tuple[int, int] | None:
    found = re.search(r" (\d+)\.(\d+)", called(package))
    return None if found is None else (int(found[1]), int(found[2]))
