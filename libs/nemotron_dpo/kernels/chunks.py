"""Which tokens of a packed row follow one another, for layers that go through them in order, and the chunks that these take.

A row is a forest of pieces: runs of tokens, each of which goes on where its parent ends, or begins anew. A prompt has two
children, its responses; so what a layer knows at the prompt's end is computed once, and both take it up. A piece is cut into
chunks, which form a forest too. Within a chunk a recurrence is products of matrices, from chunk to chunk it is a state.

Legend: S packed tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

ROOT = -1


@dataclass(frozen=True)
class Piece:
    """Tokens `start` to `stop` of the row, which follow the last token of piece number `parent`, or none (ROOT)."""

    start: int
    stop: int
    parent: int


@dataclass(frozen=True, eq=False)
class Chunks:
    """The chunks of a row in the order of its pieces, so that each comes after its parent; told from others by identity.

    size: the most tokens of a chunk. starts, counts: where each begins in S, and its tokens. parents: the chunk after whose
    last token it goes on, or ROOT.
    """

    size: int
    pieces: tuple[Piece, ...]
    starts: tuple[int, ...]
    counts: tuple[int, ...]
    parents: tuple[int, ...]

    @cached_property
    def num_tokens(self) -> int:
        """The fewest tokens of a row that has all pieces."""
        return max((piece.stop for piece in self.pieces), default=0)

    @cached_property
    def covers_all(self) -> bool:
        """Whether each of the first `num_tokens` tokens is in a piece."""
        return sum(self.counts) == self.num_tokens

    @cached_property
    def depths(self) -> tuple[int, ...]:
        """How many chunks come before each on its path."""
        depths: list[int] = []
        for parent in self.parents:
            depths.append(0 if parent == ROOT else depths[parent] + 1)
        return tuple(depths)

    @cached_property
    def children(self) -> tuple[tuple[int, ...], ...]:
        """The chunks that go on from each."""
        children: list[list[int]] = [[] for _ in self.parents]
        for chunk, parent in enumerate(self.parents):
            if parent != ROOT:
                children[parent].append(chunk)
        return tuple(map(tuple, children))


def plan(pieces: Sequence[tuple[int, int, int]], chunk: int = 64) -> Chunks:
    """The chunks, of at most `chunk` tokens, of pieces (start, stop, parent); parents come before their children.

    Raises ValueError where pieces overlap, or a parent is none of the pieces before.
    """
    if chunk < 1:
        raise ValueError(f"a chunk of {chunk} tokens")
    known = tuple(Piece(*piece) for piece in pieces)
    _check(known)
    starts: list[int] = []
    counts: list[int] = []
    parents: list[int] = []
    last: list[int] = []  # chunk of each piece; of an empty one that of its parent
    for piece in known:
        before = ROOT if piece.parent == ROOT else last[piece.parent]
        for start in range(piece.start, piece.stop, chunk):
            parents.append(before)
            before = len(starts)
            starts.append(start)
            counts.append(min(chunk, piece.stop - start))
        last.append(before)
    return Chunks(chunk, known, tuple(starts), tuple(counts), tuple(parents))


def _check(pieces: tuple[Piece, ...]) -> None:
    for number, piece in enumerate(pieces):
        if not ROOT <= piece.parent < number:
            raise ValueError(f"piece {number} has parent {piece.parent}, which is none of the pieces before it")
        if not 0 <= piece.start <= piece.stop:
            raise ValueError(f"piece {number} goes from {piece.start} to {piece.stop}")
    end = 0
    for piece in sorted((piece for piece in pieces if piece.start < piece.stop), key=lambda piece: piece.start):
        if piece.start < end:
            raise ValueError(f"two pieces have token {piece.start}")
        end = piece.stop
