"""What is known of a window before it is scored: from the store, and from earlier outputs. For the first rank alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from nemotron_dpo.errors import UserError
from nemotron_dpo.preferences.checks import LEAST, MOST, check_ids, check_scores
from nemotron_dpo.preferences.pairs import Pairs
from nemotron_dpo.scoring.reused import EarlierScores
from nemotron_dpo.scoring.scores import WindowScores
from nemotron_dpo.scoring.shared import Shared
from nemotron_dpo.scoring.store import Context, Store
from nemotron_dpo.streams import Reader, StreamInfo, open_reader
from nemotron_dpo.wording import counted


@dataclass(frozen=True)
class Known:
    """Scores that need not be computed, where those go that were, and which ones others compute meanwhile."""

    store: Store | None = None
    earlier: tuple[EarlierScores, ...] = ()
    shared: Shared | None = None

    @classmethod
    def of(cls, store: Store | None, earlier: tuple[EarlierScores, ...]) -> Known:
        """What is in the store, with what others add to it, and in earlier outputs."""
        return cls(store, earlier, None if store is None else Shared.of(store))

    def fill(self, pairs: Pairs, scores: WindowScores) -> np.ndarray:
        """Put what is known of `pairs` into `scores`; which of them are known, bool [P]."""
        known = np.zeros(len(pairs), bool)
        if self.store is not None:
            self.store.refresh()
            self.store.fill(pairs, scores, known)
        for one in self.earlier:
            one.fill(pairs, scores, known)
        return known

    def to_compute(self, pairs: Pairs, scores: WindowScores, rows: Sequence[int]) -> list[int]:
        """Those of the missing `rows` that are to be computed here; the others come by `wait`."""
        return list(rows) if self.shared is None else self.shared.begin(pairs, scores, rows)

    def wait(self, pairs: Pairs, scores: WindowScores, rows: Sequence[int]) -> np.ndarray:
        """Put those of `rows` into `scores` that others have published, after a while if none yet; which, bool [len(rows)]."""
        return np.zeros(len(rows), bool) if self.shared is None else self.shared.wait(pairs, scores, rows)

    def take(self, pairs: Pairs, scores: WindowScores, rows: Sequence[int]) -> None:
        """Keep the scores of `rows`, which were computed just now; numbers that no policy gives are not kept."""
        if self.store is None:
            return
        for row in rows:
            sides = scores.row(row)
            if all(((side >= LEAST) & (side <= MOST)).all() for side in sides):
                self.store.add(pairs.pair_ids[row], *sides)
        if self.shared is not None:
            self.shared.publish_when_due()

    def close(self) -> None:
        """Publish what was computed."""
        if self.store is not None:
            self.store.close()
        if self.shared is not None:
            self.shared.close()


def read_earlier(
    paths: Sequence[str],
    context: Context,
    is_same: Callable[[str | None], bool],
    store: Store | None,
    say: Callable[[str], object],
) -> tuple[EarlierScores, ...]:
    """The scores of the outputs `paths`; those of the store's own kind are put into the store.

    `is_same` tells whether a digest is of the weights of `context`. Of a stream that was cut the whole batches are taken.
    Raises UserError where one is of another policy or precision, or holds what is no score.
    """
    earlier: list[EarlierScores] = []
    for path in paths:
        with open_reader(path, "scored_pairs") as reader:
            found, kernels = _read(reader, context, is_same, say), _kernels(reader.info)
        if store is not None and kernels == context.kernels:
            for record in found:
                store.add(*record)
                if store.is_due():
                    store.publish()
            store.publish()
            continue
        if kernels != context.kernels:
            said = f"({kernels or 'unknown ones'}, new pairs by {context.kernels})"
            say(f"warning: {path}: was scored by other kernels {said}: they round otherwise")
        earlier.append(found)
    return tuple(earlier)


def _read(
    reader: Reader, context: Context, is_same: Callable[[str | None], bool], say: Callable[[str], object]
) -> EarlierScores:
    path, info = reader.source, reader.info
    if info.settings.get("reference_precision") != context.precision or not is_same(info.digests.get("reference")):
        raise UserError("cannot be reused: it was scored by another policy or at another precision", source=path)
    if reader.warning:
        say(f"warning: {reader.warning}")
    batches, cut = reader.whole_batches()
    table = pa.Table.from_batches(batches, schema=reader.schema)
    if cut is not None:
        say(f"warning: {cut}: its first {counted(len(table), 'pair')} can be taken, and no more")
    pairs = Pairs.of(table)
    check_ids(pairs, path)
    check_scores(pairs, path, "leave out this --reuse")
    return EarlierScores.of(pairs)


def _kernels(info: StreamInfo) -> str:
    return str(info.settings.get("kernels") or "")


def store_of(folder: str | None, context: Context, say: Callable[[str], object]) -> Store | None:
    """The store in `folder`, with what others have put there; None without a folder."""
    if folder is None:
        return None
    store = Store(Path(folder), context, say)
    store.refresh()
    return store
