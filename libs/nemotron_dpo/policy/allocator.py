"""What glibc's malloc does with the memory of tensors that were freed; other C libraries go their own way.

Arithmetic wants it kept for the next tensor of its size: new pages cost a tenth of a training step. A conversion, which
holds a policy once and no more, wants it given back.
"""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -2, -3, -4, -8  # from its malloc.h


def keep_freed_memory() -> None:
    """Give freed memory to the next tensor, and never back to the system."""
    _set({_MMAP_MAX: 0, _TRIM_THRESHOLD: -1, _TOP_PAD: 1 << 26, _ARENA_MAX: 1})


def return_freed_memory() -> None:
    """Give tensors of a megabyte and more back to the system when they are freed: malloc keeps what grew by pieces."""
    _set({_MMAP_THRESHOLD: 1 << 20})


def _set(options: dict[int, int]) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in options.items():
            mallopt(option, value)
