"""Where the time of a step goes, under NeMo-RL's names."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Timer:
    """Seconds by name; a name with "/" is a part of what stands before it, which is their sum."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def time(self, name: str) -> Iterator[None]:
        """Add the time that the block takes."""
        started = time.perf_counter()
        yield
        taken = time.perf_counter() - started
        whole, is_part, _ = name.partition("/")
        for one in (name, whole) if is_part else (name,):
            self.seconds[one] = self.seconds.get(one, 0.0) + taken
