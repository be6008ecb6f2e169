#!/usr/bin/env python3
"""What share of reading checksums are: of records of a store of scores, and of the stream whose pairs are looked up in it.

  python tests/benchmarks/bench_checks.py pairs.arrow [--pairs N] [--rounds N]

Reading is said in three ways, from the strictest. Of a record it is finding it by its pair_id, and bringing its log-probs from
the mapped file to where the window has them. Of a pair it is all that a run with known scores does before it writes: the
stream's batches with their checks of structure, the digests of ids, and the store. A run writes, too. The last is the wall time
of reading once, from a disk whose files are not in memory.

The calls that make checksums are timed by themselves, on what reading has asked them for. Pieces are read many times, in turns,
and the least CPU time of each counts, since what else runs on a machine takes its caches away.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import numpy as np
import pyarrow as pa
from bench_scores import other_ids

from nemotron_dpo.preferences.checks import check_ids
from nemotron_dpo.preferences.pairs import Pairs
from nemotron_dpo.scoring import record_checks, windows
from nemotron_dpo.scoring.known import Known
from nemotron_dpo.scoring.record_checks import AreWhole
from nemotron_dpo.scoring.scores import WindowScores
from nemotron_dpo.scoring.shard import SUFFIX, Shard
from nemotron_dpo.scoring.store import Context, Store
from nemotron_dpo.scoring.stream import Scorer, score_stream
from nemotron_dpo.streams import Reader, StreamInfo, Writer, checksum, open_reader, open_writer

_CONTEXT = Context("bench", "float32", "none")
_PIECE = 65_536  # tokens, as of a window of one process


def main() -> None:
    """Print a line for the records, for the stream, and for each way of reading that both are a part of."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("--pairs", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=25)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        many = _known_pairs(root, options.source, options.pairs)
        with open_reader(many, "tokenized_pairs") as reader:
            batches = list(reader)
        pieces = list(windows.windows(batches, _PIECE))
        num_pairs = sum(len(piece) for piece in pieces)
        checks = records(root, pieces, options.rounds) + stream(many, batches, pieces, root, options.rounds)
        for what, seconds in (("a run that writes them", run(root, many)), ("reading from the disk", from_disk(root, many))):
            print(f"both: {checks / seconds:.1%} of {what}, {seconds / num_pairs * 1e6:.2f} us a pair")


def records(root: Path, pieces: list[pa.RecordBatch], rounds: int) -> float:
    """The share of reading records that is their checksums', in one call and by a call each; the seconds of the first."""
    asked: list[tuple[Shard, np.ndarray]] = []
    heard = _opened(root, lambda one: _heard(one, asked))
    for piece in pieces:
        _filled(heard, piece)
    store = _opened(root)
    reading = sum(_least([lambda piece=piece: _filled(store, piece) for piece in pieces], rounds))
    checks = sum(_least([lambda one=one, rows=rows: one.are_whole(rows) for one, rows in asked], rounds))
    by_calls = sum(_least([lambda one=one, rows=rows: _by_calls(one)(rows) for one, rows in asked], rounds))
    num_pairs = sum(len(piece) for piece in pieces)
    each, less = checks / num_pairs * 1e9, reading - checks
    share = f"{checks / reading:.1%} of {reading / num_pairs * 1e6:.2f} us"
    print(f"checksums of records: {share}, {each:.0f} ns each; by a call each {by_calls / (less + by_calls):.1%}")
    return checks


def stream(many: Path, batches: list[pa.RecordBatch], pieces: list[pa.RecordBatch], root: Path, rounds: int) -> float:
    """The share of reading pairs and their scores that is the stream's checksums'; the seconds of these."""
    store = _opened(root)
    checks = sum(_least([lambda batch=batch: checksum.extended(0, batch) for batch in batches], rounds))
    reading = sum(_least([lambda: _read(many), lambda: [_looked_up(store, piece) for piece in pieces]], rounds))
    print(f"checksums of the stream: {checks / reading:.1%} of {reading / sum(map(len, pieces)) * 1e6:.2f} us a pair")
    return checks


