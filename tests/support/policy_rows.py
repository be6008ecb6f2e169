"""Packed rows of pairs of which only the lengths matter."""

from __future__ import annotations

import numpy as np

from nemotron_dpo.policy.rows import Cut, PackedRow, pack_row


def packed(*lengths: tuple[int, int, int], cut: Cut | None = None) -> PackedRow:
    """A row of pairs of as many tokens of prompt, chosen and rejected response."""
    prompts, chosen, rejected = ([np.zeros(n[side], dtype=np.int32) for n in lengths] for side in range(3))
    return pack_row(prompts, chosen, rejected, cut or Cut())
