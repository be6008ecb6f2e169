#!/usr/bin/env python3
"""A store that knows the scores of all pairs of a stream: true ones of a first batch, made-up ones of the others.

  python tests/benchmarks/known_scores.py PAIRS POLICY_DIR STORE

True ones of all would take days. Those of the first batch are proved before a run trains, so they must be true.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa

from nemotron_dpo.checkpoint.weights_digest import weights_digest
from nemotron_dpo.kernels.chosen import choose, kernels
from nemotron_dpo.preferences.pairs import Pairs
from nemotron_dpo.preferences.sampler import batch_indices
from nemotron_dpo.scoring.store import Context, Store
from nemotron_dpo.sources import resolve
from nemotron_dpo.streams import open_reader, open_writer

BIN = Path(__file__).resolve().parents[2] / "bin"
PRECISION, BATCH, SEED = "bfloat16", 8, 42


def main() -> None:
    """Make the store."""
    pairs, policy, root = (Path(argument) for argument in sys.argv[1:])
    choose(PRECISION, print)
    store = Store(root, Context(weights_digest(resolve(str(policy))), PRECISION, kernels().identity), print)
    true = score_first_batch(pairs, policy, root)
    draw = np.random.default_rng(0)
    with open_reader(pairs, "tokenized_pairs") as reader:
        for batch in reader:
            add_made_up(store, Pairs.of(batch), true, draw)
            reader.forget()
    store.close()


def score_first_batch(source: Path, policy: Path, root: Path) -> set[bytes]:
    """Put the true scores of the pairs that training begins with into the store; their ids."""
    with open_reader(source, "tokenized_pairs") as reader, tempfile.TemporaryDirectory() as scratch:
        table, first = reader.read_all(), Path(scratch, "first.arrow")
        rows = table.take(pa.array(batch_indices(0, len(table), BATCH, seed=SEED, shuffle=True))).combine_chunks()
        with open_writer(first, reader.info) as writer:
            writer.write(rows.to_batches()[0])
        argv = (BIN / "ref_logprobs.py", first, "-o", Path(scratch, "out.arrow"), "--policy", policy, "--cache", root)
        subprocess.run([sys.executable, *argv, "--precision", PRECISION], check=True, stderr=subprocess.DEVNULL)
        return set(rows["pair_id"].to_pylist())


def add_made_up(store: Store, pairs: Pairs, but: set[bytes], draw: np.random.Generator) -> None:
    """Log-probs at random for the pairs of a batch that are not in `but`."""
    for row, pair_id in enumerate(pairs.pair_ids):
        if pair_id not in but:
            sizes = pairs.chosen.lengths[row], pairs.rejected.lengths[row]
            store.add(pair_id, *(-draw.random(int(size), np.float32) for size in sizes))
    if store.is_due():
        store.publish()


if __name__ == "__main__":
    main()
