"""Take a share of the pairs out for validation, by their prompts: no prompt is on both sides.

Prompts are drawn in an order that the seed and their texts alone decide. So the same prompts are held out whatever the order of
the rows, and most of them still where rows are added. A prompt with more pairs than are still wanted is passed over.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from nemotron_dpo.errors import UserError
from nemotron_dpo.wording import counted

_SPEC = re.compile(r"(?P<name>[A-Za-z][\w.-]*)=(?P<share>[0-9]*\.?[0-9]+(?:[eE]-?[0-9]+)?)", re.ASCII)


@dataclass(frozen=True)
class HeldOut:
    """What --split NAME=SHARE, --seed and --split-output say; `share` is as it was written."""

    name: str
    share: str
    seed: int
    output: str


def parse_splits(splits: Sequence[str], seed: int, output: str | None) -> tuple[str | None, HeldOut | None]:
    """What the values of --split are: a split of the data, and NAME=SHARE, whose pairs go to `output`.

    Raises UserError (usage) where there are several of a kind, no output, or a share that is not between 0 and 1.
    """
    shares, of_data = ([split for split in splits if ("=" in split) == is_share] for is_share in (True, False))
    if len(shares) > 1 or len(of_data) > 1:
        raise UserError("--split names one split of the data, and one NAME=SHARE", usage=True)
    if bool(shares) != (output is not None):
        raise UserError("--split NAME=SHARE and --split-output FILE need each other", usage=True)
    held_out = _held_out(shares[0], seed, output) if shares and output is not None else None
    return of_data[0] if of_data else None, held_out


def _held_out(text: str, seed: int, output: str) -> HeldOut:
    found = _SPEC.fullmatch(text)
    if found is None or not 0 < Fraction(found["share"]) < 1:
        message = f"--split {text} holds out no share of the pairs"
        raise UserError(message, remedy="write one between 0 and 1, as in validation=0.05", usage=True)
    return HeldOut(found["name"], found["share"], seed, output)


def draw(prompts: np.ndarray, held_out: HeldOut) -> np.ndarray:
    """Which pairs are held out, bool [P], by the digests (uint64) of their prompts.

    They are as many as the share says, rounded, or some fewer where prompts have many pairs. Raises UserError where that is
    none of them, or all.
    """
    wanted = int(Fraction(held_out.share) * len(prompts) + Fraction(1, 2))
    distinct, inverse, counts = np.unique(prompts, return_inverse=True, return_counts=True)
    taken, left = np.zeros(len(distinct), bool), wanted
    for place in np.argsort(scrambled(distinct, held_out.seed), kind="stable"):
        if not left:
            break
        if counts[place] <= left:
            taken[place] = True
            left -= counts[place]
    mask = taken[inverse]
    if not mask.any() or mask.all():
        part = "none" if not mask.any() else "all"
        what = f"{held_out.share} of {counted(len(prompts), 'pair')} of {counted(len(distinct), 'prompt')} is {part} of them"
        raise UserError(f"--split {held_out.name}={held_out.share}: {what}", remedy="choose another share")
    return mask


def scrambled(numbers: np.ndarray, seed: int) -> np.ndarray:
    """One uint64 for each of `numbers` (uint64), as good as random for each seed: the finalizer of splitmix64."""
    key = int.from_bytes(hashlib.sha256(str(seed).encode()).digest()[:8], "little")
    mixed = numbers ^ np.uint64(key)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
