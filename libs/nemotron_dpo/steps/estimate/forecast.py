"""What a dry run says of a run's cost: FLOPs, time, memory of a rank, the largest micro batch, disk. Imports no torch.

Lengths are those of the tokenized pairs where these are up to date, else the most that the config allows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from nemotron_dpo.config import RunConfig, objective_names, objective_of
from nemotron_dpo.errors import UserError
from nemotron_dpo.policy.architecture import Architecture
from nemotron_dpo.policy.lora_targets import check_targets
from nemotron_dpo.steps.estimate import flops, memory
from nemotron_dpo.steps.estimate.budget import Budget, budget_of
from nemotron_dpo.steps.estimate.disk import DiskNeed, checkpoints_folder, disk_need, free_bytes
from nemotron_dpo.steps.estimate.policy_architecture import policy_architecture
from nemotron_dpo.steps.estimate.quantities import rounded, scaled, spoken_seconds
from nemotron_dpo.steps.estimate.sizes import Lengths, Sizes, batch_tokens, kind_of_memory, sizes_of
from nemotron_dpo.steps.estimate.speed import Speed, speed_of
from nemotron_dpo.steps.profiles.profile import Profile
from nemotron_dpo.steps.text import table
from nemotron_dpo.wording import counted

_LEFT_FREE = 0.1  # of the memory, for what the estimate does not count
_COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids")


_LONG = 1e14  # FLOP: some minutes of a CPU, for which its speed is worth the seconds that measuring it takes
_SHORT = 10.0  # seconds


def expected_time(run: RunConfig, profile: Profile, pairs: Path, *, is_scored: bool) -> str | None:
    """How long the run is going to take on these tokenized pairs.

    None where that is not known or does not matter: a short run takes most of its time to start.
    """
    counted = _count(pairs)
    if counted is None:
        return None
    try:
        sizes = replace(sizes_of(run, counted[1]), **kind_of_memory(is_gpu=budget_of(run, profile).is_gpu))
        work = _work(run, policy_architecture(run), sizes, counted[1], counted[0])
    except (UserError, OSError):  # the policy is not here yet, or is none: the stages say so
        return None
    work = replace(work, pair=0.0) if is_scored else work
    flop = work.step * work.steps + (work.scoring or 0.0)
    speed = speed_of(run, profile, measures=flop > _LONG)
    return None if speed is None or flop < _SHORT * speed.flops else _spoken_time(work, speed)


def forecast(run: RunConfig, profile: Profile, pairs: Path | None) -> str:
    """Some lines for a person, or why there is no estimate; `pairs` is the tokenized training set where there is one."""
    counted = _count(pairs) if pairs is not None else None
    lengths = counted[1] if counted else Lengths(0, 2 * run.policy.max_total_sequence_length)
    budget = budget_of(run, profile)
    sizes = replace(sizes_of(run, lengths), **kind_of_memory(is_gpu=budget.is_gpu))
    try:
        architecture = policy_architecture(run)
        if sizes.lora is not None:
            check_targets(sizes.lora, architecture)
        work = _work(run, architecture, sizes, lengths, counted[0] if counted else None)
        rows = [
            ("policy", _policy(architecture, run)),
            ("pairs", _pairs(counted, lengths)),
            *_flops(run, work),
            ("time", _time(run, profile, work)),
            ("memory", _memory(architecture, sizes)),
            ("largest row", _largest(run, architecture, sizes, lengths, budget)),
            ("disk", _disk(run, profile, disk_need(run, architecture, sizes, work.steps))),
        ]
    except (UserError, OSError) as error:
        return f"none: {error}"
    return table(rows)


def _policy(architecture: Architecture, run: RunConfig) -> str:
    total, met = architecture.num_parameters(), architecture.num_parameters(met=True)
    active = f", of which a token meets {rounded(met)}" if met < total else ""
    return f"{architecture.family}, {rounded(total)} parameters{active}, trained in {run.policy.precision}"


def _pairs(counted: tuple[int, Lengths] | None, lengths: Lengths) -> str:
    if counted is None:
        return f"not tokenized yet: taken to be as long as they may, {lengths.responses / 2:.0f} tokens a response"
    means = f"{lengths.prompt:.0f} tokens of prompt and {lengths.responses:.0f} of both responses"
    return f"{counted[0]} as tokenized, on average {means}"


def short_of_disk(run: RunConfig) -> list[str]:
    """A line where the checkpoints of `run` may take more of this machine's disk than is free."""
    lengths = Lengths(0, 2 * run.policy.max_total_sequence_length)
    try:
        need = disk_need(run, policy_architecture(run), sizes_of(run, lengths), run.dpo.max_num_steps)
        free = free_bytes(checkpoints_folder(run))
    except (UserError, OSError):  # the policy is not here yet, or its folder cannot be looked into: the stages say so
        return []
    if need is None or need.total <= free:
        return []
    what = f"up to {need.most} checkpoints of {scaled(need.checkpoint)}B and an export of {scaled(need.export)}B"
    remedy = "lower checkpointing.keep_top_k, or let checkpointing.checkpoint_dir name a larger disk"
    return [f"{what} may not fit: {scaled(free)}B are free in {checkpoints_folder(run).absolute()}: {remedy}"]


