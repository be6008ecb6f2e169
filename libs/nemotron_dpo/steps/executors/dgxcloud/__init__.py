"""The executor of DGX Cloud (Run:ai): workloads of a project, submitted through NeMo-Run's executor."""
