"""The training loop and what surrounds it: data, batches, schedule, guards, records and their sinks, checkpoints, resuming.

It knows nothing of config files or command lines.
"""
