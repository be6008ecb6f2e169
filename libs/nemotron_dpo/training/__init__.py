"""The training loop: batches, schedule, guards, metrics, checkpoints. Knows nothing of config files or command lines."""
