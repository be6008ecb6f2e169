"""What the executors of Lepton and DGX Cloud share: a plan becomes one script, submitted through NeMo-Run's own executors."""
