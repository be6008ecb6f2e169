"""What a dry run says of a run's cost: FLOPs, memory of a rank, and the largest micro batch that fits. Imports no torch.

Lengths are those of the tokenized pairs where these are up to date, else the most that the config allows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from nemotron_dpo.config import RunConfig, objective_of
from nemotron_dpo.errors import UserError
from nemotron_dpo.policy.architecture import Architecture
from nemotron_dpo.steps.estimate import costs as estimate
from nemotron_dpo.steps.estimate.costs import Lengths, Sizes
from nemotron_dpo.steps.estimate.policy_architecture import policy_shape
from nemotron_dpo.steps.profiles.profile import Profile
from nemotron_dpo.steps.text import table

GPU_GIGABYTES = 80
_LEFT_FREE = 0.1  # of the memory, for what the estimate does not count
_COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids")


@dataclass(frozen=True)
class Room:
    """The memory of one rank, where that is known from, and whether it is a GPU's."""

    bytes: float
    source: str
    is_gpu: bool

    @property
    def kind(self) -> dict[str, Any]:
        """What a process takes there before it does anything, how activations lie there, and how many logits are kept."""
        if self.is_gpu:
            return {"base_bytes": estimate.GPU_BASE_BYTES, "spread": 1.0, "logits_bytes": estimate.GPU_LOGITS_BYTES}
        return {}  # as Sizes has it


def forecast(run: RunConfig, profile: Profile, pairs: Path | None) -> str:
    """Some lines for a person, or why there is no estimate; `pairs` is the tokenized training set where there is one."""
    try:
        shape = policy_shape(run)
    except (UserError, OSError) as error:
        return f"none: {error}"
    counted = _count(pairs) if pairs is not None else None
    lengths = counted[1] if counted else Lengths(0, 2 * run.policy.max_total_sequence_length)
    room = _room(run, profile)
    sizes = replace(sizes_of(run, shape, lengths), **room.kind)
    rows = [
        ("policy", _policy(shape, run)),
        ("pairs", _pairs(counted, lengths)),
        *_flops(run, shape, sizes, lengths, counted[0] if counted else None),
        ("memory", _memory(shape, sizes)),
        ("largest row", _largest(run, shape, sizes, lengths, room)),
    ]
    return table(rows)


