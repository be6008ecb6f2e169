"""Which versions of torch and megatron-core this was tried with, and what is installed instead; imports neither.

We overwrite some of their names (`policy/patches.py`) and take the place of some of their classes, so a version that nobody
tried may compute something else. It is not refused, but it is said.
"""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass

from nemotron_dpo.errors import UserError


@dataclass(frozen=True)
class Range:
    """Minor versions, the first and the last that were tried."""

    first: tuple[int, int]
    last: tuple[int, int]

    def __str__(self) -> str:
        return " to ".join(".".join(map(str, version)) for version in (self.first, self.last))


TRIED = {"torch": Range((2, 11), (2, 15)), "megatron-core": Range((0, 16), (0, 19))}
_IMPORTS_TRITON = (0, 18)  # this megatron-core and later ones, on a CPU too


def called(package: str) -> str:
    """`package` with its version, which one that is a checkout on PYTHONPATH does not say."""
    from importlib import metadata  # half of what it takes to print a manual

    try:
        return f"{package} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        return f"{package} of unknown version"


def untried() -> list[str]:
    """One line for each package whose installed version was not tried."""
    return [f"{called(package)} was not tried: {tried} were" for package, tried in TRIED.items() if not _is_tried(package)]


def remedy(package: str) -> str:
    """What to do where `package` is not what it has to be."""
    return f"install {package} {TRIED[package]}"


def require_triton() -> None:
    """Raise UserError where megatron-core imports Triton and there is none, as beside torch's own builds for CPUs."""
    if (_number("megatron-core") or (0, 0)) >= _IMPORTS_TRITON and importlib.util.find_spec("triton") is None:
        message = f"{called('megatron-core')} does not work without triton"
        raise UserError(message, remedy=f"install triton, or megatron-core before {'.'.join(map(str, _IMPORTS_TRITON))}")


def _is_tried(package: str) -> bool:
    number = _number(package)
    return number is not None and TRIED[package].first <= number <= TRIED[package].last


def _number(package: str) -> tuple[int, int] | None:
    found = re.search(r" (\d+)\.(\d+)", called(package))
    return None if found is None else (int(found[1]), int(found[2]))
