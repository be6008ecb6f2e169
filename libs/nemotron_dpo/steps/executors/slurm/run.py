"""A compiled run on Slurm: as one batch job, here or on the cluster that a login node leads to."""

from __future__ import annotations

from nemotron_dpo.steps.compile.compiled_run import Run, Say
from nemotron_dpo.steps.executors.shared.run import run_elsewhere
from nemotron_dpo.steps.executors.slurm import launch


def run_on_slurm(run: Run, say: Say) -> int:
    """Submit it, or print what would be; returns the exit status."""
    return run_elsewhere(run, say, launch, "Slurm")
