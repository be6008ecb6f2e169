"""One micro batch as tensors: a single packed row of whole pairs, each laid out prompt | chosen | rejected.

Legend: S packed tokens, R response tokens (both responses of all pairs), P pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from nemotron_dpo.policy.device import device


@dataclass(frozen=True)
class Segment:
    """Where one pair lies in the packed row: token offsets, `end` exclusive."""

    prompt: int
    chosen: int
    rejected: int
    end: int


@dataclass(frozen=True)
class PackedRow:
    """Whole pairs packed behind one another. Travels through megatron-core as its `packed_seq_params`.

    input_ids_S, positions_S: int64, positions restarting at the prompt's end for the rejected response.
    predictors_R: the packed index whose hidden state predicts each response token (the prompt's last token for the first).
    targets_R: the response tokens; chosen and rejected of pair 0, then of pair 1, and so on.
    response_R: 2 * pair + (0 chosen, 1 rejected), to sum log-probs by response.
    """

    input_ids_S: torch.Tensor
    positions_S: torch.Tensor
    predictors_R: torch.Tensor
    targets_R: torch.Tensor
    response_R: torch.Tensor
    segments: tuple[Segment, ...]
    qkv_format: str = "pairs"

    @property
    def num_pairs(self) -> int:
        """P, the number of pairs in the row."""
        return len(self.segments)


def pack_row(prompts: Sequence[np.ndarray], chosen: Sequence[np.ndarray], rejected: Sequence[np.ndarray]) -> PackedRow:
    """Lay out P pairs (lists of int token-id arrays, each at least one token long) as one PackedRow on this device."""
    ids, positions, predictors, responses, segments = [], [], [], [], []
    start = 0
    for pair, (prompt, good, bad) in enumerate(zip(prompts, chosen, rejected, strict=True)):
        lengths = len(prompt), len(good), len(bad)
        segment = Segment(start, start + lengths[0], start + lengths[0] + lengths[1], start + sum(lengths))
        ids += [prompt, good, bad]
        positions += [np.arange(lengths[0] + lengths[1]), np.arange(lengths[0], lengths[0] + lengths[2])]
        for side, (first, length) in enumerate(((segment.chosen, lengths[1]), (segment.rejected, lengths[2]))):
            predictors += [[segment.chosen - 1], np.arange(first, first + length - 1)]
            responses.append(np.full(length, 2 * pair + side))
        segments.append(segment)
        start = segment.end
    targets = [side for pair in zip(chosen, rejected, strict=True) for side in pair]
    tensors = [
        torch.from_numpy(np.concatenate(part).astype(np.int64)) for part in (ids, positions, predictors, targets, responses)
    ]
    return PackedRow(*(tensor.to(device()) for tensor in tensors), segments=tuple(segments))
