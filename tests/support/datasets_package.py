"""The package `datasets` beside those that run the tests, fetched once and cached: it writes real folders and caches."""

from __future__ import annotations

import functools
from pathlib import Path

from support.real_assets import pinned_packages

_PINS = Path(__file__).with_name("datasets_pins.txt")


@functools.cache
def datasets_packages() -> Path:
    """The folder that a PYTHONPATH needs. The test is skipped where the registry cannot be reached."""
    return pinned_packages("datasets", _PINS)


def datasets_variables(cache: Path) -> dict[str, str]:
    """Variables under which programs find `datasets`, with its cache in the folder `cache`, and no network is asked."""
    return {"PYTHONPATH": str(datasets_packages()), "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(cache)}
