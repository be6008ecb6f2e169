"""Splits and parts of splits in the notation of `datasets`: `train`, `train[:1%]`, `train[10:20]`, `train[-100:]`, `a+b`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from nemotron_dpo.errors import UserError
from nemotron_dpo.preferences.lines import Chunk

_SPEC = re.compile(r"(?P<name>\w+(?:\.\w+)*)(?:\[(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?\])?")


@dataclass(frozen=True)
class SplitPart:
    """The rows `start` to `stop` of the split `name`, counted as in a Python slice.

    Where `is_percent`, `start` and `stop` are percents of the split's rows.
    """

    name: str
    start: int | None = None
    stop: int | None = None
    is_percent: bool = False

    @property
    def is_whole(self) -> bool:
        """True where no row is left out."""
        return self.start is None and self.stop is None

    def bounds(self, count_rows: Callable[[], int]) -> tuple[int, int | None]:
        """The number of the first row (from 0) and of the row after the last; None for a part that goes to the end.

        `count_rows` reads all the data, so it is called only where the bounds depend on the number of rows. Percents are
        rounded to the closest row as `datasets` does it, exact halves to the even number.
        """
        ends = (self.start, self.stop)
        if not self.is_percent and all(end is None or end >= 0 for end in ends):
            return self.start or 0, self.stop
        num_rows = count_rows()
        rows = [round(end * num_rows / 100) if self.is_percent and end is not None else end for end in ends]
        start, stop = (max(num_rows + end, 0) if end is not None and end < 0 else end for end in rows)
        return start or 0, stop


def parse_split(text: str) -> list[SplitPart]:
    """The parts that `text` names, in order. Raises UserError (usage) where `text` is in none of the forms above."""
    return [_part(spec.strip(), text) for spec in text.split("+")]


def _part(spec: str, text: str) -> SplitPart:
    found = _SPEC.fullmatch(spec)
    ends = [end for end in found.group("start", "stop") if end is not None] if found else []
    percents = {end.endswith("%") for end in ends}
    if found is None or len(percents) > 1:
        raise UserError(f"{text!r} is no split", remedy="write train, train[:1%], train[10:20] or train+test", usage=True)
    start, stop = (None if end is None else int(end.rstrip("%")) for end in found.group("start", "stop"))
    if percents == {True} and any(abs(end) > 100 for end in (start, stop) if end is not None):
        raise UserError(f"{text!r} goes beyond 100%", remedy="write a part such as train[50%:]", usage=True)
    return SplitPart(found["name"], start, stop, percents == {True})


def is_blank(row: object) -> bool:
    """True for an empty line, which is no row."""
    return isinstance(row, bytes) and not row.strip()


def sliced(chunks: Iterator[Chunk], start: int, stop: int | None) -> Iterator[Chunk]:
    """The rows `start` to `stop` (from 0) of all `chunks` together.

    Empty lines do not count as rows. The rows keep their line numbers in the file, so that messages can name the line.
    """
    number = 0
    for chunk in chunks:
        if not chunk.rows:  # of a source without any
            yield chunk
        kept = []
        for place, row in enumerate(chunk.rows):
            if is_blank(row):
                continue
            if start <= number and (stop is None or number < stop):
                kept.append(place)
            number += 1
        if kept:
            yield replace(chunk, first_line=chunk.first_line + kept[0], rows=chunk.rows[kept[0] : kept[-1] + 1])
        if stop is not None and number >= stop:
            return