@dataclass(frozen=True)
class RunFlops:
    """FLOPs of a step, of the forward pass before it where there is one, of scoring a pair (0 where nothing is scored).

    `num_pairs` is None where the pairs are not tokenized yet, and `steps` the most that there can be.
    """

    step: float
    before: float
    pair: float
    steps: int
    num_pairs: int | None

    @property
    def scoring(self) -> float | None:
        """FLOPs of scoring all pairs, None where their number is not known."""
        return None if self.num_pairs is None else self.pair * self.num_pairs


def _work(run: RunConfig, architecture: Architecture, sizes: Sizes, lengths: Lengths, num_pairs: int | None) -> RunFlops:
    batch, steps, needs = run.policy.train_global_batch_size, run.dpo.max_num_steps, objective_of(run.dpo).needs
    if num_pairs is not None:
        steps = min(steps, run.dpo.max_num_epochs * (num_pairs // batch))
    scoring = flops.scoring(architecture, lengths)
    before = batch * scoring if needs.whole_batch else 0.0
    step = batch * flops.training(architecture, sizes, lengths) + before
    return RunFlops(step, before, scoring if needs.reference else 0.0, steps, num_pairs)


def _flops(run: RunConfig, work: RunFlops) -> Iterator[tuple[str, str]]:
    batch, most, names = run.policy.train_global_batch_size, _most(work), " and ".join(objective_names(run.dpo))
    total = f"{scaled(work.step * work.steps)}FLOP in {most}{counted(work.steps, 'step')}"
    first = f"; {scaled(work.before)}FLOP of a step are a forward pass before it, for {names}" if work.before else ""
    yield "training", f"{scaled(work.step)}FLOP a step of {counted(batch, 'pair')}, {total}{first}"
    if work.pair:
        total = f", {scaled(work.scoring)}FLOP in all" if work.scoring is not None else ""
        yield "reference", f"{scaled(work.pair)}FLOP a pair{total}"
    else:
        yield "reference", f"not scored: no reference is needed by {names}"


def _most(work: RunFlops) -> str:
    return "at most " if work.num_pairs is None else ""


def _time(run: RunConfig, profile: Profile, work: RunFlops) -> str:
    """Of the FLOPs alone: loading, validating and saving come to it."""
    speed = speed_of(run, profile)
    return "not known: no speed of these devices is known here" if speed is None else _spoken_time(work, speed)


def _spoken_time(work: RunFlops, speed: Speed) -> str:
    scoring = f" and {spoken_seconds(work.scoring / speed.flops)} of scoring" if work.scoring else ""
    training = f"{_most(work)}about {spoken_seconds(work.step * work.steps / speed.flops)} of training"
    return f"{training}{scoring}, at {speed.source}"


def _disk(run: RunConfig, profile: Profile, need: DiskNeed | None) -> str:
    if need is None:
        return "nothing is saved but the records of the run"
    kept = f"{scaled(need.checkpoint)}B a checkpoint, at most {need.most} at once, and {scaled(need.export)}B of the export"
    free = f"; {scaled(free_bytes(checkpoints_folder(run)))}B are free" if profile.executor == "local" else ""
    return f"{scaled(need.total)}B: {kept}{free}"


def _memory(architecture: Architecture, sizes: Sizes) -> str:
    need = memory.memory(architecture, sizes)
    parts = {
        "weights": need.weights,
        "master weights and moments" if sizes.width == 2 else "moments": need.optimizer,
        "gradients": need.gradients,
        "activations": need.activations,
        "logits": need.logits,
        "base": need.base,
    }
    told = ", ".join(f"{name} {scaled(size)}B" for name, size in parts.items())
    return f"{scaled(need.total)}B a rank in rows of {sizes.tokens} tokens: {told}"


def _largest(run: RunConfig, architecture: Architecture, sizes: Sizes, lengths: Lengths, budget: Budget) -> str:
    tokens = memory.largest_tokens(architecture, sizes, budget.bytes * (1 - _LEFT_FREE))
    where = f"in {scaled(budget.bytes)}B a rank ({budget.source}), a tenth left free"
    if tokens is None:
        return f"none fits {where}"
    whole = batch_tokens(run, lengths, sizes.copies)
    enough = f"; {whole:.0f} hold a rank's whole part of a batch" if tokens > whole else ""
    return f"policy.sequence_packing.train_mb_tokens={tokens} fits {where}{enough}"


def _count(pairs: Path) -> tuple[int, Lengths] | None:
    """(pairs, their mean lengths) of a tokenized stream, from its offsets alone; None where it is not to be read or empty."""
    import pyarrow as pa

    rows, totals = 0, dict.fromkeys(_COLUMNS, 0)
    try:
        with pa.memory_map(str(pairs)) as file, pa.ipc.open_stream(file) as stream:
            for batch in stream:
                batch.validate(full=True)  # or offsets of a damaged file may lie anywhere
                rows += batch.num_rows
                for name in _COLUMNS if batch.num_rows else ():
                    offsets = batch.column(name).offsets
                    totals[name] += offsets[-1].as_py() - offsets[0].as_py()
    except (OSError, pa.ArrowException, KeyError, ValueError, AttributeError):
        return None
    if not rows:
        return None
    return rows, Lengths(totals["prompt_ids"] / rows, (totals["chosen_ids"] + totals["rejected_ids"]) / rows)
