#!/usr/bin/env python3
"""DPO by TRL's DPOTrainer, for bench_dpo.py and bench_gpu.py to time: JSONL and a Hugging Face folder in, updated weights out.

Runs in an environment of its own (torch and trl); imports nothing of this project. The last line of stdout is JSON.

By default the reference is scored within the steps. --best SECONDS first looks for the setting in which TRL is fastest here,
then trains with the reference's log-probs precomputed. It tries micro batches, layers by Liger's kernels, pairs of like length
together, and the attentions that are installed, a few steps each, on random weights, while the seconds last. What TRL 1.16 has
no choice about: its output layer is always a fused one, and it pads always (`padding_free` is switched off in it).
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")


@dataclass(frozen=True)
class Setting:
    """How TRL trains: pairs in a forward pass, Liger's layer kernels, pairs of like length together, attention."""

    micro_batch: int
    liger: bool = False
    grouped: bool = False
    attention: str = "sdpa"

    def __str__(self) -> str:
        words = [f"micro batches of {self.micro_batch}", self.attention]
        return ", ".join([*words, *["Liger's layers"] * self.liger, *["grouped by length"] * self.grouped])


@dataclass(frozen=True)
class Timed:
    """Seconds of each step, of the reference pass before them, each step's loss, and the allocator's peak."""

    steps: list[float]
    reference: float
    losses: list[float]
    peak: int


