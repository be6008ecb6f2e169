"""Parse HH-RLHF transcripts: strings that consist of "\\n\\nHuman: ..." and "\\n\\nAssistant: ..." turns."""

from __future__ import annotations

import re
from typing import Any

from nemotron_dpo.preferences.problems import RowProblem

_TURN = re.compile(r"\n\n(Human|Assistant):(?: |$|(?=\n))")
_ROLES = {"Human": "user", "Assistant": "assistant"}


def is_transcript(text: str) -> bool:
    """True where `text` begins with the header of a human's or an assistant's turn."""
    return text.startswith(("\n\nHuman:", "\n\nAssistant:"))


def parse_transcript(text: str, field: str) -> list[dict[str, Any]]:
    """The turns of `text` as {role, content} messages; contents are kept as they are, without the one space after the colon.

    Raises RowProblem, naming the column `field`, where `text` does not begin with the header of a turn.
    """
    parts = _TURN.split(text)
    if len(parts) < 3 or parts[0]:
        raise RowProblem("wrong type", 'is no transcript: it does not begin with "\\n\\nHuman:"', field=field)
    return [{"role": _ROLES[name], "content": content} for name, content in zip(parts[1::2], parts[2::2], strict=True)]


def parse_prompt(text: str, field: str) -> list[dict[str, Any]]:
    """The turns of a transcript, without the empty assistant turn at its end, whose content the response will be.

    Raises RowProblem where `text` does not begin with the header of a turn.
    """
    turns = parse_transcript(text, field)
    return turns[:-1] if turns[-1]["role"] == "assistant" and not turns[-1]["content"].strip() and len(turns) > 1 else turns
