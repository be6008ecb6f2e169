"""Memory of a run's fullest rank by its sizes. Imports no torch.

Counted, as of a rank of the first pipeline stage, whichever stage's layers take most:
  weights     in the run's precision
  optimizer   AdamW's two float32 moments, and below float32 a float32 master copy, divided over the data-parallel ranks where
              the optimizer is distributed; like gradients, of weights that are trained
  gradients   float32, or the weights' precision without grad_reduce_in_fp32
  activations what each kind of layer says that it keeps of a row for its backward pass, and the most that one layer's backward
              pass takes beside it; on a CPU half as much again, which lies between them in malloc's heap (in use 300 MB, grown
              by 450 MB, as it keeps what was freed), or a seventh of layers that free little in between
  logits      those of response tokens, as many as are kept at once, a block of them in float32 and the gradients of its tokens;
              all tokens of a row are taken to be responses, and blocks to be as small as on a CPU
  base        the interpreter, torch and megatron-core as loaded, measured on a CPU
Not counted: what saving and loading take beside the weights, buffers of collectives, the imbalance of experts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from nemotron_dpo.policy.architecture import Architecture, Layer
from nemotron_dpo.policy.lora_targets import adapter_parameters
from nemotron_dpo.policy.sublayers.sublayer import FLOAT_BYTES, Kept
from nemotron_dpo.steps.estimate.sizes import Sizes

LOGITS_TOKENS, LOGITS_ENTRIES = 4096, 2048  # of a block of kernels.logits


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank."""

    weights: float
    optimizer: float
    gradients: float
    activations: float
    logits: float
    base: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.weights + self.optimizer + self.gradients + self.activations + self.logits + self.base


def memory(architecture: Architecture, sizes: Sizes) -> Memory:
    """Of the fullest rank, at the most that a training step takes. Raises UserError where stages cannot share the layers."""
    stages = sizes.layout.stages(len(architecture.layers))
    return max((_of_stage(architecture, sizes, stage) for stage in stages), key=lambda need: need.total)


def largest_tokens(architecture: Architecture, sizes: Sizes, budget: float, most: int = 1 << 24) -> int | None:
    """The most tokens of a row, in steps of 64 up to `most`, with which a rank stays within `budget` bytes; None: none do."""
    fits: Callable[[int], bool] = lambda tokens: memory(architecture, replace(sizes, tokens=tokens)).total <= budget  # noqa: E731 - a name for the type; a line is enough
    low, high = 0, most // 64
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(64 * middle) else (low, middle - 1)
    return 64 * low or None


def _of_stage(architecture: Architecture, sizes: Sizes, stage: slice) -> Memory:
    held, experts = _held(architecture, sizes, stage)
    trained = held + experts - (_router(architecture, stage) if sizes.frozen_routers else 0)
    if sizes.lora is not None:  # tensor parallelism divides one factor of an adapter, the smaller part is taken as nothing
        trained = adapter_parameters(sizes.lora, architecture, stage) / sizes.layout.tensor
    weights = held + experts + (trained if sizes.lora is not None else 0)
    return Memory(
        weights=sizes.width * weights,
        optimizer=(8 if sizes.width == FLOAT_BYTES else 12) * _owned(trained, experts, sizes),
        gradients=(FLOAT_BYTES if sizes.grads_in_fp32 else sizes.width) * trained,
        activations=_activations(architecture, sizes, architecture.layers[stage]),
        logits=_logits(architecture, sizes),
        base=sizes.base_bytes,
    )


def _held(architecture: Architecture, sizes: Sizes, stage: slice) -> tuple[float, float]:
    """(parameters of a rank besides experts, those of its experts)."""
    layout = sizes.layout
    parts = [sublayer.parameters(architecture) for layer in architecture.layers[stage] for sublayer in layer.sublayers]
    once = architecture.tied_embeddings or layout.pipeline > 1
    embeddings = architecture.vocab_size * architecture.hidden_size * (1 if once else 2) / layout.tensor
    dense = sum(part.split for part in parts) / layout.tensor + sum(part.whole for part in parts)
    return dense + embeddings, sum(part.experts for part in parts) / layout.expert_replica


def _router(architecture: Architecture, stage: slice) -> int:
    """Parameters of the routers, which every rank of the stage holds whole."""
    layers = architecture.layers[stage]
    return sum(sublayer.parameters(architecture).router for layer in layers for sublayer in layer.sublayers)


def _owned(trained: float, experts: float, sizes: Sizes) -> float:
    """The trained parameters whose optimizer state a rank keeps."""
    layout, replicas = sizes.layout, sizes.copies * sizes.layout.context
    if not sizes.distributed:
        return trained
    if sizes.lora is not None:
        return trained / replicas
    expert_copies = max(1, replicas * layout.tensor // layout.expert_replica)
    return (trained - experts) / replicas + experts / expert_copies


def _activations(architecture: Architecture, sizes: Sizes, layers: tuple[Layer, ...]) -> float:
    """Kept for the backward pass of all rows in flight, and what the backward pass of one layer takes."""
    layout, width, tokens = sizes.layout, sizes.width, sizes.tokens / sizes.layout.context
    parts = [[(sublayer, sublayer.kept(architecture, layout, width)) for sublayer in layer.sublayers] for layer in layers]
    whole = [tokens * sum(_in_heap(kept, sizes, kept.total) for _, kept in layer) for layer in parts]
    entry = sizes.spread * tokens * width * architecture.hidden_size / (layout.tensor if layout.sequence else 1)
    if sizes.whole_layers:
        unit = sizes.recompute.num_layers if sizes.recompute is not None else 1
        starts = range(0, len(layers), unit)
        kept = len(starts) * entry * sizes.in_flight + max((sum(whole[start : start + unit]) for start in starts), default=0)
    else:
        again = [
            tokens * sum(_in_heap(kept, sizes, kept.own) for part, kept in layer if part.module in sizes.again)
            for layer in parts
        ]
        kept = (sum(whole) - sum(again)) * sizes.in_flight + max(again, default=0)
    return kept + 3 * entry + sizes.spread * tokens * _beside(architecture, sizes, layers)


def _in_heap(kept: Kept, sizes: Sizes, size: float) -> float:
    """What `size` bytes of those that are kept take."""
    return size * (sizes.spread if kept.is_scattered else sizes.compact)


def _beside(architecture: Architecture, sizes: Sizes, layers: tuple[Layer, ...]) -> float:
    """Bytes a token that the backward pass of one sublayer, or of a norm, takes at most."""
    kinds = {sublayer for layer in layers for sublayer in layer.sublayers}
    norm = 4 * FLOAT_BYTES * architecture.hidden_size
    return max([norm, *(kind.beside(architecture, sizes.layout, sizes.width) for kind in kinds)])


def _logits(architecture: Architecture, sizes: Sizes) -> float:
    """What is kept of logits, a block of them, and what the gradient of the tokens in it takes beside it."""
    tokens, entries = min(LOGITS_TOKENS, sizes.tokens), architecture.vocab_size / sizes.layout.tensor
    block = FLOAT_BYTES * min(LOGITS_ENTRIES, entries)
    gradient = architecture.hidden_size * (2 * FLOAT_BYTES + 2 * sizes.width)
    return min(sizes.tokens * entries * sizes.width, sizes.logits_bytes) + tokens * (block + gradient)