def main() -> None:
    """Train for len(rows) / batch steps an epoch and save."""
    options = _options()
    with open(options.data, encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    setting, tried, precompute = Setting(options.micro_batch, attention=options.attention), [], False
    if options.best is not None:
        setting, tried = _best(rows, options)
        precompute = True
    started = time.perf_counter()
    timed = _train(rows, setting, options, batch=options.batch, precompute=precompute, save=True)
    result: dict[str, Any] = {"training_seconds": time.perf_counter() - started, "losses": timed.losses}
    result |= {"step_seconds": timed.steps, "reference_seconds": timed.reference, "max_allocated_bytes": timed.peak}
    print(json.dumps(result | {"setting": str(setting), "tried": tried}))


def _best(rows: list[dict], options: argparse.Namespace) -> tuple[Setting, list[str]]:
    """The fastest setting, one thing changed at a time, and what was tried with its pairs/s."""
    tried: dict[Setting, float] = {}
    until = time.perf_counter() + options.best

    def is_faster(setting: Setting, than: Setting) -> bool:
        for each in (than, setting):
            if each not in tried and time.perf_counter() < until:
                tried[each] = _rate(rows, each, options)
                print(f"TRL {tried[each]:7.1f} pairs/s  {each}", file=sys.stderr, flush=True)
        return tried.get(setting, 0.0) > tried.get(than, 0.0)

    best = Setting(options.micro_batch, grouped=True, attention=options.attention)
    for change in _changes(best, options.batch):
        while (other := change(best)) is not None and is_faster(other, best):
            best = other
    return best, [f"{rate:.1f} pairs/s: {setting}" for setting, rate in tried.items()]


def _changes(first: Setting, largest: int) -> Iterator[Any]:
    """What to change of a setting while that makes it faster; None where there is nothing left to change."""

    def larger(setting: Setting) -> Setting | None:
        twice = 2 * setting.micro_batch
        return replace(setting, micro_batch=twice) if setting.micro_batch >= first.micro_batch and twice <= largest else None

    def smaller(setting: Setting) -> Setting | None:
        half = setting.micro_batch // 2
        return replace(setting, micro_batch=half) if half and setting.micro_batch <= first.micro_batch else None

    if all(importlib.util.find_spec(name) for name in ("liger_kernel", "triton")):
        yield lambda setting: None if setting.liger else replace(setting, liger=True)
    yield larger
    yield smaller
    for name in ("flash_attention_2", "flash_attention_3"):
        if importlib.util.find_spec({"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}[name]):
            yield lambda setting, name=name: None if setting.attention == name else replace(setting, attention=name)
    yield lambda setting: replace(setting, grouped=False) if setting.grouped else None


def _rate(rows: list[dict], setting: Setting, options: argparse.Namespace) -> float:
    """Pairs/s of two steps after two that warm up, over the same pairs; 0 where they do not fit or TRL cannot run so."""
    import torch

    batch = max(setting.micro_batch, min(options.batch, options.trial_pairs) // 2)
    some = rows[: 2 * batch]
    try:
        timed = _train(some, setting, options, batch=batch, precompute=False, epochs=2, random=True)
    except Exception as error:  # what a library of TRL's raises where it does not fit another; it is said, and no setting
        print(f"TRL cannot train with {setting}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return 0.0
    finally:
        gc.collect()
        torch.cuda.empty_cache()
    measured = timed.steps[len(timed.steps) // 2 :]
    return len(measured) * batch / sum(measured)


def _train(
    rows: list[dict],
    setting: Setting,
    options: argparse.Namespace,
    *,
    batch: int,
    precompute: bool,
    epochs: int | None = None,
    random: bool = False,
    save: bool = False,
) -> Timed:
    """Train once; on random weights no reference is scored, since these steps are there to be timed."""
    import datasets  # pyright: ignore[reportMissingImports] - installed where this runs, not in .venv
    import torch
    import trl  # pyright: ignore[reportMissingImports] - installed where this runs, not in .venv
    from transformers import AutoTokenizer

    datasets.disable_progress_bars()
    datasets.disable_caching()
    on_gpu, tokenizer = torch.cuda.is_available(), AutoTokenizer.from_pretrained(options.policy)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    steps = (epochs or options.epochs) * (len(rows) // batch)
    arguments = _arguments(setting, options, batch, steps, precompute or random, on_gpu)
    reference = _Reference(trl.DPOTrainer._precompute_ref_logps, skip=random)
    trl.DPOTrainer._precompute_ref_logps = lambda trainer, *rest: reference.of(trainer, *rest)
    try:
        trainer = trl.DPOTrainer(
            model=_model(options.policy, setting.attention, random),
            args=arguments,
            train_dataset=datasets.Dataset.from_list(_with_lengths(rows, tokenizer) if setting.grouped else rows),
            processing_class=tokenizer,
        )
    finally:
        trl.DPOTrainer._precompute_ref_logps = reference.original
    seconds = _step_seconds(trainer, on_gpu)
    if save:
        trainer.save_model(options.output)
    losses = [record["loss"] for record in trainer.state.log_history if "loss" in record]
    return Timed(seconds, reference.seconds, losses, torch.cuda.max_memory_allocated() if on_gpu else 0)


def _step_seconds(trainer: Any, on_gpu: bool) -> list[float]:
    """Train, and how long each step took."""
    import torch
    from transformers import TrainerCallback

    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: object, **__: object) -> None:
            if on_gpu:
                torch.cuda.synchronize()
            ends.append(time.perf_counter())

    trainer.add_callback(Clock())
    started = time.perf_counter()
    trainer.train()
    return [end - begin for begin, end in zip([started, *ends], ends, strict=False)]


def _arguments(setting: Setting, options: argparse.Namespace, batch: int, steps: int, precompute: bool, on_gpu: bool) -> Any:
    import trl  # pyright: ignore[reportMissingImports] - installed where this runs, not in .venv

    return trl.DPOConfig(
        output_dir=options.output,
        use_cpu=not on_gpu,
        bf16=options.precision == "bfloat16",
        per_device_train_batch_size=setting.micro_batch,
        gradient_accumulation_steps=max(1, batch // setting.micro_batch),
        precompute_ref_log_probs=precompute,
        precompute_ref_batch_size=2 * setting.micro_batch,
        max_steps=steps,
        max_length=options.length,
        beta=options.beta,
        learning_rate=1e-6,
        gradient_checkpointing=options.gradient_checkpointing,
        use_liger_kernel=setting.liger,
        train_sampling_strategy="group_by_length" if setting.grouped else "random",
        remove_unused_columns=not setting.grouped,  # the lengths are one
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        seed=42,
    )


class _Reference:
    """TRL's reference pass, timed, or in its place log-probs of zero."""

    def __init__(self, original: Any, *, skip: bool) -> None:
        self.original, self.skip, self.seconds = original, skip, 0.0

    def of(self, trainer: Any, dataset: Any, *rest: Any) -> Any:
        if self.skip:
            zeros = [0.0] * len(dataset)
            return dataset.add_column("ref_chosen_logps", zeros).add_column("ref_rejected_logps", zeros)
        started = time.perf_counter()
        scored = self.original(trainer, dataset, *rest)
        self.seconds = time.perf_counter() - started
        return scored


def _model(folder: str, attention: str, random: bool) -> Any:
    """The policy with float32 weights, or one of its shape."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    wanted: dict[str, Any] = {"dtype": torch.float32, "attn_implementation": attention}
    if not random:
        return AutoModelForCausalLM.from_pretrained(folder, **wanted)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), **wanted)


def _with_lengths(rows: list[dict], tokenizer: Any) -> list[dict]:
    """The rows with the tokens of their longer sequence, which is what TRL pads by."""

    def length(row: dict, side: str) -> int:
        text = "".join(turn["content"] for turn in [*row["prompt"], *row[side]])
        return len(tokenizer.encode(text, add_special_tokens=False))

    return [{**row, "length": max(length(row, "chosen"), length(row, "rejected"))} for row in rows]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="JSONL, prompts and responses as messages")
    parser.add_argument("policy")
    parser.add_argument("output")
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--micro-batch", type=int, required=True, help="pairs in one forward pass; with --best to begin with")
    parser.add_argument("--length", type=int, required=True)
    parser.add_argument("--precision", choices=["bfloat16", "float32"], required=True)
    parser.add_argument("--beta", type=float, default=0.1)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--attention", default="sdpa")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--best", type=float, metavar="SECONDS", help="look that long for the fastest setting, then precompute")
    parser.add_argument("--trial-pairs", type=int, default=64, help="pairs that a setting is timed over, twice")
    return parser.parse_args()


if __name__ == "__main__":
    main()
