#!/usr/bin/env python3
"""One DPO run by TRL's DPOTrainer, for bench_dpo.py to time: JSONL and a Hugging Face folder in, updated weights out.

Runs in an environment of its own (torch and trl); imports nothing of this project. The last line of stdout is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import time

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")


def main() -> None:
    """Train for len(rows) / batch steps and save."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data")
    parser.add_argument("policy")
    parser.add_argument("output")
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--micro-batch", type=int, required=True, help="pairs in one forward pass")
    parser.add_argument("--length", type=int, required=True)
    parser.add_argument("--precision", choices=["bfloat16", "float32"], required=True)
    parser.add_argument("--beta", type=float, default=0.1)
    parser.add_argument("--gradient-checkpointing", action="store_true")
    options = parser.parse_args()

    import datasets  # pyright: ignore[reportMissingImports] - installed where this runs, not in .venv
    import torch
    import trl  # pyright: ignore[reportMissingImports] - installed where this runs, not in .venv
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

    datasets.disable_progress_bars()
    datasets.disable_caching()
    with open(options.data, encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    arguments = trl.DPOConfig(
        output_dir=options.output,
        use_cpu=not torch.cuda.is_available(),
        bf16=options.precision == "bfloat16",
        per_device_train_batch_size=options.micro_batch,
        gradient_accumulation_steps=options.batch // options.micro_batch,
        max_steps=len(rows) // options.batch,
        max_length=options.length,
        beta=options.beta,
        learning_rate=1e-6,
        gradient_checkpointing=options.gradient_checkpointing,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        seed=42,
    )
    model = AutoModelForCausalLM.from_pretrained(options.policy, dtype=torch.float32)
    trainer = trl.DPOTrainer(
        model=model,
        args=arguments,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(options.policy),
    )
    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: object, **__: object) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            ends.append(time.perf_counter())

    trainer.add_callback(Clock())
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    trainer.save_model(options.output)
    losses = [record["loss"] for record in trainer.state.log_history if "loss" in record]
    result = {"training_seconds": seconds, "losses": losses}
    result["step_seconds"] = [end - begin for begin, end in zip([started, *ends], ends, strict=False)]
    if torch.cuda.is_available():
        result["max_allocated_bytes"] = torch.cuda.max_memory_allocated()
    print(json.dumps(result))


if __name__ == "__main__":
    main()