def sizes_of(run: RunConfig, shape: Architecture, lengths: Lengths) -> Sizes:
    """How `run` divides and keeps the policy `shape`, on its fullest rank."""
    megatron = run.policy.megatron_cfg
    tensor, pipeline, context = (
        megatron.tensor_model_parallel_size,
        megatron.pipeline_model_parallel_size,
        megatron.context_parallel_size,
    )
    copies = max(1, run.cluster.gpus_per_node * run.cluster.num_nodes // (tensor * pipeline * context))
    tokens = _row_tokens(run, lengths, copies)
    recomputed, unit = _recomputed(run)
    return Sizes(
        precision=run.policy.precision,
        tokens=tokens,
        tensor=tensor,
        pipeline=pipeline,
        context=context,
        expert=megatron.expert_model_parallel_size,
        expert_tensor=megatron.expert_tensor_parallel_size or tensor,
        copies=copies,
        sequence=megatron.sequence_parallel,
        layers=_fullest_stage(run, shape.num_layers),
        in_flight=max(1, min(pipeline, round(_batch_tokens(run, lengths, copies) / tokens))),
        distributed=megatron.use_distributed_optimizer,
        grads_in_fp32=megatron.grad_reduce_in_fp32,
        recomputed=recomputed,
        unit=unit,
        adapter_rank=megatron.peft.dim if megatron.peft.enabled else None,
        adapted=_adapted(run, shape),
    )


def _policy(shape: Architecture, run: RunConfig) -> str:
    active = f", of which a token meets {_count_of(estimate.num_parameters(shape, active=True))}" if shape.experts else ""
    return f"{shape.family}, {_count_of(estimate.num_parameters(shape))} parameters{active}, trained in {run.policy.precision}"


def _pairs(counted: tuple[int, Lengths] | None, lengths: Lengths) -> str:
    if counted is None:
        return f"not tokenized yet: taken to be as long as they may, {lengths.responses / 2:.0f} tokens a response"
    means = f"{lengths.prompt:.0f} tokens of prompt and {lengths.responses:.0f} of both responses"
    return f"{counted[0]} as tokenized, on average {means}"


def _flops(
    run: RunConfig, shape: Architecture, sizes: Sizes, lengths: Lengths, num_pairs: int | None
) -> Iterator[tuple[str, str]]:
    batch, steps, most = run.policy.train_global_batch_size, run.dpo.max_num_steps, "at most "
    if num_pairs is not None:
        steps, most = min(steps, run.dpo.max_num_epochs * (num_pairs // batch)), ""
    step = batch * estimate.training_flops(shape, sizes, lengths)
    yield "training", f"{_scaled(step)}FLOP a step of {batch} pairs, {_scaled(step * steps)}FLOP in {most}{steps} steps"
    if objective_of(run.dpo).needs.reference:
        pair = estimate.scoring_flops(shape, lengths)
        total = f", {_scaled(pair * num_pairs)}FLOP in all" if num_pairs is not None else ""
        yield "reference", f"{_scaled(pair)}FLOP a pair{total}"


def _memory(shape: Architecture, sizes: Sizes) -> str:
    need = estimate.memory(shape, sizes)
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


def _largest(run: RunConfig, shape: Architecture, sizes: Sizes, lengths: Lengths, room: Room) -> str:
    tokens = estimate.largest_tokens(shape, sizes, room.bytes * (1 - _LEFT_FREE))
    where = f"in {_scaled(room.bytes)}B a rank ({room.source}), a tenth left free"
    if tokens is None:
        return f"none fits {where}"
    whole = _batch_tokens(run, lengths, sizes.copies)
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


def _room(run: RunConfig, profile: Profile) -> Room:
    stated = profile.settings.get("gpu_memory_gb")
    if stated:
        return Room(1e9 * float(stated), f"gpu_memory_gb of profile {profile.name}", is_gpu=True)
    if profile.executor != "local" or Path("/dev/nvidia0").exists():
        source = f"assumed: {GPU_GIGABYTES} GB a GPU, unless a profile's gpu_memory_gb says otherwise"
        return Room(1e9 * GPU_GIGABYTES, source, is_gpu=True)
    ranks = run.cluster.gpus_per_node
    return Room(_ram() / ranks, f"this machine's, over {ranks} rank{'s' * (ranks > 1)}", is_gpu=False)


def _ram(path: Path = Path("/proc/meminfo")) -> float:
    """Bytes of this machine's memory."""
    (line,) = [line for line in path.read_text(encoding="ascii").splitlines() if line.startswith("MemTotal:")]
    return 1024.0 * int(line.split()[1])


def _batch_tokens(run: RunConfig, lengths: Lengths, copies: int) -> float:
    """Tokens of one rank's part of a global batch."""
    return max(1, run.policy.train_global_batch_size // copies) * lengths.pair


def _row_tokens(run: RunConfig, lengths: Lengths, copies: int) -> int:
    """Tokens of a full row: no more than a rank has of a batch, no less than a pair."""
    policy = run.policy
    if not policy.sequence_packing.enabled:
        return round(policy.train_micro_batch_size * lengths.pair)
    limit = policy.sequence_packing.train_mb_tokens or max(2048, 2 * policy.max_total_sequence_length)
    return round(max(lengths.pair, min(limit, _batch_tokens(run, lengths, copies))))


def _fullest_stage(run: RunConfig, num_layers: int) -> int:
    """Layers of the pipeline stage that has most."""
    megatron = run.policy.megatron_cfg
    ends = (megatron.num_layers_in_first_pipeline_stage, megatron.num_layers_in_last_pipeline_stage)
    named = [layers for layers in ends if layers is not None]
    stages = megatron.pipeline_model_parallel_size - len(named)
    rest = -(-max(0, num_layers - sum(named)) // stages) if stages > 0 else 0
    return max([rest, *named])


def _recomputed(run: RunConfig) -> tuple[frozenset[str], int]:
    """What is computed again in the backward pass, and how many layers at a time; as wiring.recompute has it."""
    megatron = run.policy.megatron_cfg
    if not megatron.activation_checkpointing:
        return frozenset(), 1
    if megatron.recompute_granularity == "selective":
        return frozenset(megatron.recompute_modules or ("core_attn",)), 1
    return frozenset({"layer"}), megatron.recompute_num_layers or 1


def _adapted(run: RunConfig, shape: Architecture) -> frozenset[str]:
    """The kinds of linear layers that adapters are put beside; of patterns over whole names the last part counts."""
    peft = run.policy.megatron_cfg.peft
    names = frozenset(estimate.linears(shape))

    def matched(patterns: tuple[str, ...]) -> frozenset[str]:
        return frozenset(name for name in names for pattern in patterns if fnmatchcase(name, pattern.rpartition(".")[2]))

    return matched(peft.target_modules) if peft.target_modules else names - matched(peft.exclude_modules)


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
