"""What is odd about the pairs of a data set, for people, --stats and --drop: repeats, contradictions, lengths, rewards."""