def run(root: Path, many: Path) -> float:
    """CPU seconds of what ref-logprobs does where all scores are known, its start left out."""

    def once() -> float:
        known = Known.of(_opened(root), ())
        scorer = Scorer("none", _no_policy, lambda architecture: 0, 4096, known)
        started = time.process_time()
        with open_reader(many, "tokenized_pairs") as reader, _scored(root, reader) as writer:
            score_stream(reader, scorer, writer.write, lambda num_pairs: None)
        return time.process_time() - started

    return min(once() for _ in range(3))


def from_disk(root: Path, many: Path) -> float:
    """Wall seconds of reading pairs and scores, none of which are in memory."""

    def once() -> float:
        os.sync()
        for path in (many, *root.rglob(f"*{SUFFIX}")):
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        started = time.perf_counter()
        store = _opened(root)
        with open_reader(many, "tokenized_pairs") as reader:
            for piece in windows.windows(reader, _PIECE):
                _looked_up(store, piece)
        return time.perf_counter() - started

    return min(once() for _ in range(3))


def _read(many: Path) -> None:
    with open_reader(many, "tokenized_pairs") as reader:
        list(reader)


def _looked_up(store: Store, piece: pa.RecordBatch) -> None:
    check_ids(Pairs.of(piece), "")
    _filled(store, piece)


def _filled(store: Store, piece: pa.RecordBatch) -> None:
    pairs = Pairs.of(piece)
    if not store.fill(pairs, WindowScores.of(pairs)).all():
        raise RuntimeError("a pair is not in the store")


def _scored(root: Path, reader: Reader) -> AbstractContextManager[Writer]:
    return open_writer(root / "out.arrow", replace(reader.info, schema="scored_pairs"))


def _no_policy() -> NoReturn:
    raise RuntimeError("a pair is not in the store")


def _least(timed: Sequence[Callable[[], object]], rounds: int) -> list[float]:
    """The least CPU seconds of each call, which take turns; the next piece of memory is fetched by a call that is not timed."""
    least = [float("inf")] * len(timed)
    for _ in range(rounds):
        for index, one in enumerate(timed):
            one()
            started = time.thread_time()
            one()
            least[index] = min(least[index], time.thread_time() - started)
    return least


def _known_pairs(root: Path, source: Path, num_pairs: int) -> Path:
    """A stream of so many pairs with the lengths of `source`, all of which the store has; its batches are of the usual size."""
    store, random, made = Store(root, _CONTEXT, print), np.random.default_rng(0), []
    with open_reader(source, "tokenized_pairs") as reader:
        rows, info = reader.read_all().combine_chunks().to_batches()[0], reader.info
    while sum(len(one) for one in made) < num_pairs:
        made.append(other_ids(rows, random))
        pairs = Pairs.of(made[-1])
        for row, pair_id in enumerate(pairs.pair_ids):
            sides = (pairs.chosen.lengths[row], pairs.rejected.lengths[row])
            store.add(pair_id, *(-random.random(int(size)).astype(np.float32) for size in sides))
    store.close()
    return _written(root / "many.arrow", info, made)


def _written(path: Path, info: StreamInfo, made: list[pa.RecordBatch]) -> Path:
    with open_writer(path, info) as writer:
        for batch in windows.windows(made, 1 << 18):
            writer.write(batch)
    return path


def _opened(root: Path, of: Callable[[Shard], Shard] = lambda one: one) -> Store:
    store = Store(root, _CONTEXT, print)
    store.refresh()
    store._shards = {name: of(one) for name, one in store._shards.items()}
    return store


def _heard(one: Shard, asked: list[tuple[Shard, np.ndarray]]) -> Shard:
    """The shard, which notes what is asked of its checksums."""

    def are_whole(rows: np.ndarray) -> np.ndarray:
        asked.append((one, rows))
        return one.are_whole(rows)

    return replace(one, are_whole=are_whole)


def _by_calls(one: Shard) -> AreWhole:
    return record_checks.checks_by_calls(one.ids, one.batch.column("crc32").to_numpy(), *one.chosen, *one.rejected)


if __name__ == "__main__":
    main()
