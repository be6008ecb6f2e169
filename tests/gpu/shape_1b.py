"""The chain on a policy of Llama-3.2-1B's shape in bfloat16: scored twice alike, trained, saved, exported, verified."""

from __future__ import annotations

import check


def main() -> None:
    """64 pairs of 1024 tokens; on a CPU a million parameters and 8 short pairs."""
    here = check.begin(__doc__)
    size, prompt, response, count, batch = ("1M", 32, 24, 8, 4) if here.cpu else ("1B", 256, 768, 64, 32)
    model = check.policy(here.folder / "policy", size, f"{prompt},{response},{count}")
    pairs, scored, run_dir = model / f"{prompt}-{response}-{count}.arrow", here.folder / "scored.arrow", here.folder / "run"
    seconds = check.run("ref-logprobs", pairs, "-o", scored, "--policy", model)
    if not here.cpu:
        again = here.folder / "again.arrow"
        check.run("ref-logprobs", pairs, "-o", again, "--policy", model)
        check.require(scored.read_bytes() == again.read_bytes(), "scored again, otherwise")
    settings = (
        f"policy.train_global_batch_size={batch}",
        "policy.scheduler.warmup_steps=0",
        "policy.optimizer.lr=1e-5",
        "dpo.max_num_epochs=2",
        "dpo.max_num_steps=4",
    )
    check.run("dpo-train", scored, "--policy", model, "--run-dir", run_dir, *settings)
    losses = check.curve(run_dir)
    check.require(abs(losses[0] - check.LN2) < check.NEAR["bfloat16"], f"the first loss is {losses[0]}, not ln 2")
    check.require(losses[-1] < losses[0], f"the loss does not fall: {losses}")
    check.run("ckpt-export", run_dir, "-o", here.folder / "hf", "--to", "hf", "--verify", "2")
    figures = check.step_figures(run_dir, batch)
    check.tell(here, loss=f"{losses[0]:.4f} -> {losses[-1]:.4f}", scoring_seconds=seconds, **figures)


if __name__ == "__main__":
    main()
