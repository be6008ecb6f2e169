"""The executors of Lepton and DGX Cloud (Run:ai): a plan becomes one script, submitted through NeMo-Run's own executors."""
