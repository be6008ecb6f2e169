"""The counterpart of one key of TRL, Axolotl or LLaMA-Factory, for the error about an unknown key."""

from __future__ import annotations

from nemotron_dpo.config.theirs.tables import COUNTS, NAMES, REFUSED, TITLES


def counterpart(key: str) -> str | None:
    """What the last part of the dotted `key` is called here, in words; None for a key that none of them has."""
    leaf = key.rpartition(".")[2]
    for program, names in NAMES.items():
        name = names.get(leaf, leaf)
        if name in COUNTS:
            return f"{TITLES[program]}'s {leaf} is {COUNTS[name][1]} here"
        if name in REFUSED:
            refused = REFUSED[name]
            return (
                f"{TITLES[program]}'s {leaf} {refused.why}, and is not built{f': {refused.remedy}' if refused.remedy else ''}"
            )
    return None
