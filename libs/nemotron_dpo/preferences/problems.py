"""What can be wrong with one row: an error (the row is broken) or a drop (the row is fine and carries no signal)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from nemotron_dpo.errors import UserError


class RowProblem(Exception):
    """One row that yields no pair; `drop` tells a row that is left out on purpose from a broken one.

    `reason` is the short name under which such rows are counted. `message` explains the problem to a person. `field` is the
    column concerned, where there is one.
    """

    def __init__(self, reason: str, message: str, *, field: str | None = None, drop: bool = False) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.field = field
        self.drop = drop


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Stands in a row for a value that cannot be read; it becomes a RowProblem only where that value is needed."""

    reason: str
    message: str


NOT_READ = Unreadable("column not read", "is a column that is not read")  # it shows that the column has a value in this row


def drop(reason: str, message: str) -> RowProblem:
    """The problem of a row that is not broken, but is left out on purpose and counted as dropped."""
    return RowProblem(reason, message, drop=True)


def missing(field: str, row: Collection[str] = (), role: str | None = None) -> RowProblem:
    """The problem of a row without the column `field`; the message lists the first columns that `row` has.

    `role` is "prompt", "chosen" or "rejected", also "chosen-reward" and so on, where `field` is that column of the pair and a
    user may name another one. The message then names the option for it.
    """
    there = f"; the row has {', '.join(list(row)[:8])}" if row else ""
    option = f"--{role}-key names another column (data.train.{role.replace('-', '_')}_key in a config)" if role else ""
    remedy = f": {option}" if row and option else ""
    return RowProblem("missing field", f"is missing{there}{remedy}", field=field)


def wrong_type(field: str, due: str, value: object) -> RowProblem:
    """The problem of a row whose `field` holds `value` instead of `due`, such as "a string"."""
    return RowProblem("wrong type", f"is {describe(value)} where {due} is due", field=field)


def describe(value: object) -> str:
    """The JSON name of a value's type with its article, such as "a number"."""
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
    """One row that was not written, as it stands in the rejects file; `row` is the row itself where it is kept."""

    source: str
    line: int
    reason: str
    message: str
    field: str | None
    drop: bool
    pair_id: str | None
    row_sha256: str
    row: bytes | None = None

    def as_error(self) -> UserError:
        """What a person is told of it."""
        return UserError(self.message, source=self.source, line=self.line, field=self.field)
