"""The reference pass: per-token log-probs of every response under a fixed policy, packed, forward only, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
import torch.distributed as dist
from torch import nn

from nemotron_dpo.errors import UserError
from nemotron_dpo.policy import parallel
from nemotron_dpo.policy.device import device
from nemotron_dpo.policy.rows import PackedRow, pack_row
from nemotron_dpo.policy.trainable import run_schedule
from nemotron_dpo.preferences.checks import check_ids, check_vocabulary
from nemotron_dpo.preferences.packing import pack
from nemotron_dpo.preferences.pairs import Pairs

# (chosen, rejected) log-probs of one pair, float32, one a response token
Scores = tuple[np.ndarray, np.ndarray]
WINDOW_ROWS = 16  # packed rows per window: pairs are packed within a window, so this bounds memory and fills rows well


def row_tokens() -> int:
    """Tokens of a packed row where nobody says: as many as this process's device multiplies at its best."""
    return 16384 if device().type == "cuda" else 4096


def windows(batches: Iterable[pa.RecordBatch], max_tokens: int) -> Iterator[pa.RecordBatch]:
    """Regroup record batches into windows of about WINDOW_ROWS * max_tokens tokens, in order."""
    waiting: list[pa.RecordBatch] = []
    tokens = 0
    for batch in batches:
        for piece in _slices(batch, WINDOW_ROWS * max_tokens):
            waiting.append(piece)
            tokens += int(Pairs.of(piece).num_tokens.sum())
            if tokens >= WINDOW_ROWS * max_tokens:
                yield pa.concat_batches(waiting)
                waiting, tokens = [], 0
    if waiting:
        yield pa.concat_batches(waiting)


def score_window(
    model: nn.Module, window: pa.RecordBatch, max_tokens: int, known: Mapping[bytes, Scores]
) -> tuple[list[Scores], int]:
    """Scores of every pair of the window in its order, on every rank, and how many were not found in `known` by pair_id.

    Each data-parallel replica computes its share of the packed rows and gathers the others'.
    """
    pairs = Pairs.of(window)
    missing = [i for i, pair_id in enumerate(pairs.pair_ids) if pair_id not in known]
    bins = (
        [[missing[i] for i in members] for members in pack(pairs.num_tokens[missing].tolist(), max_tokens)] if missing else []
    )
    mine = _score(model, pairs, bins[parallel.data_rank() :: parallel.data_size()])
    for part in _gathered(mine):
        mine.update(part)
    return [known[key] if key in known else mine[i] for i, key in enumerate(pairs.pair_ids)], len(missing)


def with_scores(window: pa.RecordBatch, scores: list[Scores]) -> list[pa.Array]:
    """The columns of `scored_pairs`: those of the window and the two reference columns."""
    columns = list(window.columns[:7])
    for side in (0, 1):
        lengths = [len(pair[side]) for pair in scores]
        values = np.concatenate([pair[side] for pair in scores])
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        columns.append(pa.ListArray.from_arrays(pa.array(offsets), pa.array(values, pa.float32())))
    return columns


def known_scores(pairs: Pairs) -> dict[bytes, Scores]:
    """Scores by pair_id, from an earlier output."""
    assert pairs.ref_chosen is not None
    assert pairs.ref_rejected is not None
    return {key: (pairs.ref_chosen[i], pairs.ref_rejected[i]) for i, key in enumerate(pairs.pair_ids)}


def check_fits(window: pa.RecordBatch, vocab_size: int, max_positions: int, source: str) -> None:
    """Raise UserError where ids are not those of their pair_id, or the policy could not read them.

    It could not where they are outside its vocabulary or beyond its positions.
    """
    pairs = Pairs.of(window)
    check_ids(pairs, source)
    check_vocabulary(pairs, vocab_size, source)
    if pairs.sequence_lengths.max() > max_positions:
        raise UserError(
            f"has a sequence of {pairs.sequence_lengths.max()} tokens; the policy has {max_positions} positions",
            source=source,
            remedy="tokenize with --max-length",
        )


@dataclass(frozen=True)
class _Batch:
    row: PackedRow


def _score(model: nn.Module, pairs: Pairs, bins: Sequence[list[int]]) -> dict[int, Scores]:
    """Scores of the pairs in `bins`, on one of the ranks that hold them; nothing on the others."""
    num_empty = parallel.num_micro_batches(len(bins)) - len(bins)
    batches = [_Batch(pack_row(*pairs.columns(members), parallel.row_cut())) for members in [*bins, *[[]] * num_empty]]
    if not batches:
        return {}
    with torch.inference_mode():
        rows = run_schedule(model, batches, lambda batch, logps_R: (logps_R, logps_R), forward_only=True)
    if not (parallel.is_last_stage() and parallel.is_first_copy()):
        return {}
    scores: dict[int, Scores] = {}
    for members, logps_R in zip(bins, rows[: len(bins)], strict=True):
        ends = np.cumsum([len(column[i]) for i in members for column in (pairs.chosen, pairs.rejected)])
        parts = np.split(logps_R.cpu().numpy(), ends[:-1])
        scores.update(zip(members, zip(parts[0::2], parts[1::2], strict=True), strict=True))
    return scores


def _gathered(mine: dict[int, Scores]) -> list[dict[int, Scores]]:
    if parallel.world_size() == 1:
        return []
    parts: list[dict[int, Scores]] = [{}] * parallel.world_size()
    dist.all_gather_object(parts, mine)
    return parts


def _slices(batch: pa.RecordBatch, max_tokens: int) -> Iterator[pa.RecordBatch]:
    """The batch in pieces of at most about `max_tokens` tokens, at least one row each."""
    ends = np.cumsum(Pairs.of(batch).num_tokens)
    start = 0
    while start < batch.num_rows:
        done = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, done + max_tokens, side="right")))
        yield batch.slice(start, stop - start)
        start = stop
