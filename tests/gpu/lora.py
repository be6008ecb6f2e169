"""Adapters: trained, repeated to the last bit, near a CPU's losses, merged with verified scores, and as a PEFT folder."""

from __future__ import annotations

import check
from resume_export import COMMON

LORA = "policy.megatron_cfg.peft={enabled: true, dim: 8, alpha: 16}"


def main() -> None:
    """On a CPU one run and its merging."""
    here = check.begin(__doc__)
    model = check.policy(here.folder / "policy", "1M", "24,20,24")
    scored = here.folder / "scored.arrow"
    once, again, cpu = (here.folder / name for name in ("once", "again", "cpu"))
    check.run("ref-logprobs", model / "24-20-24.arrow", "-o", scored, "--policy", model)
    base = ("dpo-train", scored, "--policy", model, *COMMON, LORA, "policy.optimizer.lr=0.005")
    jobs = [lambda: check.run(*base, "--run-dir", once)]
    if not here.cpu:
        jobs.append(lambda: check.run(*base, "--run-dir", again))
        jobs.append(lambda: check.run(*base, "--run-dir", cpu, env=check.NO_GPU))
    check.at_once(*jobs)
    losses = check.curve(once)
    check.require(losses[-1] < losses[0] - 0.01, f"the loss does not fall: {losses}")
    told: dict[str, object] = {"loss": f"{losses[0]:.4f} -> {losses[-1]:.4f}"}
    exports = [("hf", "--verify", "4")] if here.cpu else [("hf", "--verify", "4"), ("peft",)]
    check.at_once(*[lambda t=to: check.run("ckpt-export", once, "-o", here.folder / t[0], "--to", *t) for to in exports])
    if not here.cpu:
        check.require(check.numbers(again) == check.numbers(once), "repeated, the numbers differ")
        told["off_cpu"] = off = check.near(losses, check.curve(cpu))
        check.require(off < check.NEAR_CPU["bfloat16"], f"losses are {off} from the CPU's: {losses}")
        check.require((here.folder / "peft" / "adapter_config.json").is_file(), "the PEFT folder has no adapter_config.json")
    check.tell(here, **told)


if __name__ == "__main__":
    main()
