"""A compiled run on Lepton or DGX Cloud: as one job of the platform that the profile names."""

from __future__ import annotations

from nemotron_dpo.steps.compile.compiled_run import Run, Say
from nemotron_dpo.steps.executors.cloud import launch
from nemotron_dpo.steps.executors.shared.run import run_elsewhere

_PLACES = {"lepton": "Lepton", "dgxcloud": "DGX Cloud"}


def run_in_cloud(run: Run, say: Say) -> int:
    """Submit it, or print what would be; returns the exit status."""
    return run_elsewhere(run, say, launch, _PLACES[run.profile.executor])
