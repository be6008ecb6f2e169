"""Open pairs files for training and refuse, before a model exists, whatever could not be trained on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from nemotron_dpo.errors import UserError
from nemotron_dpo.preferences.checks import check_ids, check_scores
from nemotron_dpo.preferences.pairs import Pairs
from nemotron_dpo.streams import StreamInfo, open_reader


def open_pairs(path: Path, *, scored: bool, max_length: int, say: Callable[[str], None]) -> tuple[Pairs, StreamInfo]:
    """All pairs of a complete stream. `scored` asks for reference log-probs; sequences must fit `max_length` tokens.

    `say` hears of a stream without checksums. Raises UserError for an incomplete or damaged stream, unscored pairs, a response
    whose scores are missing or no log-probs, ids that are not those of their pair_id, an over-long pair, or no pairs at all.
    """
    accept = ("scored_pairs",) if scored else ("tokenized_pairs", "scored_pairs")
    with open_reader(path, *accept) as reader:
        if reader.warning:
            say(f"warning: {reader.warning}")
        pairs, info = Pairs.of(reader.read_all()), reader.info
    if not len(pairs):
        raise UserError("has no pairs", source=path, remedy=f"see what {info.producer} dropped")
    check_ids(pairs, path)
    _check_lengths(pairs, path, max_length)
    if pairs.ref_chosen is not None:
        check_scores(pairs, path)
    return pairs, info


def check_reference(info: StreamInfo, weights_digest: str, path: Path) -> None:
    """Raise UserError where the pairs were scored by other weights than those training starts from."""
    if info.digests.get("reference") != weights_digest:
        raise UserError(
            "was scored by another policy than --policy",
            source=path,
            remedy="run ref-logprobs with this policy, or set dpo.allow_reference_mismatch=true",
        )


def _check_lengths(pairs: Pairs, path: Path, max_length: int) -> None:
    too_long = np.flatnonzero(pairs.sequence_lengths > max_length)
    if len(too_long):
        first = too_long[0]
        raise UserError(
            f"{len(too_long)} pairs exceed {max_length} tokens, the first (line {pairs.source_lines[first]} of the input) "
            f"with {pairs.sequence_lengths[first]}",
            source=path,
            remedy="tokenize with --max-length or raise policy.max_total_sequence_length",
        )
