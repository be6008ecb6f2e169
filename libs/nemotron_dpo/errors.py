"""What a user can fix. Any other exception is a bug of ours and shows a traceback."""

from __future__ import annotations

from nemotron_dpo.terminal_text import one_line

DIVERGED = 3  # the exit status of a training run that dpo.on_divergence=stop ended: no error of this kind
_MOST_LETTERS = 4000  # of a line: names and values of strangers may be of any length


class UserError(Exception):
    """One line for a person: `source:line: message: remedy`. The CLI puts the program's name in front.

    `usage` marks a mistake in how the program was called (exit 2); without it the work failed (exit 1).
    """

    def __init__(
        self,
        message: str,
        *,
        source: object = None,
        line: int | None = None,
        field: str | None = None,
        remedy: str | None = None,
        usage: bool = False,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.source = None if source is None else str(source)
        self.line = line
        self.field = field
        self.remedy = remedy
        self.usage = usage

    def __str__(self) -> str:
        place = self.source or ""
        if self.line is not None:
            place += f":{self.line}"
        field = f'"{self.field}"' if self.field else None
        what = f"{field} {self.message}" if field else self.message
        line = one_line(": ".join(part for part in (place, what, self.remedy) if part))
        return line if len(line) <= _MOST_LETTERS else f"{line[: _MOST_LETTERS - 1000]} ... {line[-900:]}"
