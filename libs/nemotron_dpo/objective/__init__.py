"""What is optimized and what is measured, as pure functions of log-probs. Knows torch and nothing else of this project.

`protocol` says what an objective is, `losses/` has a file for each, `registry` finds them by name, and `weighted_sum` combines
them. `inputs` makes what they are given from the log-probs of a packed row; `metrics` makes numbers of what they return. Only
`inputs` and `metrics` import torch when they are imported: a config asks an objective what it needs before torch is loaded.
"""
