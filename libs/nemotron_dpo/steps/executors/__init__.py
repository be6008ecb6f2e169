"""Where the stages of a plan run: this machine, Slurm, Lepton and DGX Cloud, and what these share."""
