"""The chain on the tiny policy by nemotron-steps: fine-tuned from random weights here, aligned, validated and exported.

On a CPU ten steps end at a loss of 0.42; fine-tuning, whose rounding grows over 40 steps, ends elsewhere on a GPU, so only the
course is asserted.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import check

from benchmarks.processes import ROOT
from support.kept_kernels import with_kernels

VALIDATION = "validation-default/loss"
DATA = ROOT / "configs" / "rl" / "nemo_rl" / "dpo" / "data" / "train.jsonl"


def main() -> None:
    """Loss at ln 2, then well below; held-out pairs told apart; a checkpoint."""
    here = check.begin(__doc__)
    overrides = _short(here.folder) if here.cpu else []
    argv = ["nemotron-steps", "run", "rl/nemo_rl/dpo", "-c", "tiny", *overrides]
    done = subprocess.run(argv, cwd=here.folder, capture_output=True, text=True, env=_own_cache(here.folder))
    check.require(done.returncode == 0, f"nemotron-steps ended with {done.returncode}:\n{done.stderr[-2000:]}")
    (metrics,) = here.folder.glob(".nemotron/jobs/*/**/metrics.jsonl")
    losses = check.curve(metrics.parent)
    check.require(abs(losses[0] - check.LN2) < check.NEAR["float32"], f"the first loss is {losses[0]}, not ln 2")
    check.require(here.cpu or losses[-1] < 0.6, f"the loss ends at {losses[-1]}")
    validations = [record for line in metrics.read_text().splitlines() if VALIDATION in (record := json.loads(line))]
    check.require(bool(validations), f"{metrics} has no {VALIDATION}")
    validation, accuracy = validations[-1][VALIDATION], validations[-1]["validation-default/accuracy"]
    check.require(here.cpu or accuracy > 0.9, f"held-out pairs are told apart at {accuracy}")
    (latest,) = here.folder.glob(".nemotron/jobs/*/checkpoint_megatron/latest_checkpointed_iteration.txt")
    check.require(latest.read_text().strip().isdigit(), f"{latest} names no iteration")
    check.tell(here, loss=f"{losses[0]:.4f} -> {losses[-1]:.4f}", validation_loss=validation, validation_accuracy=accuracy)


def _short(folder: Path) -> list[str]:
    """Two steps of the random policy on few pairs: what fine-tuning is, the other tests see."""
    argv = [sys.executable, "-m", "nemotron_dpo.steps.tiny_policy", str(DATA), "-o", str(folder / "policy")]
    subprocess.run(argv, check=True)
    few = ["data.train.limit=32", "data.validation.limit=32"]
    return [f"policy.model_name={folder / 'policy'}", "dpo.max_num_steps=2", "dpo.val_period=2", *few]


def _own_cache(folder: Path) -> dict[str, str]:
    return {**os.environ, "XDG_CACHE_HOME": str(with_kernels(folder / "cache"))}


if __name__ == "__main__":
    main()
