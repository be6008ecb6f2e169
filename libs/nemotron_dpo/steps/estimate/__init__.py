"""What a run costs before it runs: FLOPs, memory of a rank, the largest micro batch. Imports no torch."""
