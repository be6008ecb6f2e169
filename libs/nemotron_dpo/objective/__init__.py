"""What is optimised and what is measured, as pure functions of log-probs; knows torch and nothing else of this project."""
