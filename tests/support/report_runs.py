"""Run folders as dpo-train leaves them, made by hand: what a report reads, without training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from nemotron_dpo.streams import PAIRS_LOG, VERSIONS, StreamInfo, open_writer
from nemotron_dpo.streams.writer import Writer

SETTINGS = [
    "policy.optimizer.lr=1e-5",
    "dpo.reference_policy_kl_penalty=0.1",
    "dpo.max_num_steps=20",
    "dpo.preference_loss=dpo",
]


def pair_id(number: int) -> bytes:
    """The id of the pair of that number."""
    return number.to_bytes(16, "big")


def train_row(step: int, loss: float, **more: float) -> dict[str, Any]:
    """A training record; `more` are metrics by their bare names."""
    margin = 40 * (math.log(2) - loss)
    values = {
        "loss": loss,
        "accuracy": float(step > 1),
        "rewards_chosen_mean": -margin / 8,
        "rewards_rejected_mean": -9 * margin / 8,
    }
    values |= {
        "num_valid_samples": 16.0,
        "global_valid_seqs": 32.0,
        "global_valid_toks": 640.0,
        "grad_norm": 2.0,
        "lr": 1e-5,
        **more,
    }
    machine = {
        "timing/train/total_step_time": 0.1,
        "timing/train/pairs_per_sec": 160.0,
        "timing/train/valid_tokens_per_sec": 6400.0,
    }
    return {
        "step": step,
        **{f"train/{k}": v for k, v in values.items()},
        **machine,
        "memory/train/max_resident_bytes": 5e8 + step,
    }


def validation_row(step: int, loss: float, accuracy: float, name: str = "default", pairs: int = 64) -> dict[str, Any]:
    """A validation's record."""
    margin = 40 * (math.log(2) - loss)
    values = {"loss": loss, "accuracy": accuracy, "rewards_chosen_mean": -margin / 8, "rewards_rejected_mean": -9 * margin / 8}
    values |= {"num_valid_samples": float(pairs), "global_valid_seqs": 2.0 * pairs, "global_valid_toks": 40.0 * pairs}
    return {
        "step": step,
        **{f"validation-{name}/{k}": v for k, v in values.items()},
        f"timing/validation-{name}/total_validation_time": 0.2,
    }


def usual_rows(steps: int = 20) -> list[dict[str, Any]]:
    """A run that learns, validated before it, in its middle and at its end."""
    losses = [math.log(2) - 0.015 * min(step - 1, 20) for step in range(1, steps + 1)]
    rows = [validation_row(0, math.log(2), 0.0), *(train_row(step, loss) for step, loss in enumerate(losses, start=1))]
    half = max(1, steps // 2)
    rows.insert(half + 1, validation_row(half, 0.55, 0.75))
    return [*rows, validation_row(steps, 0.42, 0.875)]


def write_run(
    folder: Path, rows: Sequence[Mapping[str, Any]], *, status: str = "done", settings: Sequence[str] = SETTINGS, **facts: Any
) -> Path:
    """A run folder with `rows` as its records; `settings` are the overrides of its command, `facts` go into run.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    command = ["dpo-train", "scored.arrow", "--policy", "sft", "--run-dir", str(folder), *settings]
    known = {
        "status": status,
        "reason": None,
        "step": 1,
        "host": "elsewhere",
        "pid": 1,
        "folder": str(folder.parent),
        "command": command,
    }
    known |= {
        "lineage": {"train.input": "sha256:abc"},
        "versions": ["Python 3.11"],
        "processes": 1,
        "device": "CPU",
        "earlier": [],
    }
    (folder / "run.json").write_bytes(orjson.dumps(known | facts))
    return folder


def sightings(step: int, split: str, margins: Sequence[float], *, start: int = 0, **columns: Any) -> pa.RecordBatch:
    """A batch of the log: pairs from `start` on, with `margins`; `columns` replace what is made up for the others."""
    size = len(margins)
    made = {
        "step": np.full(size, step, np.int32), "split": [split] * size, "pair_id": [pair_id(start + n) for n in range(size)],
        "source": ["pairs.jsonl"] * size, "source_file": [None] * size, "source_line": np.arange(1, size + 1),
        "prompt_tokens": np.full(size, 12, np.int32),
        "chosen_tokens": np.full(size, 20, np.int32), "rejected_tokens": np.full(size, 20, np.int32),
        "chosen_logp": np.full(size, -30.0, np.float32), "rejected_logp": np.full(size, -40.0, np.float32),
        "chosen_log_ratio": np.asarray(margins, np.float32) / -8,
        "rejected_log_ratio": np.asarray(margins, np.float32) * -9 / 8,
        "margin": np.asarray(margins, np.float32), "loss": np.log1p(np.exp(-0.1 * np.asarray(margins, np.float32))), **columns,
    }  # fmt: skip
    types = {field.name: field.type for field in PAIRS_LOG}
    arrays = [
        pa.array(made[name], kind.value_type).dictionary_encode().cast(kind)
        if pa.types.is_dictionary(kind)
        else pa.array(made[name], kind)
        for name, kind in types.items()
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=PAIRS_LOG)


def write_log(folder: Path, batches: Sequence[pa.RecordBatch], *, whole: bool = True) -> None:
    """pairs_log.arrow; one that is not `whole` has no trailer, as while a run goes on."""
    info = StreamInfo("pairs_log", "dpo-train", "0", version=VERSIONS["pairs_log"])
    if whole:
        with open_writer(folder / "pairs_log.arrow", info) as writer:
            for batch in batches:
                writer.write(batch)
        return
    with (folder / "pairs_log.arrow").open("wb") as file:
        writer = Writer(file, info)
        for batch in batches:
            writer.write(batch)


def write_texts(run: Path, texts: Sequence[tuple[str, str, str]], *, shift: float = 0.0) -> Path:
    """The token streams of a run: `texts` (prompt, chosen, rejected) of the pairs from 0 on, and the tokenizer.

    The stream is beside the run, where its command says: scores of -1 a token, and, in another one with `shift` more, those of
    the policy after training, whose path this gives.
    """
    from nemotron_dpo.streams import SCORED_PAIRS
    from support.small_tokenizers import byte_level

    tokenizer, policy = byte_level(), run / "checkpoints" / "step_1" / "policy"
    policy.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(policy / "tokenizer.json"))
    ids = [[tokenizer.encode(part, add_special_tokens=False).ids for part in three] for three in texts]
    after = run.parent / "after.arrow"
    for path, change in ((run.parent / "scored.arrow", 0.0), (after, shift)):
        rows = [
            {
                "pair_id": pair_id(n), "source_line": n + 1,
                "prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected,
                "chosen_truncated": False, "rejected_truncated": False, "source": "pairs.jsonl", "chosen_reward": None,
                "rejected_reward": None, "ref_chosen_logps": [change - 1.0] * len(chosen),
                "ref_rejected_logps": [-change - 1.0] * len(rejected),
            }
            for n, (prompt, chosen, rejected) in enumerate(ids)
        ]  # fmt: skip
        with open_writer(path, StreamInfo("scored_pairs", "ref-logprobs", "0")) as writer:
            writer.write(pa.RecordBatch.from_pylist(rows, schema=SCORED_PAIRS))
    return after
