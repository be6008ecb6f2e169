"""What every place that is not this machine has in common: settings, paths, the job's environment, following it to its end."""
