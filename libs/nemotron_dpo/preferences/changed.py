"""The pairs whose margins a policy changed most, in both directions, with their texts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from nemotron_dpo.errors import UserError
from nemotron_dpo.preferences.changed_lines import DOWN, UP
from nemotron_dpo.preferences.pairs import Pairs
from nemotron_dpo.preferences.stream_texts import tokenizer_of

if TYPE_CHECKING:
    from nemotron_dpo.streams import StreamInfo

MOST, _CHARACTERS = 10, 2000


def changed_most(pairs: Pairs, before_P: np.ndarray, after_P: np.ndarray, info: StreamInfo, source: str) -> dict[str, Any]:
    """Up to MOST pairs each whose margin rose and fell most, the greatest change first; equal ones in the order of the file.

    `before_P` and `after_P` are margins in nats. Texts are those of the tokenizer that made the stream, which `info` describes;
    where it is not to be had, `texts` says why, and there are none.
    """
    change_P = after_P - before_P
    falling = np.argsort(-change_P, kind="stable")
    rows = {UP: [row for row in falling[:MOST].tolist() if change_P[row] > 0]}
    rows[DOWN] = [row for row in np.argsort(change_P, kind="stable")[:MOST].tolist() if change_P[row] < 0]
    try:
        decode, why = tokenizer_of(info, source), None
    except (UserError, OSError) as error:
        decode, why = None, str(error)
    found: dict[str, Any] = {} if why is None else {"texts": f"not shown: {why}"}
    for name, chosen in rows.items():
        found[name] = [_pair(pairs, row, float(before_P[row]), float(after_P[row]), decode) for row in chosen]
    return found


def _pair(pairs: Pairs, row: int, before: float, after: float, decode: Any) -> dict[str, Any]:
    told: dict[str, Any] = {"line": int(pairs.source_lines[row]), "source": pairs.source[row], "before": before, "after": after}
    if decode is not None:
        columns = {"prompt": pairs.prompt, "chosen": pairs.chosen, "rejected": pairs.rejected}
        for name, column in columns.items():
            text = decode(column[row].tolist())
            told[name] = text[-_CHARACTERS:] if name == "prompt" else text[:_CHARACTERS]  # the end of a prompt is answered
    return told
