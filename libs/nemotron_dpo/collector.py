"""How often Python looks for garbage: rarely while a program imports, as ever once it computes.

What a program imports stays: hundreds of thousands of objects, which the collector goes over again and again while more come.
It takes a quarter of the time in which torch and megatron-core are imported. Tensors in cycles are another matter: they are
freed only when the collector finds them, so arithmetic has it run as often as Python does by itself.
"""

from __future__ import annotations

import gc

_USUAL = gc.get_threshold()
_RARE = (50_000, 20, 100)


def collect_rarely() -> None:
    """Look at new objects by tens of thousands."""
    gc.set_threshold(*_RARE)


def collect_as_usual() -> None:
    """Look at new objects as often as Python does by itself, and no more at those that exist by now."""
    gc.freeze()
    gc.set_threshold(*_USUAL)
