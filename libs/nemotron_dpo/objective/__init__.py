"""What is optimized and what is measured, as pure functions of log-probs. Knows torch and nothing else of this project.

README.md says what the files are. Only `inputs` and `metrics` import torch when they are imported: a config asks an objective
what it needs before torch is loaded.
"""
