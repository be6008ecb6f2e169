"""A mixture of experts, whose products a GPU groups: scored, trained, repeated to the last bit, near a CPU's losses."""

from __future__ import annotations

from pathlib import Path

import check
from resume_export import COMMON


def main() -> None:
    """Both precisions; on a CPU one, once."""
    here = check.begin(__doc__)
    model = check.policy(here.folder / "policy", "1M", "24,20,24", experts=8)
    precisions = ("bfloat16",) if here.cpu else ("bfloat16", "float32")
    told: dict[str, object] = {}
    check.at_once(*[lambda p=precision: told.update(_of(p, model, here)) for precision in precisions])
    check.tell(here, **told)


def _of(precision: str, model: Path, here: check.Check) -> dict[str, object]:
    folder = here.folder / precision
    folder.mkdir()
    scored = folder / "scored.arrow"
    check.run("ref-logprobs", model / "24-20-24.arrow", "-o", scored, "--policy", model, "--precision", precision)
    base = ("dpo-train", scored, "--policy", model, f"policy.precision={precision}", *COMMON, "checkpointing.enabled=false")
    once, again, cpu = (folder / name for name in ("once", "again", "cpu"))
    jobs = [lambda: check.run(*base, "--run-dir", once)]
    if not here.cpu:
        jobs.append(lambda: check.run(*base, "--run-dir", again))
        jobs.append(lambda: check.run(*base, "--run-dir", cpu, env=check.NO_GPU))
    check.at_once(*jobs)
    losses = check.curve(once)
    check.require(abs(losses[0] - check.LN2) < check.NEAR[precision], f"{precision}: the first loss is {losses[0]}")
    check.require(losses[-1] < losses[0] - 0.01, f"{precision}: the loss does not fall: {losses}")
    told: dict[str, object] = {precision: f"loss {losses[0]:.4f} -> {losses[-1]:.4f}"}
    if here.cpu:
        return told
    check.require(check.numbers(again) == check.numbers(once), f"{precision}: repeated, the numbers differ")
    off = check.near(losses, check.curve(cpu))
    check.require(off < check.NEAR_CPU[precision], f"{precision}: losses are {off} from the CPU's: {losses}")
    return {**told, f"{precision}_off_cpu": off}


if __name__ == "__main__":
    main()
