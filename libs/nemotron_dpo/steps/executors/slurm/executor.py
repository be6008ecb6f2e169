"""The executor of Slurm: a run is one batch job, here or on the cluster that a login node leads to."""

from nemotron_dpo.steps.executors.shared.elsewhere import ElsewhereExecutor
from nemotron_dpo.steps.executors.slurm import launch

EXECUTOR = ElsewhereExecutor("Slurm", launch)
