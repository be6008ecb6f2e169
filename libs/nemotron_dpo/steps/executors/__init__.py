"""Where compiled runs go. One folder an executor; profiles/README.md says what each must have."""
