"""Translate the paths of a plan, which are this machine's, into those of the place where the job runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class PathMap:
    """Pairs of folders (here, there). The first pair whose folder holds a path translates it."""

    pairs: tuple[tuple[str, str], ...]

    def of(self, word: str) -> str:
        """The path, or NAME=PATH, `word` as it is there."""
        moved = self._moved(word)
        if moved is None and "=" in word:
            name, _, path = word.partition("=")
            moved = None if (there := self._moved(path)) is None else f"{name}={there}"
        return word if moved is None else moved

    def command(self, argv: Sequence[str]) -> list[str]:
        """The command line `argv` there; its program is found by its name."""
        program = argv[0].rpartition("/")[2]
        return ["python" if program.startswith("python") else program, *map(self.of, argv[1:])]

    def text(self, text: str) -> str:
        """`text` with every folder in it replaced."""
        for here, there in self.pairs:
            text = text.replace(here, there)
        return text

    def _moved(self, path: str) -> str | None:
        for here, there in self.pairs:
            if path == here or path.startswith(f"{here}/"):
                return there + path[len(here) :]
        return None
