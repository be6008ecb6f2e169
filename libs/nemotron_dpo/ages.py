"""Ages as people type them."""

from __future__ import annotations

import re

from nemotron_dpo.errors import UserError

_UNITS = {"m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}


def seconds_of(text: str) -> float:
    """An age such as 90d, 12h, 30m or 2w in seconds. Raises UserError (usage)."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([mhdw])", text)
    if found is None:
        raise UserError("is no age", source=f"--older-than {text}", remedy="give a number and m, h, d or w: 90d", usage=True)
    return float(found[1]) * _UNITS[found[2]]
