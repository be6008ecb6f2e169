"""Text from outside, made visible: what would move the cursor, hide or turn round the words around it is spelled out instead.

Data, names of files and metrics end in pages, terminals and Markdown. None of them may act there.
"""

from __future__ import annotations

import re

# Right-to-left overrides and their like, what has no width, line and paragraph separators, and byte order marks.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u115f\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]|[\U000e0000-\U000e007f]"
)


def visible(text: object, *, lines: bool = False) -> str:
    """`text` with each such character as `<U+202E>`; a tab or an end of line is a space, unless `lines` are kept."""
    kept = str(text).replace("\r\n", "\n")
    kept = _HIDDEN.sub(lambda found: f"<U+{ord(found[0]):04X}>", kept)
    return kept if lines else re.sub(r"[\t\n]+", " ", kept)


def shortened(text: str, limit: int) -> str:
    """`text` cut to `limit` characters, and how many more there are; its beginning is kept."""
    return text if len(text) <= limit else f"{text[:limit]} ... [{len(text) - limit:,} more characters]"


def number(value: float | None, digits: int = 4) -> str:
    """A figure as tables have it; a dash where there is none."""
    if value is None or value != value:
        return "-"
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 100_000 or size < 10**-digits:
        return f"{value:.3g}"
    return f"{value:,.0f}" if size >= 1000 else f"{value:.{digits if size < 10 else max(digits - 2, 1)}f}"


def percent(share: float) -> str:
    """A share; 100 % and 0 % mean all and none."""
    shown = f"{100 * share:.0f}"
    if shown in ("100", "0") and share not in (0.0, 1.0):
        shown = f"{100 * share:.1f}" if f"{100 * share:.1f}" not in ("100.0", "0.0") else (">99.9" if share > 0.5 else "<0.1")
    return f"{shown} %"
