"""A sweep: one config trained at every point of a grid over its keys, each point a job of its own."""
