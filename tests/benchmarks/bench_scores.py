#!/usr/bin/env python3
"""How fast ref-logprobs is: against a plain transformers loop in one run, and where all scores are known.

  NEMOTRON_DPO_HH=harmless-base.test.jsonl.gz python tests/benchmarks/bench_scores.py POLICY_DIR [--pairs N] [--known N]

The peer pads batches of 8 sequences, prompt and response, in inference mode and at the same precision, and gathers the
log-probs of the response; once with torch's products as they come, once with those that ours takes. Ratios are of CPU seconds;
OMP_NUM_THREADS=1 keeps threads from waiting for one another in them. Contestants take turns over the same pairs, because other
work on the machine comes and goes. The share of the limit is the products' FLOPs of ours (attention not counted) over its
seconds and over the rate of products of 1024 x 1024 x 4096 in the same precision, which is measured before and after. A run
with known scores is a process of its own, of which seconds and peak memory are printed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from nemotron_dpo.checkpoint.policy import DTYPES, open_policy
from nemotron_dpo.kernels.chosen import choose
from nemotron_dpo.policy import parallel
from nemotron_dpo.policy.allocator import keep_freed_memory
from nemotron_dpo.policy.model import PairPolicy
from nemotron_dpo.preferences.checks import digests
from nemotron_dpo.preferences.pairs import Pairs
from nemotron_dpo.scoring.score import score_rows
from nemotron_dpo.scoring.scores import WindowScores
from nemotron_dpo.sources import resolve
from nemotron_dpo.streams import open_reader, open_writer

BIN = Path(__file__).resolve().parents[2] / "bin"
PADDED = 8  # sequences in a batch of the peer


def main() -> None:
    """Print one line a comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("policy")
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--known", type=int, default=100_000, help="Pairs of the run whose scores are known; 0 leaves it out.")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if not (source := os.environ.get("NEMOTRON_DPO_HH")):
        sys.exit("bench_scores: skipped: NEMOTRON_DPO_HH does not name the HH pairs")
    with tempfile.TemporaryDirectory() as scratch:
        pairs = Path(scratch) / "pairs.arrow"
        wanted = ("--limit", str(max(options.pairs, 1000)), "--max-length", "1024", "--on-error", "skip")
        run("preference_tokenize", source, "-o", pairs, "--tokenizer", options.policy, *wanted)
        against_transformers(pairs, options.policy, options.precision, options.pairs, options.rounds)
        if options.known:
            all_known(Path(scratch), pairs, options.policy, options.precision, options.known)


