"""Tell by the names of the columns whether prompt, chosen and rejected were mixed up, before any row is read."""

from __future__ import annotations

import re
from dataclasses import dataclass

from nemotron_dpo.errors import UserError

_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")
_SAID = {
    "rejected": {"rejected", "reject", "worse", "worst", "bad", "loser", "losing", "lost", "negative", "neg", "dispreferred"},
    "chosen": {"chosen", "choose", "accepted", "better", "best", "good", "winner", "winning", "won", "positive", "preferred"},
    "prompt": {"prompt", "question", "instruction", "query", "problem", "task"},
}
_TURNED = {"not", "non", "no", "un", "less", "least", "never"}


@dataclass(frozen=True)
class Columns:
    """The names of the columns that are read as prompt, chosen and rejected response."""

    prompt: str = "prompt"
    chosen: str = "chosen"
    rejected: str = "rejected"


def doubt(columns: Columns) -> str | None:
    """What looks mixed up, for a person: a column whose name says that it is another of the three. None where nothing does.

    Raises UserError (usage) where one column is named for two of them.
    """
    named = {"prompt": columns.prompt, "chosen": columns.chosen, "rejected": columns.rejected}
    for one, other in (("prompt", "chosen"), ("prompt", "rejected"), ("chosen", "rejected")):
        if named[one] == named[other]:
            message = f"{named[one]!r} is named as {one} and as {other}"
            raise UserError(message, remedy=f"name two columns with --{one}-key and --{other}-key", usage=True)
    wrong = [(role, name, said) for role, name in named.items() if (said := _said(name)) not in (None, role)]
    if not wrong:
        return None
    listed = " and ".join(
        f"{name!r} as the {role} one" if role != "prompt" else f"{name!r} as the prompt" for role, name, _ in wrong
    )
    return f"reads the column {listed}: are they swapped?"


def _said(name: str) -> str | None:
    """Which of the three the name of a column says that it is; None where it says none, or several."""
    words = {word.lower() for word in _WORD.findall(name)}
    found = [role for role, known in _SAID.items() if words & known]
    return found[0] if len(found) == 1 and not words & _TURNED else None
