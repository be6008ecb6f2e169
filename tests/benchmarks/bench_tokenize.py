#!/usr/bin/env python3
"""How fast preference-tokenize is, as ratios of rates measured in one run on the same rows and threads.

  NEMOTRON_DPO_HH=harmless-base.test.jsonl.gz python tests/benchmarks/bench_tokenize.py TOKENIZER_DIR [--megabytes N]

Each figure is the median of several rounds in which the contestants take turns, because other work on the machine comes and
goes; CPU seconds stand beside the wall clock. TRL is measured where it is installed.
"""

from __future__ import annotations

import argparse
import datetime
import gzip
import importlib.util
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("RAYON_NUM_THREADS", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

from nemotron_dpo.preferences.inputs import read_chunks
from nemotron_dpo.preferences.recognition import with_row_formats
from nemotron_dpo.preferences.row_formats import Keys
from nemotron_dpo.preferences.tokenize_chunk import Settings, make_worker
from nemotron_dpo.preferences.tokenize_files import Tokenization, tokenize_files
from nemotron_dpo.preferences.tokenizer_folder import TokenizerFolder, open_folder

Timed = tuple[float, float]


def main() -> None:
    """Print one line a comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer")
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    source = os.environ.get("NEMOTRON_DPO_HH")
    if not source:
        sys.exit("bench_tokenize: skipped: NEMOTRON_DPO_HH does not name the HH pairs")
    rows = gzip.decompress(Path(source).read_bytes())
    copies = max(1, options.megabytes * 1_000_000 // len(rows))
    folder = open_folder(options.tokenizer)
    with tempfile.TemporaryDirectory() as scratch:
        (data := Path(scratch) / "pairs.jsonl").write_bytes(rows * copies)
        (once := Path(scratch) / "once.jsonl").write_bytes(rows)
        ours = lambda: _tokenize(data, Path(scratch) / "out.arrow", folder)  # noqa: E731 - a name for the type; a line is enough
        compare("raw encode_batch_fast", _raw(once, folder, copies), ours, options.rounds, target=0.85)
        if importlib.util.find_spec("trl"):
            compare("TRL DPOTrainer", _trl(once, options.tokenizer, copies), ours, options.rounds, target=4)
        else:
            print("TRL DPOTrainer: skipped: trl is not installed")


def compare(name: str, theirs: Callable[[], Timed], ours: Callable[[], Timed], rounds: int, target: float) -> None:
    """Print how many times the rate of `theirs` is reached, by the wall clock and by CPU time."""
    timed = [(theirs(), ours()) for _ in range(rounds)]
    wall, cpu = (statistics.median(a[i] / b[i] for a, b in timed) for i in (0, 1))
    spread = ", ".join(f"{a[0] / b[0]:.2f}" for a, b in timed)
    theirs_seconds, ours_seconds = (statistics.median(t[side][0] for t in timed) for side in (0, 1))
    print(
        f"{name}: {wall:.2f} x by the wall clock ({spread}; target {target}), {cpu:.2f} x by CPU time; "
        f"theirs {theirs_seconds:.1f} s, ours {ours_seconds:.1f} s, RAYON_NUM_THREADS={os.environ['RAYON_NUM_THREADS']}",
        flush=True,
    )


def _tokenize(data: Path, out: Path, folder: TokenizerFolder) -> Timed:
    settings = Settings(folder, datetime.datetime(2026, 1, 31))
    return _timed(lambda: tokenize_files(Tokenization((str(data),), str(out), skip_errors=True), settings))


def _raw(once: Path, folder: TokenizerFolder, copies: int) -> Callable[[], Timed]:
    """encode_batch_fast alone on the texts that the program gives it, a chunk of rows at a time."""
    worker = make_worker(Settings(folder, datetime.datetime(2026, 1, 31)), num_shown=1 << 30)
    chunks = with_row_formats(read_chunks([str(once)], 1 << 24), "auto", Keys(), 1 << 24)
    batches = [[t for texts, _ in worker(c).shown for t in (texts.prompt, texts.chosen, texts.rejected)] for c in chunks]
    tokenizer = folder.load()

    def encode() -> None:
        for _ in range(copies):
            for batch in batches:
                tokenizer.encode_batch_fast(batch, add_special_tokens=False)

    return lambda: _timed(encode)


def _trl(once: Path, tokenizer_folder: str, copies: int) -> Callable[[], Timed]:
    """TRL's own preparation of a preference data set, in one process, without a model; timed on one copy and scaled."""
    import datasets  # pyright: ignore[reportMissingImports] - installed where this runs, not in .venv
    import trl  # pyright: ignore[reportMissingImports] - installed where this runs, not in .venv
    from transformers import AutoTokenizer

    worker = make_worker(Settings(open_folder(tokenizer_folder), datetime.datetime(2026, 1, 31)))
    chunks = with_row_formats(read_chunks([str(once)], 1 << 24), "auto", Keys(), 1 << 24)
    preferences = [
        p for chunk in chunks for row in chunk.rows if len((p := worker.preference(row, chunk.row_format)).chosen) == 1
    ]
    rows = [{"prompt": p.prompt, "chosen": p.chosen, "rejected": p.rejected} for p in preferences if len(p.rejected) == 1]
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    datasets.disable_progress_bars()
    datasets.disable_caching()
    trainer = object.__new__(trl.DPOTrainer)
    trainer._is_vision_dataset = trainer._is_vlm = False
    with tempfile.TemporaryDirectory() as scratch:
        arguments = trl.DPOConfig(output_dir=scratch, use_cpu=True, bf16=False, report_to=[])

    def prepare() -> None:
        trainer._prepare_dataset(datasets.Dataset.from_list(rows), tokenizer, arguments, "train")

    def scaled() -> Timed:
        wall, cpu = _timed(prepare)
        return wall * copies, cpu * copies

    return scaled


def _timed(work: Callable[[], object]) -> Timed:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


if __name__ == "__main__":
    main()
