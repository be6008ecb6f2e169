"""A run's record as one page to look at: `dpo-report`. It reads what dpo-train left, and computes nothing with a model.

`run_folder`, `measured` and `pair_log` read; `single` and `comparison` say what that comes to, chapter by chapter, in the
words of `document`, which know no format; `html`, `markdown`, `poster` and `terminal` write these. Imports no torch.
"""