def run(program: str, *arguments: object) -> str:
    """What the program says last."""
    done = subprocess.run([sys.executable, BIN / f"{program}.py", *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return done.stderr.splitlines()[-1]


def against_transformers(source: Path, policy: str, precision: str, num_pairs: int, rounds: int) -> None:
    """The ratio of rates over the same pairs, and how far the two are apart."""
    from transformers import AutoModelForCausalLM

    with open_reader(source, "tokenized_pairs") as reader:
        pairs = Pairs.of(reader.read_all().slice(0, num_pairs))
    choose(precision, print)
    keep_freed_memory()
    parallel.initialize()
    ours = open_policy(resolve(policy), precision).eval()
    theirs = AutoModelForCausalLM.from_pretrained(policy, dtype=DTYPES[precision]).eval()
    ratios, apart = [], 0.0
    flops, shares = _product_flops(ours, pairs), []
    for _ in range(rounds):
        rate = _product_rate(DTYPES[precision])
        mine, seconds = _timed(lambda: _ours(ours, pairs))
        shares.append(flops / seconds / max(rate, _product_rate(DTYPES[precision])))
        other, with_our_products = _timed(lambda: _theirs(theirs, pairs))
        with _products_as_torch_comes():
            _, as_it_comes = _timed(lambda: _theirs(theirs, pairs))
        ratios.append((as_it_comes / seconds, with_our_products / seconds))
        apart = max(float(np.abs(a - b).max()) for a, b in zip(mine, other, strict=True))
    as_it_comes, with_our_products = np.median(ratios, 0)
    rates = f"{as_it_comes:.2f} x, {with_our_products:.2f} x with our products"
    print(f"transformers, padded batches of {PADDED}: {rates}, on {len(pairs)} pairs, {apart:.2g} nats apart")
    print(f"ours: {np.median(shares):.2f} of the limit of products ({', '.join(f'{share:.2f}' for share in shares)})")


def _product_flops(model: PairPolicy, pairs: Pairs) -> float:
    """Of the linear layers for each token of the pairs, whose responses share a prompt, and of the output where one follows."""
    weights = {name: weight for name, weight in model.named_parameters() if weight.dim() == 2}
    output = next(weight for name, weight in weights.items() if "embedding" in name)
    layers = sum(weight.numel() for name, weight in weights.items() if "embedding" not in name and "output_layer" not in name)
    responses = int(pairs.chosen.lengths.sum() + pairs.rejected.lengths.sum())
    tokens = int(pairs.prompt.lengths.sum()) + responses
    return 2.0 * tokens * layers + 2.0 * (responses - len(pairs)) * output.numel()


def _product_rate(dtype: torch.dtype) -> float:
    """FLOPs a CPU second, of the fastest of some products."""
    left, right = torch.randn(1024, 1024, dtype=dtype), torch.randn(1024, 4096, dtype=dtype)

    def one() -> list[np.ndarray]:
        for _ in range(4):
            torch.mm(left, right)
        return []

    return 4 * 2.0 * 1024 * 1024 * 4096 / min(_timed(one)[1] for _ in range(5))


def _timed(work: Callable[[], list[np.ndarray]]) -> tuple[list[np.ndarray], float]:
    """What it gives, and the CPU seconds of all threads: what else runs on a machine stretches wall times."""
    started = time.process_time()
    return work(), time.process_time() - started


@contextlib.contextmanager
def _products_as_torch_comes() -> Iterator[None]:
    """Without what `choose` did to float32 products, which a program of transformers does not do."""
    settings: Any = getattr(torch.backends.mkldnn, "matmul")  # noqa: B009 - torch does not declare it
    before, settings.fp32_precision = settings.fp32_precision, "none"
    try:
        yield
    finally:
        settings.fp32_precision = before


def _ours(model: PairPolicy, pairs: Pairs) -> list[np.ndarray]:
    scores = WindowScores.of(pairs)
    score_rows(model, pairs, range(len(pairs)), scores, 4096)
    return [side for row in range(len(pairs)) for side in scores.row(row)]


def _theirs(model: torch.nn.Module, pairs: Pairs) -> list[np.ndarray]:
    sequences = [(pairs.prompt[row], side[row]) for row in range(len(pairs)) for side in (pairs.chosen, pairs.rejected)]
    found: list[np.ndarray] = []
    for start in range(0, len(sequences), PADDED):
        some = sequences[start : start + PADDED]
        length = max(len(prompt) + len(response) for prompt, response in some)
        ids, mask = torch.zeros(len(some), length, dtype=torch.long), torch.zeros(len(some), length, dtype=torch.long)
        for row, (prompt, response) in enumerate(some):
            whole = torch.from_numpy(np.concatenate([prompt, response]).astype(np.int64))
            ids[row, : len(whole)], mask[row, : len(whole)] = whole, 1
        with torch.inference_mode():
            log_p = model(input_ids=ids, attention_mask=mask).logits[:, :-1].float().log_softmax(-1)
            logps = log_p.gather(2, ids[:, 1:, None]).squeeze(2)
        for row, (prompt, response) in enumerate(some):
            found.append(logps[row, len(prompt) - 1 : len(prompt) + len(response) - 1].numpy())
    return found


def all_known(scratch: Path, source: Path, policy: str, precision: str, num_pairs: int) -> None:
    """A run over so many pairs of HH's lengths whose scores an earlier output has given to the store."""
    from nemotron_dpo.checkpoint.weights_digest import weights_digest
    from nemotron_dpo.kernels.chosen import kernels
    from nemotron_dpo.scoring.store import Context, Store

    store = Store(scratch / "store", Context(weights_digest(resolve(policy)), precision, kernels().identity), print)
    random = np.random.default_rng(0)
    with open_reader(source, "tokenized_pairs") as reader, open_writer(scratch / "many.arrow", reader.info) as writer:
        rows = reader.read_all().combine_chunks().to_batches()[0]
        while writer.num_rows < num_pairs:
            batch = other_ids(rows, random)
            pairs = Pairs.of(batch)
            for row, pair_id in enumerate(pairs.pair_ids):
                sides = (pairs.chosen.lengths[row], pairs.rejected.lengths[row])
                store.add(pair_id, *(-random.random(int(size)).astype(np.float32) for size in sides))
            for start in range(0, len(batch), 256):
                writer.write(batch.slice(start, 256))
    store.close()
    arguments = (scratch / "many.arrow", "-o", scratch / "out.arrow", "--policy", policy, "--precision", precision)
    argv = [sys.executable, BIN / "ref_logprobs.py", *arguments, "--cache", scratch / "store"]
    with (scratch / "said").open("w") as said:
        started = time.perf_counter()
        process = subprocess.Popen(argv, stderr=said)
        most = 0
        while process.poll() is None:
            most = max(most, _peak(process.pid))
            time.sleep(0.02)
    seconds, last = time.perf_counter() - started, (scratch / "said").read_text().splitlines()[-1]
    if process.returncode:
        sys.exit(last)
    print(f"all known: {seconds:.1f} s, at most {most / 1000:.0f} MB ({last})")


def _peak(pid: int) -> int:
    """The most kB that the process had in memory since it started its program; what its parent had is not of its own."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        return next((int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")), 0)
    except OSError:
        return 0


def other_ids(rows: pa.RecordBatch, random: np.random.Generator) -> pa.RecordBatch:
    """Pairs of the same lengths and other token ids."""
    for name in ("prompt_ids", "chosen_ids", "rejected_ids"):
        column = rows.column(name)
        ids = pa.array(random.integers(3, 1000, len(column.values)).astype(np.int32))
        rows = rows.set_column(
            rows.schema.get_field_index(name), rows.schema.field(name), pa.ListArray.from_arrays(column.offsets, ids)
        )
    names = pa.array(list(digests(Pairs.of(rows))), pa.binary(16))
    return rows.set_column(0, rows.schema.field(0), names)


if __name__ == "__main__":
    main()
