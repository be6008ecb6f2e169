"""Remarks about rows that were written: their rewards, columns that were not read, changes the chat template made to texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from nemotron_dpo.preferences.audit.facts import INVERTED, REWARDED
from nemotron_dpo.preferences.beside import Beside
from nemotron_dpo.wording import counted

Notes = Counter[tuple[str, str]]  # (kind, name of the column or change) -> number of rows
_READ, _UNREAD, _CHANGED = "columns_read_besides", "columns_not_read", "changed_by_template"
_OF_JSON_TEXT = "columns_of_json_text"
_REWARDS, _INVERTED, _NO_REWARDS = "pairs_with_rewards", "pairs_with_inverted_rewards", "pairs_without_rewards"
_KINDS = (_READ, _OF_JSON_TEXT, _UNREAD, _CHANGED, _REWARDS, _INVERTED, _NO_REWARDS)
_MOST_NAMES = 12


def note_columns(notes: Notes, beside: Beside) -> None:
    """Count the columns of one row that `beside` reports."""
    for name in beside.unread:
        notes[_UNREAD, name] += 1
    for name in beside.read:
        notes[_READ, name] += 1
    for name in beside.of_json_text:
        notes[_OF_JSON_TEXT, name] += 1


def note_changes(notes: Notes, changed: frozenset[str]) -> None:
    """Count what the chat template did to the texts of one row."""
    for what in changed:
        notes[_CHANGED, what] += 1


def reward_notes(facts: np.ndarray, columns: Sequence[str]) -> Notes:
    """How many pairs have rewards, have ones that contradict the choice, or have none, by the columns that these are of."""
    notes: Notes = Counter()
    for number, name in enumerate(columns, 1):
        odd = facts["odd"][facts["rewards_of"] == number]
        counts = ((_REWARDS, odd & REWARDED), (_INVERTED, odd & INVERTED), (_NO_REWARDS, (odd & REWARDED) == 0))
        notes.update({(kind, name): count for kind, these in counts if (count := int(np.count_nonzero(these)))})
    return notes


def spoken(notes: Notes) -> str:
    """The notes as text for the closing line, each after a semicolon; an empty text where there are no notes."""
    said = []
    for kind, words in ((_READ, "part of the prompt"), (_OF_JSON_TEXT, "of messages as JSON text"), (_UNREAD, "not read")):
        if names := _of_kind(notes, kind):
            said.append(f"columns {words}: {_listed(list(names))}")
    said += _spoken_rewards(notes)
    said += [f"{what} in {counted(count, 'row')}" for what, count in _of_kind(notes, _CHANGED).items()]
    return "".join(f"; {clause}" for clause in said)


def _spoken_rewards(notes: Notes) -> list[str]:
    said = []
    inverted, without = _of_kind(notes, _INVERTED), _of_kind(notes, _NO_REWARDS)
    for columns, count in _of_kind(notes, _REWARDS).items():
        higher = f", {inverted[columns]} of them higher for the rejected response" if columns in inverted else ""
        said.append(f"rewards of {counted(count, 'pair')} ({columns}){higher}")
    return said + [
        f"no rewards of {counted(count, 'pair')}, as {columns} are no numbers there" for columns, count in without.items()
    ]


def reported(notes: Notes) -> dict[str, Any]:
    """The notes for --stats: for each kind, the number of rows by name."""
    return {kind: _of_kind(notes, kind) for kind in _KINDS}


def _of_kind(notes: Notes, kind: str) -> dict[str, int]:
    return {what: count for (of, what), count in sorted(notes.items()) if of == kind}


def _listed(names: list[str]) -> str:
    rest = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {rest} more" if rest > 0 else "")
