"""Score pairs under a fixed policy: a log-prob for every response token, packed, forward only.

Legend: R response tokens of a packed row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
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
from nemotron_dpo.scoring.scores import WindowScores

# hears of rows of the window whose scores are there now
Done = Callable[[Sequence[int]], object]
# rows of the window -> those that are to be computed here and now
Chosen = Callable[[Sequence[int]], Sequence[int]]


def scores_of(model: PairPolicy, window: pa.RecordBatch, max_tokens: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """The scores of both responses of every pair of `window`, on every rank."""
    pairs = Pairs.of(window)
    scores = WindowScores.of(pairs)
    score_rows(model, pairs, range(len(pairs)), scores, max_tokens)
    return [scores.row(row) for row in range(len(pairs))]


def score_rows(
    model: PairPolicy,
    pairs: Pairs,
    rows: Sequence[int],
    scores: WindowScores,
    max_tokens: int,
    *,
    chosen: Chosen = lambda rows: rows,
    told: Callable[[int], object] = lambda num_pairs: None,
    done: Done = lambda rows: None,
) -> list[int]:
    """Put the scores of those `rows` of a window's `pairs` into `scores` that are `chosen`, on every rank; which these are.

    `told` hears of so many more pairs as they come, which add up to those. `chosen` is asked which, and `done` hears of them: a
    packed row at a time where this process computes alone on a CPU, whose windows take minutes, and else all of them at once.

    Every data-parallel replica computes about the same work, and gets the rest from the others. Which pairs share a packed row
    depends on `rows` alone, and is the same for what is left of them when whole packed rows are taken out.
    """
    is_alone = parallel.world_size() == 1 and device().type == "cpu"
    computed: list[int] = []
    for some in _bins(model, pairs, rows, max_tokens) if is_alone else [rows]:
        if not (mine := chosen(some)):
            continue
        count = _Told(len(mine), told)
        bins = [list(mine)] if is_alone else _bins(model, pairs, mine, max_tokens)
        _score(model, pairs, bins, scores, count)
        _share(pairs, mine, bins, scores)
        done(mine)
        count.rest()
        computed += mine
    return computed


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


def _bins(model: PairPolicy, pairs: Pairs, rows: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Those of the `rows` that this replica scores, by packed row."""
    if not len(rows):
        return []
    lengths = (column.lengths[list(rows)] for column in (pairs.prompt, pairs.chosen, pairs.rejected))
    mine = [rows[i] for i in share_of_replica(model.architecture, *lengths)]
    return [[mine[i] for i in members] for members in pack(pairs.num_tokens_of(mine).tolist(), max_tokens)]


def _score(model: PairPolicy, pairs: Pairs, bins: Sequence[list[int]], scores: WindowScores, told: _Told) -> None:
    """Compute the pairs in `bins`; the scores are put in place on one of the ranks that hold them."""
    num_empty = parallel.num_micro_batches(len(bins)) - len(bins)
    batches = [_Batch(pack_row(*pairs.columns(members), parallel.row_cut())) for members in [*bins, *[[]] * num_empty]]
    if not batches:
        return
    with torch.no_grad():  # not in inference mode: megatron-core keeps tensors that training writes to afterwards
        rows = run_schedule(model, batches, lambda batch, logps_R: (logps_R, logps_R), forward_only=True, through=told.through)
    if not (parallel.is_last_stage() and parallel.is_first_copy()):
        return
    for members, logps_R in zip(bins, rows[: len(bins)], strict=True):
        lengths = (column.lengths[members] for column in (pairs.chosen, pairs.rejected))
        for row, sides in zip(members, split_responses(logps_R.cpu().numpy(), *lengths), strict=True):
            scores.put(row, *sides)


def _share(pairs: Pairs, rows: Sequence[int], bins: Sequence[list[int]], scores: WindowScores) -> None:
    """Give every rank the scores of `rows` that any rank has computed, bit for bit."""
    if parallel.world_size() == 1:
        return
    has = parallel.is_last_stage() and parallel.is_first_copy()
    mine = np.zeros(len(pairs), bool)
    mine[[row for members in bins for row in members] if has else []] = True
    wanted = np.zeros(len(pairs), bool)
    wanted[list(rows)] = True
    for values, side in ((scores.chosen, pairs.chosen), (scores.rejected, pairs.rejected)):
        bits = np.where(np.repeat(mine, side.lengths), values.view(np.int32), 0)
        shared = torch.from_numpy(bits).to(device())
        dist.all_reduce(shared)  # of whole numbers, of which all but one are 0: a sum of floats would lose the sign of 0
        np.copyto(values, shared.cpu().numpy().view(np.float32), where=np.repeat(wanted, side.lengths))
