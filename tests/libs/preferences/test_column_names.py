"""Columns whose names say that prompt, chosen and rejected were mixed up."""

from __future__ import annotations

import pytest

from nemotron_dpo.errors import UserError
from nemotron_dpo.preferences.column_names import Columns, doubt

SWAPPED = {
    ("prompt", "rejected", "chosen"): "'rejected' as the chosen one and 'chosen' as the rejected one",
    (
        "question",
        "response_worse",
        "responseBetter",
    ): "'response_worse' as the chosen one and 'responseBetter' as the rejected one",
    ("chosen", "answer", "rejected"): "'chosen' as the prompt",
    ("input", "bad", "text"): "'bad' as the chosen one",
    ("rejected_text", "prompt_text", "b"): "'rejected_text' as the prompt and 'prompt_text' as the chosen one",
}
SOUND = [
    ("prompt", "chosen", "rejected"),
    ("question", "chosen", "rejected"),
    ("instruction", "winner", "loser"),
    ("x", "response_0", "response_1"),
    ("prompt", "preferred", "non_preferred"),  # turned by a word before it: no word of it counts
    ("goodness", "unpreferred", "badge"),  # parts of words are none
    ("prompt", "chosen_over_rejected", "b"),  # says both
]


def test_what_looks_swapped() -> None:
    for names, expected in SWAPPED.items():
        assert doubt(Columns(*names)) == f"reads the column {expected}: are they swapped?"
    for names in SOUND:
        assert doubt(Columns(*names)) is None, names


def test_one_column_for_two_is_refused() -> None:
    for names, roles in ((("a", "a", "b"), ("prompt", "chosen")), (("b", "a", "a"), ("chosen", "rejected"))):
        with pytest.raises(UserError) as caught:
            doubt(Columns(*names))
        expected = f"'a' is named as {roles[0]} and as {roles[1]}: name two columns with --{roles[0]}-key and --{roles[1]}-key"
        assert (str(caught.value), caught.value.usage) == (expected, True)
