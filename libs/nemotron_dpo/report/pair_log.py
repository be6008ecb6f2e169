"""pairs_log.arrow as columns: what became of each pair, each time that it was trained on or validated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa

from nemotron_dpo.errors import UserError
from nemotron_dpo.streams import open_reader

NAME = "pairs_log.arrow"
_NUMBERS = (
    "step",
    "source_line",
    "prompt_tokens",
    "chosen_tokens",
    "rejected_tokens",
    "chosen_log_ratio",
    "rejected_log_ratio",
)
_NUMBERS += ("margin", "loss")


@dataclass(frozen=True)
class Sightings:
    """Rows of the log, N of them, in its order. `pair` counts the pairs, whose ids are `ids`; `source` indexes `sources`, and
    `file`, which is empty for a source of one file, `files`.

    log-ratios and losses are NaN where there are none.
    """

    step: np.ndarray
    pair: np.ndarray
    ids: list[bytes]
    source: np.ndarray
    sources: list[str]
    file: np.ndarray
    files: list[str]
    source_line: np.ndarray
    prompt_tokens: np.ndarray
    chosen_tokens: np.ndarray
    rejected_tokens: np.ndarray
    chosen_log_ratio: np.ndarray
    rejected_log_ratio: np.ndarray
    margin: np.ndarray
    loss: np.ndarray

    def __len__(self) -> int:
        return len(self.step)

    def take(self, rows: np.ndarray) -> Sightings:
        """Those of `rows`."""
        names = ("pair", "source", "file", *_NUMBERS)
        return replace(self, **{name: getattr(self, name)[rows] for name in names})

    @property
    def longer(self) -> np.ndarray:
        """By how many tokens the chosen response is longer."""
        return self.chosen_tokens.astype(np.int64) - self.rejected_tokens


@dataclass(frozen=True)
class PairChanges:
    """Each pair once, P of them: as it was seen first and as it was seen last, in the same order.

    split: where. was_seen_twice: whether there are two sightings of each; if not, `first` is `last`.
    """

    split: str
    first: Sightings
    last: Sightings
    was_seen_twice: bool


@dataclass(frozen=True)
class PairLog:
    """Sightings by split, and what is wrong with the log, in a sentence; `""` where nothing is."""

    splits: dict[str, Sightings]
    problem: str = ""

    def change(self) -> PairChanges | None:
        """What training did to pairs: of a validation set where one was measured twice, else of the pairs trained on twice."""
        held = sorted((name for name in self.splits if name != "train"), key=lambda name: (name != "validation-default", name))
        for name in (*held, "train"):
            if name in self.splits and (change := _change(name, self.splits[name])) is not None:
                return change
        split = next(iter((*held, *self.splits)), None)
        return None if split is None else _once(split, self.splits[split])


def read(folder: Path) -> PairLog | None:
    """The log in a run's `folder`, as far as it is whole; None where the run has none, as earlier versions wrote none."""
    path = folder / NAME
    if not path.is_file():
        return None
    try:
        with open_reader(path, "pairs_log") as reader:
            table, wrong = reader.read_so_far()
    except UserError as error:
        return PairLog({}, f"{NAME} cannot be read: {error.message}.")
    problem = f"{NAME}: {wrong.message}; what comes before is used." if wrong is not None else ""
    return PairLog(_by_split(table), problem) if table.num_rows else PairLog({}, problem or f"{NAME} has no pairs yet.")


def _by_split(table: pa.Table) -> dict[str, Sightings]:
    split, names = _coded(table["split"])
    pair, ids = _coded(table["pair_id"])
    source, sources = _coded(table["source"])
    file, files = _coded(table["source_file"])
    numbers = {name: _numbers(table[name]) for name in _NUMBERS}
    whole = Sightings(pair=pair, ids=ids, source=source, sources=_texts(sources), file=file, files=_texts(files), **numbers)
    return {name: whole.take(np.flatnonzero(split == code)) for code, name in enumerate(names)}


def _texts(values: list) -> list[str]:
    return [str(one or "") for one in values]


def _coded(column: pa.ChunkedArray) -> tuple[np.ndarray, list]:
    """Places in the list of values, and that list; null is a value, None."""
    chunks = [chunk.dictionary_decode() if isinstance(chunk, pa.DictionaryArray) else chunk for chunk in column.chunks]
    coded = pa.chunked_array(chunks).combine_chunks().dictionary_encode(null_encoding="encode")
    return coded.indices.to_numpy(zero_copy_only=False).astype(np.int64), coded.dictionary.to_pylist()


def _numbers(column: pa.ChunkedArray) -> np.ndarray:
    return column.to_numpy()


def _change(split: str, seen: Sightings) -> PairChanges | None:
    """None where no pair was seen at two steps. Pairs that were seen once are left out."""
    last, first = _ends(seen)
    twice = seen.step[last] > seen.step[first]
    if not twice.any():
        return None
    return PairChanges(split, seen.take(first[twice]), seen.take(last[twice]), True)


def _once(split: str, seen: Sightings) -> PairChanges:
    last = seen.take(_ends(seen)[0])
    return PairChanges(split, last, last, False)


def _ends(seen: Sightings) -> tuple[np.ndarray, np.ndarray]:
    """The rows of the last and of the first sighting of each pair."""
    order = np.lexsort((np.arange(len(seen)), seen.step, seen.pair))
    pairs = seen.pair[order]
    starts = np.flatnonzero(np.r_[True, pairs[1:] != pairs[:-1]])
    stops = np.r_[starts[1:], len(order)] - 1
    return order[stops], order[starts]


def correlation(one: np.ndarray, other: np.ndarray) -> float | None:
    """Pearson's; None where one of them does not vary."""
    good = np.isfinite(one) & np.isfinite(other)
    one, other = one[good].astype(float), other[good].astype(float)
    return float(np.corrcoef(one, other)[0, 1]) if len(one) > 2 and one.std() > 0 and other.std() > 0 else None


def by_bins(across: np.ndarray, use: Callable[[np.ndarray], object], most: int) -> list[tuple[float, float, object]]:
    """`use` of the rows of each of at most `most` bins of `across` that hold about as many rows: (from, to, value)."""
    edges = np.unique(np.quantile(across, np.linspace(0, 1, most + 1)))
    if len(edges) < 2:
        return [(float(across[0]), float(across[0]), use(np.arange(len(across))))] if len(across) else []
    place = np.clip(np.searchsorted(edges, across, side="right") - 1, 0, len(edges) - 2)
    rows = ((low, high, np.flatnonzero(place == n)) for n, (low, high) in enumerate(pairwise(edges)))
    return [(float(low), float(high), use(own)) for low, high, own in rows if len(own)]
