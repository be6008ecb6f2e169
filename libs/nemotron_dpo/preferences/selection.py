"""Choose the pairs that a person looks at: the first ones, some at random, the longest ones, or those of given lines."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pyarrow as pa

from nemotron_dpo.errors import UserError
from nemotron_dpo.preferences.encoding import PairIds
from nemotron_dpo.preferences.held_out import scrambled

_IDS = ("prompt_ids", "chosen_ids", "rejected_ids")


@dataclass(frozen=True)
class Choice:
    """Which pairs are shown: `number` of them, None for all of `lines`. `seed` is that of a choice at random."""

    how: Literal["first", "random", "longest", "lines"] = "first"
    number: int | None = 0
    lines: frozenset[int] = frozenset()
    seed: int = 42


def parse_choice(number: int | None, at_random: bool, longest: bool, lines: str | None, seed: int) -> Choice:
    """What --show, --random, --longest, --lines and --seed choose. Raises UserError (usage) where they do not go together."""
    if at_random + longest + (lines is not None) > 1:
        raise UserError("--random, --longest and --lines exclude each other", usage=True)
    if lines is not None:
        return Choice("lines", number, _numbers(lines), seed)
    if number is None and (at_random or longest):
        raise UserError(f"--{'random' if at_random else 'longest'} needs --show N", usage=True)
    return Choice("random" if at_random else "longest" if longest else "first", number or 0, seed=seed)


def _numbers(text: str) -> frozenset[int]:
    numbers = [number.strip() for number in text.split(",")]
    if not all(number.isascii() and number.isdecimal() and int(number) > 0 for number in numbers):
        raise UserError(f"--lines {text} are no line numbers", remedy="write them as 12,40", usage=True)
    return frozenset(map(int, numbers))


@dataclass(frozen=True)
class Shown:
    """A pair to look at: where it comes from, its ids, and the sums of reference log-probs of its responses, if scored."""

    source: str
    line: int
    ids: PairIds
    reference: tuple[float, float] | None = None


@dataclass
class Picker:
    """Hears of all pairs in order and calls `show` for the chosen ones, at once where it knows, else in `finish`."""

    choice: Choice
    show: Callable[[Shown], object]
    _seen: int = 0
    _num_shown: int = 0
    _lines: set[int] = field(default_factory=set)
    _best: list[tuple[int, int, Shown]] = field(default_factory=list)

    @property
    def is_done(self) -> bool:
        """Whether no later pair can be chosen."""
        number = self.choice.number
        return number is not None and (number == 0 or (not self._waits and self._num_shown >= number))

    @property
    def _waits(self) -> bool:
        return self.choice.how in ("random", "longest")

    def offer(self, batch: pa.RecordBatch, prompt_cut: np.ndarray | None = None) -> None:
        """The next pairs, and which of their prompts were cut, where that is known."""
        first, self._seen = self._seen, self._seen + batch.num_rows
        if self.is_done or not batch.num_rows:
            return
        if self._waits:
            self._rank(batch, prompt_cut, first)
            return
        rows = range(batch.num_rows)
        if self.choice.how == "lines":
            lines = batch.column("source_line").to_numpy()
            rows = np.flatnonzero(np.isin(lines, list(self.choice.lines))).tolist()
            self._lines.update(lines[rows].tolist())
        for row in rows:
            if self.is_done:
                return
            self.show(_shown(batch, row, prompt_cut))
            self._num_shown += 1

    def _rank(self, batch: pa.RecordBatch, prompt_cut: np.ndarray | None, first: int) -> None:
        assert self.choice.number is not None
        for row, key in enumerate(self._keys(batch, first)):
            place = (int(key), -(first + row))  # of equals the earlier one
            if len(self._best) < self.choice.number:
                heapq.heappush(self._best, (*place, _shown(batch, row, prompt_cut)))
            elif place > self._best[0][:2]:
                heapq.heapreplace(self._best, (*place, _shown(batch, row, prompt_cut)))

    def _keys(self, batch: pa.RecordBatch, first: int) -> np.ndarray:
        if self.choice.how == "longest":
            return np.sum([np.diff(batch.column(name).offsets.to_numpy()) for name in _IDS], axis=0)
        return scrambled(np.arange(first, first + batch.num_rows, dtype=np.uint64), self.choice.seed)

    def finish(self) -> list[int]:
        """Show what is chosen now that all pairs are known, and return the lines that were asked for and have no pair."""
        order = sorted(self._best, key=lambda one: -one[1] if self.choice.how == "random" else (-one[0], -one[1]))
        for _, _, shown in order:
            self.show(shown)
        return [] if self.is_done else sorted(self.choice.lines - self._lines)


def _shown(batch: pa.RecordBatch, row: int, prompt_cut: np.ndarray | None) -> Shown:
    (pair,) = batch.slice(row, 1).to_pylist()
    cut = (pair["chosen_truncated"], pair["rejected_truncated"], prompt_cut is not None and bool(prompt_cut[row]))
    prompt, chosen, rejected = (pair[name] for name in _IDS)
    ids = PairIds(prompt, chosen, rejected, *cut)
    scores = [pair.get(f"ref_{side}_logps") for side in ("chosen", "rejected")]
    sums = None if None in scores else (float(np.sum(scores[0])), float(np.sum(scores[1])))
    return Shown(pair["source_file"] or pair["source"] or "", pair["source_line"], ids, sums)
