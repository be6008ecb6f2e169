"""Find the odd pairs of a data set: repeated, contradictory, empty, told apart by white space or by their own rewards alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nemotron_dpo.errors import UserError
from nemotron_dpo.preferences.audit.facts import (
    CUT_CHOSEN,
    CUT_PROMPT,
    CUT_REJECTED,
    EMPTY,
    INVERTED,
    SPACE_ALONE,
    TIED,
)

# What --drop can leave out: its name, and what is said of such a pair. One that is odd in several ways goes for the first.
OF_ONE_PAIR = {
    "empty": (EMPTY, "a response is empty"),
    "whitespace": (SPACE_ALONE, "the responses differ in white space alone"),
    "inverted": (INVERTED, "the rejected response has the higher reward"),
    "tied": (TIED, "both responses have the same reward"),
}
OF_SEVERAL_PAIRS = {
    "both-ways": "the same two responses are there the other way round",
    "duplicates": "the same pair came before",
}
NAMES = (*OF_ONE_PAIR, *OF_SEVERAL_PAIRS)
_CUT = {"cut-prompt": CUT_PROMPT, "cut-chosen": CUT_CHOSEN, "cut-rejected": CUT_REJECTED}
_ODD, _ODDER = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)


def parse_names(text: str) -> frozenset[str]:
    """The names in `text`, which is a list with commas. Raises UserError (usage) where one is not of NAMES."""
    names = [name.strip() for name in text.split(",")] if text else []
    for unknown in (name for name in names if name not in NAMES):
        raise UserError(f"--drop {unknown or '(empty)'} names nothing", remedy=f"there are {', '.join(NAMES)}", usage=True)
    return frozenset(names)


@dataclass(frozen=True)
class OddPairs:
    """The pairs `rows` (ascending) that are odd in one way; `others` are the pairs that they repeat or contradict."""

    rows: np.ndarray
    others: np.ndarray | None = None


def findings(facts: np.ndarray) -> dict[str, OddPairs]:
    """What is odd, by the names of --drop, and which pairs were cut."""
    odd = {name: OddPairs(np.flatnonzero(facts["odd"] & flag)) for name, (flag, _) in OF_ONE_PAIR.items()}
    cut = {name: OddPairs(np.flatnonzero(facts["cut"] & flag)) for name, flag in _CUT.items()}
    return {**odd, **repeats(facts), **cut}


def repeats(facts: np.ndarray) -> dict[str, OddPairs]:
    """Pairs that came before, and pairs whose responses are also there the other way round; digests are compared.

    Of a pair that is there both ways round, every occurrence either way is found, with the first one the other way.
    """
    prompt, chosen, rejected = (facts[f"{side}_digest"] for side in ("prompt", "chosen", "rejected"))
    distinct, first, inverse = np.unique(_mixed(prompt, chosen, rejected), return_index=True, return_inverse=True)
    firsts = first[inverse]
    again = np.flatnonzero(firsts != np.arange(len(facts)))
    turned = _mixed(prompt, rejected, chosen)
    place = np.minimum(np.searchsorted(distinct, turned), max(len(distinct) - 1, 0))
    both = np.flatnonzero(distinct[place] == turned) if len(facts) else np.empty(0, np.int64)
    return {"both-ways": OddPairs(both, first[place[both]]), "duplicates": OddPairs(again, firsts[again])}


def dropped(facts: np.ndarray, names: frozenset[str]) -> dict[str, OddPairs]:
    """Of the repeats in `names` what is to be left out: contradictions first, then what is repeated among the rest."""
    left = np.arange(len(facts))
    out = {}
    for name in OF_SEVERAL_PAIRS:
        if name not in names:
            continue
        found = repeats(facts[left])[name]
        assert found.others is not None
        out[name] = OddPairs(left[found.rows], left[found.others])
        left = np.delete(left, found.rows)
    return out


def _mixed(prompt: np.ndarray, chosen: np.ndarray, rejected: np.ndarray) -> np.ndarray:
    """A digest of three digests: their sum modulo 2**64 after odd factors is as good as one."""
    return prompt + _ODD * chosen + _ODDER * rejected
