"""The table of their keys for configs/README.md, made from the tables that convert them."""

from __future__ import annotations

from nemotron_dpo.config.theirs.tables import AXOLOTL, COUNTS, FORMER, IDLE, LLAMA_FACTORY, OWN, REFUSED

Rows = list[tuple[str, ...]]


def counting() -> Rows:
    """(their key, ours) of every key that counts."""
    return [(f"`{key}`", f"`{ours}`") for key, (_, ours) in COUNTS.items()]


def idle() -> Rows:
    """(reason, keys) of those without counterpart."""
    reasons: dict[str, list[str]] = {}
    for key, reason in IDLE.items():
        reasons.setdefault(reason, []).append(f"`{key}`")
    return [(reason, " ".join(keys)) for reason, keys in reasons.items()]


def refused() -> Rows:
    """(key, values that are taken, what another would do)."""
    return [(f"`{key}`", ", ".join(map(_shown, row.taken)), row.why) for key, row in REFUSED.items()]


def names() -> Rows:
    """(another name, TRL's name or ours)."""
    found = [(f"`{theirs}`", f"`{name}`") for theirs, name in {**FORMER, **AXOLOTL, **LLAMA_FACTORY}.items()]
    return found + [(f"`{key}`", ours) for own in OWN.values() for key, ours in own.items()]


def _shown(value: object) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value) or "empty"
