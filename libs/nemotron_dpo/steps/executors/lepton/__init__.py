"""The executor of Lepton: jobs of a workspace, submitted through NeMo-Run's executor."""
