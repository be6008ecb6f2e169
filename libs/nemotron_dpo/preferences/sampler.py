"""The order of training pairs: a function of (seed, epoch) alone, so a run can be resumed at any step."""

from __future__ import annotations

import functools

import numpy as np


def batch_indices(step: int, num_pairs: int, batch_size: int, *, seed: int, shuffle: bool) -> np.ndarray:
    """The row numbers, int64 [batch_size], of global batch `step` (from 0); the incomplete last batch of an epoch is left out.

    The first call for an epoch shuffles all its rows, so it is slower than later calls. Raises ValueError where the data has
    fewer pairs than one batch.
    """
    epoch, batch = divmod(step, batches_per_epoch(num_pairs, batch_size))
    start = batch * batch_size
    if not shuffle:
        return np.arange(start, start + batch_size)
    return _epoch_order(num_pairs, seed, epoch)[start : start + batch_size].astype(np.int64)


def batches_per_epoch(num_pairs: int, batch_size: int) -> int:
    """The number of whole batches in one pass over the data. Raises ValueError where the data does not fill one batch."""
    if num_pairs < batch_size:
        raise ValueError(f"a batch of {batch_size} pairs is more than the {num_pairs} there are")
    return num_pairs // batch_size


@functools.lru_cache(maxsize=1)
def _epoch_order(num_pairs: int, seed: int, epoch: int) -> np.ndarray:
    """All row numbers in the order of `epoch`, [num_pairs].

    The cache keeps the order of one epoch, in the smallest integer type that holds a row number, to save memory.
    """
    order = np.random.default_rng([seed, epoch]).permutation(num_pairs)
    return order.astype(np.min_scalar_type(num_pairs))
