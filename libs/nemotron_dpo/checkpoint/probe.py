"""Check that a written policy equals its source: both score the same random pairs.

The written policy is read back by the code that every later stage uses, so errors in writing, naming and reading are found.
Both have their weights in the written precision, so their log-probs agree to the last bits.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from nemotron_dpo.errors import UserError
from nemotron_dpo.policy.architecture import Architecture
from nemotron_dpo.policy.model import PairPolicy
from nemotron_dpo.policy.rows import join_responses
from nemotron_dpo.scoring.score import scores_of
from nemotron_dpo.streams.schema import TOKENIZED_PAIRS

MOST_DIFFERENCE = 1e-4  # of a token's log-prob: the same weights run through the same code, and a wrong weight changes far more
_PROMPT, _RESPONSE = 24, 20  # tokens at most


def rows(num_rows: int, architecture: Architecture, seed: int = 0) -> pa.RecordBatch:
    """`tokenized_pairs` of random ids, uniform over the policy's vocabulary, no longer than the policy supports."""
    rng = np.random.default_rng(seed)
    fits = min(1.0, architecture.max_position_embeddings / (_PROMPT + 2 * _RESPONSE))

    def ids(longest: int) -> np.ndarray:
        return rng.integers(0, architecture.vocab_size, size=rng.integers(1, max(1, int(longest * fits)) + 1))

    pairs = [
        {
            "pair_id": index.to_bytes(16, "big"),
            "source_line": index + 1,
            "prompt_ids": ids(_PROMPT),
            "chosen_ids": ids(_RESPONSE),
            "rejected_ids": ids(_RESPONSE),
            "chosen_truncated": False,
            "rejected_truncated": False,
        }
        for index in range(num_rows)
    ]
    return pa.RecordBatch.from_pylist(pairs, schema=TOKENIZED_PAIRS)


def score(model: PairPolicy, window: pa.RecordBatch) -> np.ndarray:
    """Log-probs of every response token of the pairs, float32 [R], each pair in a row of its own."""
    return join_responses(*zip(*scores_of(model.eval(), window, _PROMPT + 2 * _RESPONSE), strict=True))


def compare(before_R: np.ndarray, after_R: np.ndarray) -> float:
    """The largest difference of a token's log-prob. Raises UserError where it is beyond MOST_DIFFERENCE or not finite."""
    difference = float(np.abs(before_R - after_R).max())
    if not difference <= MOST_DIFFERENCE:
        what = f"does not score as the source does: log-probs differ by up to {difference:.3g}"
        raise UserError(f"{what}, {MOST_DIFFERENCE:g} at most is allowed", remedy="the output was removed")
    return difference
