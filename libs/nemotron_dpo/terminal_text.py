"""Text of strangers on a terminal: what would move the cursor, hide or forge a line is shown by its number instead."""

from __future__ import annotations

import re

# C0 and C1 controls but tab and newline; what turns the direction of text; separators that some terminals take for a new line
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def escaped(text: str) -> str:
    """`text` with every control character but tab and newline written as Python writes it."""
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def escaped_json(text: str) -> str:
    """JSON that says the same as the JSON `text`, without a control character but the newlines between its values."""
    return _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def one_line(text: str) -> str:
    """As `escaped`, newlines and tabs too."""
    return escaped(text).replace("\n", "\\n").replace("\t", "\\t")
