"""Where compiled runs go. One folder an executor; README.md says what each must have, and lists the keys of profiles."""
