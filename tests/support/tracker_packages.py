"""The libraries of the trackers, and MLflow's server: a folder for the PYTHONPATH of what the tests start, fetched once.

They are not in `.venv`: hardly anybody needs all of them. A test that calls `tracker_packages` is skipped with the reason
where the registry cannot be reached.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from pathlib import Path

from support.real_assets import pinned_packages

_PINS = Path(__file__).with_name("tracker_pins.txt")
# What would reach a service, or a login of whoever runs the tests.
_FOREIGN = ("WANDB_", "MLFLOW_", "SWANLAB_", "TRACKIO_", "NETRC")


@functools.cache
def tracker_packages() -> Path:
    """The folder with all of them."""
    return pinned_packages("trackers", _PINS)


def tracker_environment(home: Path, **variables: str) -> Mapping[str, str]:
    """Variables under which programs find the libraries, `variables` besides, and nobody's login: that of the folder `home`."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
    return {**own, "PYTHONPATH": str(tracker_packages()), "HOME": str(home), **variables}
