"""From a config to a plan: the stages, what each reads and makes, and which of them are up to date."""
