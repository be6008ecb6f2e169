"""Runs repeat, resume and score again to the last bit, in both precisions, near a CPU's losses; so does what is exported.

The run that is resumed is stopped after its first step by checkpoint_must_save_by, which no start is fast enough for. The
policy that was trained in bfloat16 is exported to Hugging Face's format, imported and exported again, to the same bytes.
"""

from __future__ import annotations

from pathlib import Path

import check

STEPS = 6
COMMON = (
    "policy.train_global_batch_size=8",
    "policy.max_total_sequence_length=128",
    "policy.scheduler.warmup_steps=0",
    "policy.optimizer.lr=0.001",
    f"dpo.max_num_steps={STEPS}",
    "dpo.max_num_epochs=2",
    "checkpointing.save_period=3",
    "checkpointing.keep_top_k=null",
    "checkpointing.save_optimizer=true",
)
CUT = "checkpointing.checkpoint_must_save_by=00:00:00:00"


def main() -> None:
    """On a CPU one precision, and nothing to compare it with."""
    here = check.begin(__doc__)
    model = check.policy(here.folder / "policy", "1M", "24,20,24")
    precisions = ("bfloat16",) if here.cpu else ("bfloat16", "float32")
    told: dict[str, object] = {}
    check.at_once(*[lambda p=precision: told.update(_of(p, model, here)) for precision in precisions])
    told["exported"] = _export(here.folder / "bfloat16" / "whole", model, here)
    check.tell(here, **told)


def _of(precision: str, model: Path, here: check.Check) -> dict[str, object]:
    folder = here.folder / precision
    folder.mkdir()
    scored = [folder / name for name in ("scored.arrow", "again.arrow")]
    score = ("ref-logprobs", model / "24-20-24.arrow", "--policy", model, "--precision", precision)
    for out in scored[: 1 if here.cpu else 2]:
        check.run(*score, "-o", out)
    check.require(here.cpu or scored[0].read_bytes() == scored[1].read_bytes(), f"{precision}: scored again, otherwise")
    base = ("dpo-train", scored[0], "--policy", model, f"policy.precision={precision}", *COMMON)
    whole, cut, again, cpu = (folder / name for name in ("whole", "cut", "again", "cpu"))
    others = [] if here.cpu else [lambda: check.run(*base, "--run-dir", again)]
    check.at_once(lambda: check.run(*base, "--run-dir", whole), lambda: check.run(*base, CUT, "--run-dir", cut), *others)
    steps = len(check.records(cut))
    check.require(steps < STEPS, f"{precision}: the run was to be cut short and made all {STEPS} steps")
    more = [] if here.cpu else [lambda: check.run(*base, "--run-dir", cpu, env=check.NO_GPU)]
    check.at_once(lambda: check.run(*base, "--run-dir", cut), *more)
    _same(precision, "resumed", cut, whole)
    losses = check.curve(whole)
    check.require(abs(losses[0] - check.LN2) < check.NEAR[precision], f"{precision}: the first loss is {losses[0]}")
    told: dict[str, object] = {precision: f"resumed after step {steps}, bit for bit, loss {losses[0]:.4f} -> {losses[-1]:.4f}"}
    if here.cpu:
        return told
    _same(precision, "repeated", again, whole)
    off = check.near(losses, check.curve(cpu))
    check.require(off < check.NEAR_CPU[precision], f"{precision}: losses are {off} from the CPU's: {losses}")
    return {**told, f"{precision}_off_cpu": off}


def _export(run_dir: Path, model: Path, here: check.Check) -> str:
    first, megatron, second = (here.folder / name for name in ("first", "megatron", "second"))
    check.run("ckpt-export", run_dir, "-o", first, "--to", "hf")
    check.run("ckpt-export", first, "-o", megatron, "--to", "megatron", "--verify", "2")
    check.run("ckpt-export", megatron, "-o", second, "--to", "hf")
    begun, once, twice = (check.digests(folder, "*.safetensors") for folder in (model, first, second))
    check.require(once == twice, "exported, imported and exported, the weights differ")
    check.require(once != begun, "what was exported is what training began with")
    return "and imported and exported, bit for bit"


def _same(precision: str, what: str, run_dir: Path, whole: Path) -> None:
    """Every number that is no timing, and every byte of the last step's weights and optimizer."""
    check.require(check.numbers(run_dir) == check.numbers(whole), f"{precision}: {what}, the numbers differ")
    last = [check.digests(each / "checkpoints" / f"step_{STEPS}", "*.distcp") for each in (run_dir, whole)]
    check.require(last[0] == last[1], f"{precision}: {what}, the weights or the optimizer differ")


if __name__ == "__main__":
    main()
