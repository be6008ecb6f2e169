"""Look after a store of scores: what it holds, whether it is whole, and what of it is old."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nemotron_dpo import published
from nemotron_dpo.errors import UserError
from nemotron_dpo.scoring.shard import SUFFIX, DamagedShard, Shard, open_shard
from nemotron_dpo.scoring.store import FOLDER, Context, contexts

_CHECKED_AT_ONCE = 4096  # records, before the memory they lie in is given back
_TEMPORARY_SECONDS = 3600  # a file that is being written is not older than this


@dataclass(frozen=True)
class Stored:
    """What was scored in one context: pairs, each counted once, bytes on the disk, and when a file was added last."""

    context: Context
    num_pairs: int
    num_bytes: int
    last_added: float

    def line(self) -> str:
        """A line of a list for people."""
        added = time.strftime("%Y-%m-%d %H:%M", time.localtime(self.last_added)) if self.last_added else "never"
        facts = f"{self.num_pairs:10,} pairs {self.num_bytes / 1e6:10,.1f} MB  {added}  {self.context.precision:8}"
        return f"{facts}  {self.context.weights[:24]}  {self.context.kernels}"


def stored(root: Path) -> list[Stored]:
    """What the store holds, by context. Raises UserError where there is no store."""
    found = []
    for folder, context in _contexts(root).items():
        shards = [one for _, one in _shards(folder, context) if isinstance(one, Shard)]
        packed = {name for one in shards for name in one.replaces}
        states = [path.stat() for path in folder.glob(f"[!.]*{SUFFIX}")]
        # processes that scored at once may have the same pairs
        ids = [one.ids[:, 0] for one in shards if one.path.name not in packed]
        num_pairs = len(np.unique(np.concatenate([np.zeros(0, "<u8"), *ids])))
        found.append(Stored(context, num_pairs, sum(s.st_size for s in states), max([0.0, *(s.st_mtime for s in states)])))
    return found


def damage(root: Path) -> Iterator[tuple[Path, str] | int]:
    """Read every record: yields its number of records for each file that is whole, and (file, what is wrong) for another."""
    for folder, context in _contexts(root).items():
        for path, one in _shards(folder, context):
            if not isinstance(one, Shard):
                yield path, one
                continue
            wrong = 0
            for start in range(0, len(one), _CHECKED_AT_ONCE):
                wrong += int((~one.are_whole(np.arange(start, min(start + _CHECKED_AT_ONCE, len(one))))).sum())
                one.forget()
            yield (path, f"{wrong} of {len(one)} records are damaged") if wrong else len(one)


def remove_older(root: Path, seconds: float) -> tuple[int, int]:
    """Remove files that were added longer ago, and what killed runs left: (files, bytes) that were removed.

    A packed file is as old as the packing, which is never before its scores.
    """
    removed: list[int] = []
    for folder in _contexts(root):
        for path in sorted(folder.glob(f"*{SUFFIX}*")):
            limit = _TEMPORARY_SECONDS if path.name.startswith(".") else seconds  # earlier versions wrote such files
            with contextlib.suppress(FileNotFoundError):  # another process removed it
                state = path.stat()
                if not path.is_dir() and time.time() - state.st_mtime > limit:
                    path.unlink()
                    removed.append(state.st_size)
        removed += _swept(folder)
    return len(removed), sum(removed)


def _swept(folder: Path) -> list[int]:
    """Remove the places in which killed processes were writing: the sizes of the files that went."""
    there = {place: [path.stat().st_size for path in place.rglob(f"*{SUFFIX}")] for place in published.places(folder)}
    published.sweep(folder)
    return [size for place, sizes in there.items() if not place.exists() for size in sizes]


def _contexts(root: Path) -> dict[Path, Context]:
    if not (root / FOLDER).is_dir():
        raise UserError("is no store of scores", source=root, remedy="name one with --cache, or make one by scoring with it")
    return dict(contexts(root))


def _shards(folder: Path, context: Context) -> Iterator[tuple[Path, Shard | str]]:
    """Each file with what it holds, or with what is wrong with it."""
    for path in sorted(folder.glob(f"[!.]*{SUFFIX}")):
        try:
            yield path, open_shard(path, context.key)
        except FileNotFoundError:
            continue
        except (DamagedShard, OSError) as error:
            yield path, str(error)
