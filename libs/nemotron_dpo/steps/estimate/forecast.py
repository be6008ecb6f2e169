"""What a dry run says of a run's cost: FLOPs, memory of a rank, and the largest micro batch that fits. Imports no torch.

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
from nemotron_dpo.steps.estimate.policy_architecture import policy_architecture
from nemotron_dpo.steps.estimate.sizes import Lengths, Sizes, batch_tokens, kind_of_memory, sizes_of
from nemotron_dpo.steps.profiles.profile import Profile
from nemotron_dpo.steps.text import counted, table

GPU_GIGABYTES = 80
_LEFT_FREE = 0.1  # of the memory, for what the estimate does not count
_COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids")


@dataclass(frozen=True)
class Budget:
    """The memory of one rank, where that is known from, and whether it is a GPU's."""

    bytes: float
    source: str
    is_gpu: bool


def forecast(run: RunConfig, profile: Profile, pairs: Path | None) -> str:
    """Some lines for a person, or why there is no estimate; `pairs` is the tokenized training set where there is one."""
    counted = _count(pairs) if pairs is not None else None
    lengths = counted[1] if counted else Lengths(0, 2 * run.policy.max_total_sequence_length)
    budget = _budget(run, profile)
    sizes = replace(sizes_of(run, lengths), **kind_of_memory(is_gpu=budget.is_gpu))
    try:
        architecture = policy_architecture(run)
        if sizes.lora is not None:
            check_targets(sizes.lora, architecture)
        rows = [
            ("policy", _policy(architecture, run)),
            ("pairs", _pairs(counted, lengths)),
            *_flops(run, architecture, sizes, lengths, counted[0] if counted else None),
            ("memory", _memory(architecture, sizes)),
            ("largest row", _largest(run, architecture, sizes, lengths, budget)),
        ]
    except (UserError, OSError) as error:
        return f"none: {error}"
    return table(rows)


def _policy(architecture: Architecture, run: RunConfig) -> str:
    total, met = architecture.num_parameters(), architecture.num_parameters(met=True)
    active = f", of which a token meets {_count_of(met)}" if met < total else ""
    return f"{architecture.family}, {_count_of(total)} parameters{active}, trained in {run.policy.precision}"


def _pairs(counted: tuple[int, Lengths] | None, lengths: Lengths) -> str:
    if counted is None:
        return f"not tokenized yet: taken to be as long as they may, {lengths.responses / 2:.0f} tokens a response"
    means = f"{lengths.prompt:.0f} tokens of prompt and {lengths.responses:.0f} of both responses"
    return f"{counted[0]} as tokenized, on average {means}"


def _flops(
    run: RunConfig, architecture: Architecture, sizes: Sizes, lengths: Lengths, num_pairs: int | None
) -> Iterator[tuple[str, str]]:
    batch, steps, most = run.policy.train_global_batch_size, run.dpo.max_num_steps, "at most "
    if num_pairs is not None:
        steps, most = min(steps, run.dpo.max_num_epochs * (num_pairs // batch)), ""
    needs, names = objective_of(run.dpo).needs, " and ".join(objective_names(run.dpo))
    before = batch * flops.scoring(architecture, lengths) if needs.whole_batch else 0.0
    step = batch * flops.training(architecture, sizes, lengths) + before
    total = f"{_scaled(step * steps)}FLOP in {most}{counted(steps, 'step')}"
    first = f"; {_scaled(before)}FLOP of a step are a forward pass before it, for {names}" if before else ""
    yield "training", f"{_scaled(step)}FLOP a step of {counted(batch, 'pair')}, {total}{first}"
    if needs.reference:
        pair = flops.scoring(architecture, lengths)
        total = f", {_scaled(pair * num_pairs)}FLOP in all" if num_pairs is not None else ""
        yield "reference", f"{_scaled(pair)}FLOP a pair{total}"
    else:
        yield "reference", f"not scored: no reference is needed by {names}"


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
    told = ", ".join(f"{name} {_scaled(size)}B" for name, size in parts.items())
    return f"{_scaled(need.total)}B a rank in rows of {sizes.tokens} tokens: {told}"


def _largest(run: RunConfig, architecture: Architecture, sizes: Sizes, lengths: Lengths, budget: Budget) -> str:
    tokens = memory.largest_tokens(architecture, sizes, budget.bytes * (1 - _LEFT_FREE))
    where = f"in {_scaled(budget.bytes)}B a rank ({budget.source}), a tenth left free"
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


def _budget(run: RunConfig, profile: Profile) -> Budget:
    stated = profile.settings.get("gpu_memory_gb")
    if stated:
        return Budget(1e9 * float(stated), f"gpu_memory_gb of profile {profile.name}", is_gpu=True)
    if profile.executor != "local" or Path("/dev/nvidia0").exists():
        source = f"assumed: {GPU_GIGABYTES} GB a GPU, unless a profile's gpu_memory_gb says otherwise"
        return Budget(1e9 * GPU_GIGABYTES, source, is_gpu=True)
    ranks = run.cluster.gpus_per_node
    return Budget(_ram() / ranks, f"this machine's, over {ranks} rank{'s' * (ranks > 1)}", is_gpu=False)


def _ram(path: Path = Path("/proc/meminfo")) -> float:
    """Bytes of this machine's memory."""
    (line,) = [line for line in path.read_text(encoding="ascii").splitlines() if line.startswith("MemTotal:")]
    return 1024.0 * int(line.split()[1])


def _count_of(number: float) -> str:
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.0f}"


def _scaled(number: float) -> str:
    """Three digits and a unit's prefix."""
    for size, prefix in ((1e21, "Z"), (1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if number >= 0.9995 * size:
            return f"{float(f'{number / size:.3g}'):g} {prefix}"
    return f"{number / 1e3:.0f} k"
