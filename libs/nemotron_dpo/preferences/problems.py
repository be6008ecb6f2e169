"""What can be wrong with one row: an error (the row is broken) or a drop (the row is fine and carries no signal)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass


class RowProblem(Exception):
    """One row that yields no pair. `reason` is counted, `message` is for a person, `drop` says that it is no mistake."""

    def __init__(self, reason: str, message: str, *, field: str | None = None, drop: bool = False) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.field = field
        self.drop = drop


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Stands for a value of a row that cannot be read: a problem for who asks for it, and for nobody else."""

    reason: str
    message: str


NOT_READ = Unreadable("column not read", "is a column that is not read")  # that it is there may be said


def drop(reason: str, message: str) -> RowProblem:
    """A row that is left out on purpose and counted."""
    return RowProblem(reason, message, drop=True)


def missing(field: str, row: Collection[str] = (), role: str | None = None) -> RowProblem:
    """A row without `field`, which has the columns `row`; `role` is what `field` is of a pair, where a user may name it."""
    there = f"; the row has {', '.join(list(row)[:8])}" if row else ""
    remedy = f": --{role}-key names another column (data.train.{role}_key in a config)" if row and role else ""
    return RowProblem("missing field", f"is missing{there}{remedy}", field=field)


def wrong_type(field: str, due: str, value: object) -> RowProblem:
    """A row whose `field` holds something else than `due`."""
    return RowProblem("wrong type", f"is {describe(value)} where {due} is due", field=field)


def describe(value: object) -> str:
    """The JSON name of a value's type, with its article."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "a string"
    return "a list" if isinstance(value, list) else "an object" if isinstance(value, dict) else f"a {type(value).__name__}"


@dataclass(frozen=True, slots=True)
class Reject:
    """One row that was not written, as it stands in the rejects file."""

    source: str
    line: int
    reason: str
    message: str
    field: str | None
    drop: bool
    pair_id: str | None
    row_sha256: str
