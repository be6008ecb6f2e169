"""What a packed row says of its response tokens."""

from __future__ import annotations

import numpy as np

from nemotron_dpo.policy.rows import pack_row


def test_tails_are_past_the_length_of_the_shorter_response() -> None:
    """Responses of 3 and 1, 2 and 2, 1 and 2 tokens; chosen and rejected of a pair follow one another."""
    ids = [np.arange(1, 1 + count) for count in (3, 1, 2, 2, 1, 2)]
    row = pack_row([np.array([9])] * 3, ids[0::2], ids[1::2])
    assert row.is_tail_R.tolist() == [0, 1, 1, 0, 0, 0, 0, 0, 0, 0, 1]
    assert row.sums_of_responses(row.is_tail_R).tolist() == [[2, 0], [0, 0], [0, 1]]
    assert pack_row([], [], []).is_tail_R.tolist() == []
