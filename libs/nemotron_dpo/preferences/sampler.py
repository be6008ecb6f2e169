"""The order of training pairs: a function of (seed, epoch) alone, so a run can be resumed at any step."""

from __future__ import annotations

import numpy as np


def batch_indices(step: int, num_pairs: int, batch_size: int, *, seed: int, shuffle: bool) -> np.ndarray:
    """The row numbers int64 [batch_size] of global batch `step` (from 0); the incomplete end of an epoch is left out.

    Raises ValueError where the data has fewer pairs than one batch.
    """
    epoch, batch = divmod(step, batches_per_epoch(num_pairs, batch_size))
    order = np.random.default_rng([seed, epoch]).permutation(num_pairs) if shuffle else np.arange(num_pairs)
    return order[batch * batch_size : (batch + 1) * batch_size]


def batches_per_epoch(num_pairs: int, batch_size: int) -> int:
    """Whole batches in one pass over the data. Raises ValueError where there is none."""
    if num_pairs < batch_size:
        raise ValueError(f"a batch of {batch_size} pairs is more than the {num_pairs} there are")
    return num_pairs // batch_size
