"""Score a stream of pairs, window by window: what is known is taken, what is missing computed, and all of it checked."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import torch.distributed as dist
from torch import from_numpy

from nemotron_dpo.policy import parallel
from nemotron_dpo.policy.architecture import Architecture
from nemotron_dpo.policy.device import device
from nemotron_dpo.preferences.checks import check_ids, check_scores
from nemotron_dpo.preferences.pairs import Pairs
from nemotron_dpo.scoring import windows
from nemotron_dpo.scoring.known import Known
from nemotron_dpo.scoring.merge import rows_of_shard
from nemotron_dpo.scoring.scores import WindowScores, scored_batch
from nemotron_dpo.streams import Reader

if TYPE_CHECKING:
    from nemotron_dpo.policy.model import PairPolicy


@dataclass
class Scorer:
    """A policy that is opened, on all ranks, once pairs are met whose scores are not known.

    name: the policy's. vocab_size: of an architecture, how many token ids the policy knows. max_tokens: of a packed row.
    known: on the first rank alone.
    """

    name: str
    open_model: Callable[[], PairPolicy]
    vocab_size: Callable[[Architecture], int]
    max_tokens: int
    known: Known | None
    _model: list[PairPolicy] = field(default_factory=list)

    @property
    def is_open(self) -> bool:
        """Whether the policy is."""
        return bool(self._model)

    def model(self) -> PairPolicy:
        """The policy."""
        if not self._model:
            self._model.append(self.open_model())
        return self._model[0]


def score_stream(
    reader: Reader,
    scorer: Scorer,
    write: Callable[[pa.RecordBatch], object],
    told: Callable[[int], object],
    shard: tuple[int, int] = (1, 1),
) -> tuple[int, int]:
    """Score every pair of the stream, in its order: (pairs, those computed here and now). Every rank calls it.

    Of a `shard` (I, N) every N-th pair from the I-th on. `write` gets `scored_pairs`, on the first rank. `told` hears of so
    many more pairs. What was computed is kept by what is known even where this ends early. Raises UserError where the policy
    cannot read a pair or gives numbers that are none.
    """
    num_pairs = num_new = 0
    replicas = 1 if parallel.job_size() == 1 else parallel.data_size()
    try:
        for window in windows.windows(rows_of_shard(reader, *shard), windows.window_tokens(scorer.max_tokens, replicas)):
            pairs = Pairs.of(window)
            check_ids(pairs, reader.source)
            scores, num_here = _scores(reader, scorer, window, pairs, told)
            scored = scored_batch(window, scores)
            parallel.agreed(lambda scored=scored: _check(scored, scorer))
            num_pairs, num_new = num_pairs + len(pairs), num_new + num_here
            if scorer.known is not None:
                write(scored)
            reader.forget()
    finally:
        if scorer.known is not None:
            scorer.known.close()
    return num_pairs, num_new


def row_tokens() -> int:
    """Tokens of a packed row where nobody says: as many as this process's device multiplies at its best."""
    return 16384 if device().type == "cuda" else 4096


def _scores(
    reader: Reader, scorer: Scorer, window: pa.RecordBatch, pairs: Pairs, told: Callable[[int], object]
) -> tuple[WindowScores, int]:
    """The scores of a window, on the first rank all of them, and how many pairs were computed here."""
    scores, num_here = WindowScores.of(pairs), 0
    is_known = _of_first_rank(np.zeros(len(pairs), bool) if scorer.known is None else scorer.known.fill(pairs, scores))
    missing, copies = _first_of_each(pairs, np.flatnonzero(~is_known))
    told(len(pairs) - len(missing))
    if len(missing):
        is_first = not scorer.is_open
        model, new = scorer.model(), pairs if len(missing) == len(pairs) else Pairs.of(window.take(pa.array(missing)))
        if is_first:
            parallel.agreed(lambda: windows.check_kinds_of_file(reader, model.architecture))
        windows.check_fits(new, scorer.vocab_size(model.architecture), model.architecture, reader.source)
        num_here = _compute(model, scorer, pairs, missing, scores, told)
    for row, same in copies:
        scores.put(row, *scores.row(same))
    return scores, num_here


def _compute(
    model: PairPolicy, scorer: Scorer, pairs: Pairs, missing: np.ndarray, scores: WindowScores, told: Callable[[int], object]
) -> int:
    """Compute the `missing` rows, but for those that other runs are computing; how many were computed here."""
    from nemotron_dpo.scoring.score import score_rows  # it imports megatron-core, which takes seconds

    known, num_here = scorer.known or Known(), 0

    def chosen(rows: Sequence[int]) -> list[int]:
        mine = _of_first_rank(np.isin(rows, known.to_compute(pairs, scores, rows)))
        return np.array(rows)[mine].tolist()

    done = functools.partial(known.take, pairs, scores)
    while len(missing):
        here = score_rows(model, pairs, missing.tolist(), scores, scorer.max_tokens, chosen=chosen, told=told, done=done)
        num_here, missing = num_here + len(here), np.setdiff1d(missing, here)
        if len(missing):
            has_come = _of_first_rank(known.wait(pairs, scores, missing.tolist()))
            told(int(has_come.sum()))
            missing = missing[~has_come]
    return num_here


def _first_of_each(pairs: Pairs, rows: np.ndarray) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Those of `rows` that are the first with their pair_id, and of each other one the first that it is a copy of."""
    first: dict[bytes, int] = {}
    copies = []
    for row in rows.tolist():
        same = first.setdefault(pairs.pair_ids[row], row)
        if same != row:
            copies.append((row, same))
    return np.array(list(first.values()), dtype=np.int64), copies


def _of_first_rank(mask: np.ndarray) -> np.ndarray:
    """The first rank's `mask` (bool [P]), on every rank."""
    if parallel.job_size() == 1:
        return mask
    shared = from_numpy(mask.astype(np.uint8)).to(device())
    dist.broadcast(shared, 0)
    return shared.cpu().numpy().astype(bool)


def _check(scored: pa.RecordBatch, scorer: Scorer) -> None:
    """Raise UserError where a pair does not have one log-prob for each token, on the first rank."""
    if scorer.known is not None:
        check_scores(Pairs.of(scored), scorer.name, "are its weights damaged?")
