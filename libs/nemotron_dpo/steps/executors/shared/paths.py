"""Say where on the cluster lies what a plan names by its place here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Places:
    """Pairs of folders, here and there; the first that fits counts."""

    pairs: tuple[tuple[str, str], ...]

    def of(self, word: str) -> str:
        """`word`, a path or NAME=PATH, as the cluster knows it."""
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
