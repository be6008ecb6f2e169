"""What executors share: the dry run; and of those elsewhere the environment, paths, scripts, and following a job to its end."""
