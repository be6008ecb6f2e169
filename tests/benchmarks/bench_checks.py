#!/usr/bin/env python3
"""What share of reading checksums are: of records of a store of scores, and of the stream whose pairs are looked up in it.

  python tests/benchmarks/bench_checks.py pairs.arrow [--pairs N] [--rounds N]

Reading a record is finding it by its pair_id, and bringing its log-probs from the mapped file to where the window has them.
Reading a pair is all that a run with known scores does before it writes: the stream's batches with their checks of structure,
the digests of ids, and the store. Pieces are read many times with checks and without, in turns, and the least CPU time of
each counts, since what else runs on a machine takes its caches away.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from bench_scores import other_ids

from nemotron_dpo.preferences.checks import check_ids
from nemotron_dpo.preferences.pairs import Pairs
from nemotron_dpo.scoring import record_checks, windows
from nemotron_dpo.scoring.scores import WindowScores
from nemotron_dpo.scoring.shard import Shard
from nemotron_dpo.scoring.store import Context, Store
from nemotron_dpo.streams import StreamInfo, checksum, open_reader, open_writer

_CONTEXT = Context("bench", "float32", "none")
_PIECE = 65_536  # tokens, as of a window of one process


def main() -> None:
    """Print one line for the records, and one for the stream."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("--pairs", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=25)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        many = _known_pairs(Path(folder), options.source, options.pairs)
        with open_reader(many, "tokenized_pairs") as reader:
            batches = list(reader)
        pieces = list(windows.windows(batches, _PIECE))
        records(Path(folder), pieces, options.rounds)
        stream(many, batches, pieces, Path(folder), options.rounds)


def records(root: Path, pieces: list[pa.RecordBatch], rounds: int) -> None:
    """The share of reading records that is their checksums', in one call and by a call each."""
    pairs = [Pairs.of(piece) for piece in pieces]
    stores = [_opened(root, of) for of in (_as_it_is, _unchecked, _by_calls)]
    seconds = _least(
        [lambda one=one, some=some: one.fill(some, WindowScores.of(some)) for some in pairs for one in stores], rounds
    )
    with_check, without, by_calls = (sum(seconds[i::3]) / sum(map(len, pairs)) * 1e6 for i in range(3))
    shares = (f"{1 - without / each:.1%} of {each:.2f} us" for each in (with_check, by_calls))
    print("checksums of records: {}; by a call each {}".format(*shares))


def stream(many: Path, batches: list[pa.RecordBatch], pieces: list[pa.RecordBatch], root: Path, rounds: int) -> None:
    """The share of reading pairs and their scores that is the stream's checksums'."""
    store = _opened(root, _as_it_is)

    def whole() -> None:
        for piece in pieces:
            some = Pairs.of(piece)
            check_ids(some, "")
            store.fill(some, WindowScores.of(some))

    def read() -> None:
        with open_reader(many, "tokenized_pairs") as reader:
            list(reader)

    num_pairs = sum(len(piece) for piece in pieces)
    checks = [lambda batch=batch: checksum.extended(0, batch) for batch in batches]
    of_stream, all_else = sum(_least(checks, rounds)), sum(_least([read, whole], rounds))
    print(f"checksums of the stream: {of_stream / all_else:.1%} of {all_else / num_pairs * 1e6:.2f} us a pair")


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


def _opened(root: Path, of: Callable[[Shard], Shard]) -> Store:
    store = Store(root, _CONTEXT, print)
    store.refresh()
    store._shards = {name: of(one) for name, one in store._shards.items()}
    return store


def _as_it_is(one: Shard) -> Shard:
    return one


def _unchecked(one: Shard) -> Shard:
    return replace(one, are_whole=lambda rows: np.ones(len(rows), bool))


def _by_calls(one: Shard) -> Shard:
    crcs = one.batch.column("crc32").to_numpy()
    return replace(one, are_whole=record_checks.checks_by_calls(one.ids, crcs, *one.chosen, *one.rejected))


if __name__ == "__main__":
    main()
