"""The Slurm executor: a plan becomes one batch script, driven by Slurm's own commands, here or through ssh."""
