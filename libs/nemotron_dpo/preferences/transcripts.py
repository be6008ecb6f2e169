"""HH-RLHF transcripts: one string of "\\n\\nHuman: ..." and "\\n\\nAssistant: ..." turns."""

from __future__ import annotations

import re
from typing import Any

from nemotron_dpo.preferences.problems import RowProblem

_TURN = re.compile(r"\n\n(Human|Assistant):(?: |$|(?=\n))")
_ROLES = {"Human": "user", "Assistant": "assistant"}


def is_transcript(text: str) -> bool:
    """True where `text` opens with a turn of a human or an assistant."""
    return text.startswith(("\n\nHuman:", "\n\nAssistant:"))


def parse_transcript(text: str, field: str) -> list[dict[str, Any]]:
    """The turns of `text`; their texts are kept as they are, without the one space after the colon.

    Raises RowProblem where the text does not open with a turn.
    """
    parts = _TURN.split(text)
    if len(parts) < 3 or parts[0]:
        raise RowProblem("wrong type", 'is no transcript: it does not begin with "\\n\\nHuman:"', field=field)
    return [{"role": _ROLES[name], "content": content} for name, content in zip(parts[1::2], parts[2::2], strict=True)]


def parse_prompt(text: str, field: str) -> list[dict[str, Any]]:
    """The turns of a transcript that ends with the header of the turn to come, which is left out."""
    turns = parse_transcript(text, field)
    return turns[:-1] if turns[-1]["role"] == "assistant" and not turns[-1]["content"].strip() and len(turns) > 1 else turns
