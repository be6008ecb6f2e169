"""Score one window of pairs under a fixed policy: a log-prob for every response token, packed, forward only.

Legend: R response tokens of a packed row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
import torch.distributed as dist

from nemotron_dpo.policy import parallel
from nemotron_dpo.policy.cost import share_of_replica
from nemotron_dpo.policy.device import device
from nemotron_dpo.policy.model import PairPolicy
from nemotron_dpo.policy.rows import PackedRow, pack_row, split_responses
from nemotron_dpo.policy.trainable import run_schedule
from nemotron_dpo.preferences.packing import pack
from nemotron_dpo.preferences.pairs import Pairs
from nemotron_dpo.streams import TOKENIZED_PAIRS

# (chosen, rejected) log-probs of one pair, float32, one a response token
Scores = tuple[np.ndarray, np.ndarray]


def row_tokens() -> int:
    """Tokens of a packed row where nobody says: as many as this process's device multiplies at its best."""
    return 16384 if device().type == "cuda" else 4096


def score_window(
    model: PairPolicy,
    window: pa.RecordBatch,
    max_tokens: int,
    known: Mapping[bytes, Scores],
    done: Callable[[int], object] = lambda num_pairs: None,
) -> tuple[list[Scores], int]:
    """Scores of every pair of the window in its order, on every rank, and how many were not found in `known` by pair_id.

    `done` hears of so many more pairs as they come; they add up to those of the window.
    Every data-parallel replica computes the scores of about the same work, and gets the others' from them.
    """
    pairs = Pairs.of(window)
    missing = [i for i, pair_id in enumerate(pairs.pair_ids) if pair_id not in known]
    told = _Told(window.num_rows, done)
    computed = _score(model, pairs, _bins(model, pairs, missing, max_tokens), told)
    for part in _gathered(computed):
        computed.update(part)
    told.rest()
    return [known[key] if key in known else computed[i] for i, key in enumerate(pairs.pair_ids)], len(missing)


def with_scores(window: pa.RecordBatch, scores: list[Scores]) -> list[pa.Array]:
    """The columns of `scored_pairs`: those of the window and the two reference columns."""
    columns = [window.column(name) for name in TOKENIZED_PAIRS.names]
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


@dataclass(frozen=True)
class _Batch:
    row: PackedRow


@dataclass
class _Told:
    """Tells how many pairs of a window were scored. Of other replicas as many are taken to be done as here."""

    left: int
    done: Callable[[int], object]

    def through(self, batches: Iterable[_Batch]) -> Iterator[_Batch]:
        """`batches`, each of which is done when the next is asked for."""
        for batch in batches:
            yield batch
            self._tell(min(self.left, batch.row.num_pairs * parallel.data_size()))

    def rest(self) -> None:
        """All of the window is done."""
        self._tell(self.left)

    def _tell(self, num_pairs: int) -> None:
        self.left -= num_pairs
        if num_pairs:
            self.done(num_pairs)


def _bins(model: PairPolicy, pairs: Pairs, missing: list[int], max_tokens: int) -> list[list[int]]:
    """Those of the `missing` pairs that this replica scores, by packed row."""
    if not missing:
        return []
    lengths = (column.lengths[missing] for column in (pairs.prompt, pairs.chosen, pairs.rejected))
    mine = [missing[i] for i in share_of_replica(model.architecture, *lengths)]
    return [[mine[i] for i in members] for members in pack([int(pairs.num_tokens[i]) for i in mine], max_tokens)]


def _score(model: PairPolicy, pairs: Pairs, bins: Sequence[list[int]], told: _Told) -> dict[int, Scores]:
    """Scores of the pairs in `bins`, on one of the ranks that hold them; nothing on the others."""
    num_empty = parallel.num_micro_batches(len(bins)) - len(bins)
    batches = [_Batch(pack_row(*pairs.columns(members), parallel.row_cut())) for members in [*bins, *[[]] * num_empty]]
    if not batches:
        return {}
    with torch.no_grad():  # not in inference mode: megatron-core keeps tensors that training writes to afterwards
        rows = run_schedule(model, batches, lambda batch, logps_R: (logps_R, logps_R), forward_only=True, through=told.through)
    if not (parallel.is_last_stage() and parallel.is_first_copy()):
        return {}
    scores: dict[int, Scores] = {}
    for members, logps_R in zip(bins, rows[: len(bins)], strict=True):
        lengths = (column.lengths[members] for column in (pairs.chosen, pairs.rejected))
        scores.update(zip(members, split_responses(logps_R.cpu().numpy(), *lengths), strict=True))
    return scores


def _gathered(computed: dict[int, Scores]) -> list[dict[int, Scores]]:
    if parallel.world_size() == 1:
        return []
    parts: list[dict[int, Scores]] = [{}] * parallel.world_size()
    dist.all_gather_object(parts, computed)
    return parts
