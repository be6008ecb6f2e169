"""One stream of a mixture: its weight says how often each of its pairs is written, and how many are drawn once more."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pyarrow as pa

from nemotron_dpo.errors import UserError
from nemotron_dpo.preferences.pairs import NameColumn
from nemotron_dpo.streams import StreamInfo, open_reader
from nemotron_dpo.wording import counted

KINDS = ("tokenized_pairs", "scored_pairs")


@dataclass(frozen=True)
class WeightedStream:
    """One stream of a mixture: each of its pairs is written `copies` times, and those in `drawn` once more.

    `drawn` (bool [P]) is None where there are none. `sources` counts the pairs that are written by their source.
    """

    path: str
    weight: str
    info: StreamInfo
    num_pairs: int
    copies: int
    drawn: np.ndarray | None
    sources: Mapping[str, int]

    @property
    def num_written(self) -> int:
        """How many pairs of this stream the mixture has."""
        return sum(self.sources.values())


def look_through(path: str, weight: str, seed: int, seen: Counter[str]) -> WeightedStream:
    """What a mixture takes of the stream at `path`.

    `seen` counts the streams of the same sources before it, which draw other pairs than it. Raises UserError where the stream
    has no pairs, and for a weight that is none or that leaves no pair.
    """
    if path == "-":
        raise UserError("a mixture reads its streams more than once", source="<stdin>", remedy="name files", usage=True)
    copies, rest = divmod(_weight(weight, path), 1)
    with open_reader(path, *KINDS) as reader:
        names = [NameColumn.of(batch.column("source")) for batch in reader]  # views: the file is mapped
        info = reader.info
    num_pairs = sum(len(column.column) for column in names)
    if not num_pairs:
        raise UserError("has no pairs", source=path, remedy=f"see what {info.producer} dropped")
    num_drawn = int(rest * num_pairs + Fraction(1, 2))
    if not copies and not num_drawn:
        raise UserError(f"weight {weight} leaves none of its {counted(num_pairs, 'pair')}", source=path, remedy="leave it out")
    label = "\0".join(dict.fromkeys(name for column in names for name in column.counts()))
    drawn = _draw(num_pairs, num_drawn, f"{seed}\0{seen[label]}\0{label}") if num_drawn else None
    seen[label] += 1
    return WeightedStream(path, weight, info, num_pairs, int(copies), drawn, _written(names, int(copies), drawn))


def _weight(text: str, path: str) -> Fraction:
    """The weight exactly as it is written: in floating point, a tenth of 25 pairs would be more than two and a half."""
    try:
        value = Fraction(text)
    except (ValueError, ZeroDivisionError):
        value = Fraction(0)
    if value <= 0:
        raise UserError(f"{text!r} is no weight above 0", source=path, usage=True)
    return value


def _draw(num_pairs: int, num_drawn: int, key: str) -> np.ndarray:
    """Which of the pairs are drawn, without replacement, bool [num_pairs]."""
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest())
    drawn = np.zeros(num_pairs, bool)
    drawn[np.random.default_rng(seed).permutation(num_pairs)[:num_drawn]] = True
    return drawn


def _written(names: Sequence[NameColumn], copies: int, drawn: np.ndarray | None) -> dict[str, int]:
    """How many pairs of each source are written."""
    total: Counter[str] = Counter()
    start = 0
    for names_of_batch in names:
        total.update({name: copies * number for name, number in names_of_batch.counts().items()})
        end = start + len(names_of_batch.column)
        if drawn is not None:
            total.update(NameColumn(names_of_batch.column.filter(pa.array(drawn[start:end]))).counts())
        start = end
    return {name: number for name, number in total.items() if number}
