"""Sequences of 8192 tokens through a policy of Llama-3.2-1B's shape in bfloat16: seconds, memory, and the first loss."""

from __future__ import annotations

import check


def main() -> None:
    """8 pairs of 4096 + 4096 tokens, 4 a step; on a CPU a million parameters and an eighth of the length."""
    here = check.begin(__doc__)
    size, half, count = ("1M", 512, 2) if here.cpu else ("1B", 4096, 8)
    model = check.policy(here.folder / "policy", size, f"{half},{half},{count}")
    scored, run_dir, batch = here.folder / "scored.arrow", here.folder / "run", count // 2
    check.run("ref-logprobs", model / f"{half}-{half}-{count}.arrow", "-o", scored, "--policy", model)
    settings = (
        f"policy.train_global_batch_size={batch}",
        f"policy.max_total_sequence_length={2 * half}",
        "policy.scheduler.warmup_steps=0",
        "policy.optimizer.lr=1e-6",
        "dpo.max_num_epochs=2",
        f"dpo.max_num_steps={2 if here.cpu else 4}",
        "checkpointing.enabled=false",
    )
    check.run("dpo-train", scored, "--policy", model, "--run-dir", run_dir, *settings)
    losses = check.curve(run_dir)
    check.require(abs(losses[0] - check.LN2) < 4 * check.NEAR["bfloat16"], f"the first loss is {losses[0]}, not ln 2")
    figures = check.step_figures(run_dir, batch)
    tokens = float(figures["pairs/s"]) * 3 * half  # type: ignore[arg-type] - the prompt is computed once
    check.tell(here, length=2 * half, loss=f"{losses[0]:.4f} -> {losses[-1]:.4f}", **figures, **{"tokens/s": tokens})


if __name__ == "__main__":
    main()
