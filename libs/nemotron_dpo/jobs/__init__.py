"""The jobs that nemotron-steps left: list them, compare two, remove what nothing needs any more. Nothing here runs a stage."""
