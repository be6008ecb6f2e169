"""Scores of a policy: windows of pairs over a stream, and the log-prob of every response token in them."""
