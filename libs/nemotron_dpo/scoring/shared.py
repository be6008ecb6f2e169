"""Runs that use one store at the same time divide what they have in common: each number is computed by one of them.

A run begins the pairs that no other has begun. At the end of a window it publishes what it has, and waits for the others' part
of it. Nobody waits for one who waits for him, since who waits has published all that he had begun.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nemotron_dpo.preferences.pairs import Pairs
from nemotron_dpo.scoring.claims import FOLDER, Claims
from nemotron_dpo.scoring.scores import WindowScores
from nemotron_dpo.scoring.store import Store
from nemotron_dpo.wording import counted

_PUBLISH_SECONDS = 5.0  # while others may wait for it
_LOOK_SECONDS = 0.2
_SILENT_SECONDS = 5.0  # of waiting, which is then said, once
_PATIENCE_SECONDS = 600.0  # in which others that live must have published something: they may hang


@dataclass
class Shared:
    """A store and what other runs are about to add to it."""

    store: Store
    claims: Claims
    _waits_since: float | None = None
    _said: bool = False
    _had_company: bool = False

    @classmethod
    def of(cls, store: Store) -> Shared:
        return cls(store, Claims(store.folder / FOLDER))

    def begin(self, pairs: Pairs, scores: WindowScores, rows: Sequence[int]) -> list[int]:
        """Those of `rows` that are to be computed here: nobody else has begun them, or published them by now."""
        if not self.store.takes:  # who waits for what never comes?
            return list(rows)
        mine = self.claims.take([pairs.pair_ids[row] for row in rows], all_of_them=self._is_tired())
        self._had_company |= self.claims.has_company  # what others had begun they have published when they are gone
        looks = self._had_company or self.store.may_have_more()  # or they came and went between two looks
        found = self._filled(pairs, scores, rows) if looks else np.zeros(len(rows), bool)
        begun = [row for row, is_mine, is_known in zip(rows, mine, found, strict=True) if is_mine and not is_known]
        self._waits_since = None if begun else self._waits_since
        return begun

    def wait(self, pairs: Pairs, scores: WindowScores, rows: Sequence[int]) -> np.ndarray:
        """Put what others have published of `rows` into `scores`, or rest where there is nothing; which, bool [len(rows)]."""
        self._publish()
        found = self._filled(pairs, scores, rows)
        if found.any():
            self._waits_since = None
            return found
        self._waits_since = self._waits_since or time.monotonic()
        if not self._said and time.monotonic() - self._waits_since > _SILENT_SECONDS:
            self._said = True
            self.store.say(f"waiting for {counted(len(rows), 'pair')} that another run is scoring")
        time.sleep(_LOOK_SECONDS)
        return found

    def publish_when_due(self) -> None:
        """Publish once a killed process would lose much, or others may wait for long."""
        if self.store.is_due(_PUBLISH_SECONDS if self.claims.has_company else math.inf):
            self._publish()

    def close(self) -> None:
        """Have begun nothing any more. What was computed must be published before."""
        self.claims.close()

    def _publish(self) -> None:
        self.store.publish()
        self.claims.drop()

    def _filled(self, pairs: Pairs, scores: WindowScores, rows: Sequence[int]) -> np.ndarray:
        """Fill in what is published of `rows`; which, bool [len(rows)]."""
        known = np.ones(len(pairs), bool)
        known[list(rows)] = False
        self.store.refresh()
        return self.store.fill(pairs, scores, known)[list(rows)]

    def _is_tired(self) -> bool:
        return self._waits_since is not None and time.monotonic() - self._waits_since > _PATIENCE_SECONDS
