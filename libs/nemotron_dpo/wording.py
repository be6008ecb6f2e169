"""Words of messages that follow a number."""

from __future__ import annotations


def counted(number: int, noun: str, form: str = "") -> str:
    """`1 pair`, `2 pairs`; with `form` "," also `1,200 pairs`."""
    return f"{number:{form}} {noun}{'' if number == 1 else 's'}"
