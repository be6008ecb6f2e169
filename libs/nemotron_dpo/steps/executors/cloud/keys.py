"""The keys that profiles of Lepton and of DGX Cloud have in common; NeMo-Run puts some values unquoted into a shell."""

from __future__ import annotations

import re
from typing import Any

from nemotron_dpo.steps.profiles.keys import COMMON, ELSEWHERE, Key, KeyTable
from nemotron_dpo.steps.profiles.kinds import NUMBER, Kind, UnfitValue, path


def plain_path(value: Any) -> str:
    """A path that a shell reads as it is."""
    plain = path(value)
    if not re.fullmatch(r"(/(?!\.\.?(/|$))[A-Za-z0-9_.+-]+)+", plain):
        raise UnfitValue(f"is {value!r} where a path of letters, digits and _ . + - / is due")
    return plain


PLAIN_PATH = Kind("absolute path of plain letters", plain_path)

KEYS: KeyTable = {
    "nprocs_per_node": Key(NUMBER, "processes a node, as NeMo-Run names them", sets="gpus_per_node"),
    **COMMON,
    **ELSEWHERE,
}
