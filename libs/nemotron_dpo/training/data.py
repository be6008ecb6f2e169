"""Open pairs files for training and refuse, before a model exists, whatever could not be trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nemotron_dpo.errors import UserError
from nemotron_dpo.preferences.pairs import Pairs
from nemotron_dpo.streams import StreamInfo, open_reader


def open_pairs(path: Path, *, scored: bool, max_length: int) -> tuple[Pairs, StreamInfo]:
    """All pairs of a complete stream. `scored` asks for reference log-probs; sequences must fit `max_length` tokens.

    Raises UserError for an incomplete stream, unscored pairs, a response whose scores are missing or not finite, an
    over-long pair, or no pairs at all.
    """
    accept = ("scored_pairs",) if scored else ("tokenized_pairs", "scored_pairs")
    with open_reader(path, *accept) as reader:
        pairs, info = Pairs.of(reader.read_all()), reader.info
    if not len(pairs):
        raise UserError("has no pairs", source=path, remedy=f"see what {info.producer} dropped")
    _check_lengths(pairs, path, max_length)
    if scored:
        _check_scores(pairs, path)
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


def _check_scores(pairs: Pairs, path: Path) -> None:
    assert pairs.ref_chosen is not None
    assert pairs.ref_rejected is not None
    for name, ids, scores in (("chosen", pairs.chosen, pairs.ref_chosen), ("rejected", pairs.rejected, pairs.ref_rejected)):
        if not np.array_equal(ids.lengths, scores.lengths):
            raise UserError(f"has {name} responses whose tokens are not all scored", source=path)
        for first, values, (_, offsets) in zip(scores.firsts, scores.by_part(), scores.parts, strict=True):
            bad = np.flatnonzero(~np.isfinite(values))
            if len(bad):
                row = first + int(np.searchsorted(offsets - offsets[0], bad[0], side="right")) - 1
                raise UserError(f"ref_{name}_logps of row {row} is not finite", source=path, remedy="score it again")
