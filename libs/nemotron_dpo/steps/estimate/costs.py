"""What a run costs, from its sizes alone: matrix-product FLOPs, memory of the fullest rank, the largest row that fits.

FLOPs count matrix products only, 2 for each multiplication and addition. One weight and token of a layer costs 2 forward and 4
backward (2 more where layers are computed again); so does the output layer, which runs on response tokens alone, and 2 more
under context parallelism, where it computes its logits again (as it does for a pair too long, which is not counted). A query
and a key that meet cost 4 a channel of a head forward and 10 backward (scores again, then the gradients of values,
probabilities, queries and keys). Prompts are counted once a pair. Frozen weights under adapters cost 4, without the gradient of
the weight. Only the picked experts of a mixture count. Validation, norms, rope and the optimizer do not.

Memory counts, for a rank of the first pipeline stage:
  weights     in the run's precision
  optimizer   AdamW's two float32 moments, and below float32 a float32 master copy, divided over the data-parallel ranks where
              the optimizer is distributed
  gradients   float32, or the weights' precision without grad_reduce_in_fp32
  activations what each layer keeps of a row for its backward pass: what enters the two norms and the four linear layers (but
              for what silu makes, which is made again), queries, keys and values, the first product of the feed-forward layer;
              and the most that one layer's backward pass takes beside it; on a CPU half as much again, which lies between them
              in malloc's heap (in use 300 MB, grown by 450 MB, as it keeps what was freed; one figure for all policies)
  logits      those of response tokens, as many as are kept at once, a block of them in float32 and the gradients of its tokens;
              all tokens of a row are taken to be responses, and blocks to be as small as on a CPU
  base        the interpreter, torch and megatron-core as loaded, measured on a CPU
Not counted: what saving and loading take beside the weights, buffers of collectives, the imbalance of experts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from nemotron_dpo.policy.architecture import Architecture

LOGITS_TOKENS, LOGITS_ENTRIES = 4096, 2048  # of a block of kernels.logits
CPU_LOGITS_BYTES, GPU_LOGITS_BYTES = 2**29, 2**31  # that kernels.logits keeps at once
CPU_BASE_BYTES = 400_000_000
CPU_SPREAD = 1.5  # bytes that the heap grows by for each byte of activations in use, measured
GPU_BASE_BYTES = 1_500_000_000  # a CUDA context (0.55 GB on an H100) and NCCL besides
_FLOAT = 4


@dataclass(frozen=True)
class Lengths:
    """Mean tokens of a pair: of its prompt, and of both responses together."""

    prompt: float
    responses: float

    @property
    def pair(self) -> float:
        """Tokens of a pair in a row, its prompt once."""
        return self.prompt + self.responses

    @property
    def meetings(self) -> float:
        """Queries times the keys they see: causal, both responses after the one prompt, taken as equally long."""
        response = self.responses / 2
        return self.prompt**2 / 2 + 2 * response * (self.prompt + response / 2)


@dataclass(frozen=True)
class Sizes:
    """How a run divides and keeps its policy; `tokens` are those of a row, `copies` the data-parallel replicas.

    `layers` are those of the fullest stage, `in_flight` the rows whose activations it holds at a time. `recomputed` names what
    is computed again: "layer" for whole layers (`unit` of them at a time), else megatron-core's modules. `adapter_rank` None
    trains all weights, otherwise adapters of this rank beside the linear layers in `adapted`. `spread` is how much memory a
    byte of activations takes, `logits_bytes` the most logits that are kept.
    """

    precision: str
    tokens: int
    tensor: int = 1
    pipeline: int = 1
    context: int = 1
    expert: int = 1
    expert_tensor: int = 1
    copies: int = 1
    sequence: bool = False
    layers: int | None = None
    in_flight: int = 1
    distributed: bool = True
    grads_in_fp32: bool = True
    recomputed: frozenset[str] = frozenset()
    unit: int = 1
    adapter_rank: int | None = None
    adapted: frozenset[str] = frozenset()
    base_bytes: int = CPU_BASE_BYTES
    spread: float = CPU_SPREAD
    logits_bytes: int = CPU_LOGITS_BYTES

    @property
    def width(self) -> int:
        """Bytes of a weight."""
        return 2 if self.precision == "bfloat16" else _FLOAT


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


def linears(shape: Architecture) -> dict[str, tuple[int, int]]:
    """(inputs, outputs) of the linear layers of a layer, by megatron-core's names; of a mixture one expert's."""
    heads, groups = shape.num_attention_heads * shape.kv_channels, shape.num_query_groups * shape.kv_channels
    hidden, ffn = shape.hidden_size, shape.ffn_hidden_size
    return {
        "linear_qkv": (hidden, heads + 2 * groups),
        "linear_proj": (heads, hidden),
        "linear_fc1": (hidden, (2 if shape.gated else 1) * ffn),
        "linear_fc2": (ffn, hidden),
    }


def num_parameters(shape: Architecture, *, active: bool = False) -> int:
    """Of the whole policy, tied embeddings once; with `active`, those of a mixture that one token meets."""
    attention, expert, router, small = _layer_parameters(shape)
    used = shape.experts and (shape.experts.top_k if active else shape.experts.num)
    layer = attention + expert * (used or 1) + router + small
    embeddings = shape.vocab_size * shape.hidden_size * (1 if shape.tied_embeddings else 2)
    return shape.num_layers * layer + embeddings + shape.hidden_size * (2 if shape.normalization == "LayerNorm" else 1)


def training_flops(shape: Architecture, sizes: Sizes, lengths: Lengths) -> float:
    """Of one pair, forward and backward."""
    again = 2 if "layer" in sizes.recomputed else 0
    frozen = sizes.adapter_rank is not None
    weight, meeting = (4 if frozen else 6), 14
    output = weight if sizes.context == 1 else weight + 2
    return _flops(shape, lengths, weight + again, output, meeting + 2 * again) + 6 * _adapters(shape, sizes) * lengths.pair


def scoring_flops(shape: Architecture, lengths: Lengths) -> float:
    """Of one pair, forward alone: the reference pass."""
    return _flops(shape, lengths, 2, 2, 4)


def memory(shape: Architecture, sizes: Sizes) -> Memory:
    """Of the fullest rank, at the most that a training step takes."""
    held, experts = _held(shape, sizes)
    trained = _held_adapters(shape, sizes) if sizes.adapter_rank is not None else held + experts
    weights = held + experts + (trained if sizes.adapter_rank is not None else 0)
    state = (8 if sizes.width == _FLOAT else 12) * _shared(trained, experts, sizes)
    gradients = (_FLOAT if sizes.grads_in_fp32 else sizes.width) * trained
    return Memory(
        weights=sizes.width * weights,
        optimizer=state,
        gradients=gradients,
        activations=sizes.spread * _activations(shape, sizes),
        logits=_logits(shape, sizes),
        base=sizes.base_bytes,
    )


def largest_tokens(shape: Architecture, sizes: Sizes, budget: float, most: int = 1 << 24) -> int | None:
    """The most tokens of a row, in steps of 64 up to `most`, with which a rank stays within `budget` bytes; None: none do."""
    fits: Callable[[int], bool] = lambda tokens: memory(shape, replace(sizes, tokens=tokens)).total <= budget  # noqa: E731 - a name for the type; a line is enough
    low, high = 0, most // 64
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(64 * middle) else (low, middle - 1)
    return 64 * low or None


def _flops(shape: Architecture, lengths: Lengths, weight: float, output: float, meeting: float) -> float:
    attention, expert, router, _ = _layer_parameters(shape)
    layer = attention + expert * (shape.experts.top_k if shape.experts else 1) + router
    channels = shape.num_attention_heads * shape.kv_channels
    layers = weight * layer * lengths.pair + meeting * channels * lengths.meetings
    return shape.num_layers * layers + output * shape.vocab_size * shape.hidden_size * lengths.responses


def _layer_parameters(shape: Architecture) -> tuple[int, int, int, int]:
    """(attention, one feed-forward part, router, norms and biases) of one layer."""
    sizes = {name: inputs * outputs for name, (inputs, outputs) in linears(shape).items()}
    router = shape.experts.num * shape.hidden_size if shape.experts else 0
    norms = 2 * shape.hidden_size * (2 if shape.normalization == "LayerNorm" else 1)
    biases = linears(shape)["linear_qkv"][1] if shape.qkv_bias else 0
    small = norms + biases + (2 * shape.kv_channels if shape.qk_norm else 0)
    feed_forward = sizes["linear_fc1"] + sizes["linear_fc2"]
    return sizes["linear_qkv"] + sizes["linear_proj"], feed_forward, router, small


def _held(shape: Architecture, sizes: Sizes) -> tuple[float, float]:
    """(parameters of a rank besides experts, those of its experts)."""
    attention, expert, router, small = _layer_parameters(shape)
    dense = (attention + (0 if shape.experts else expert)) / sizes.tensor + router + small
    layers = sizes.layers or shape.num_layers
    once = shape.tied_embeddings or sizes.pipeline > 1
    embeddings = shape.vocab_size * shape.hidden_size * (1 if once else 2) / sizes.tensor
    num_experts = shape.experts.num if shape.experts else 0
    return layers * dense + embeddings, layers * num_experts * expert / (sizes.expert * sizes.expert_tensor)


def _shared(trained: float, experts: float, sizes: Sizes) -> float:
    """The trained parameters whose optimizer state a rank keeps."""
    if not sizes.distributed:
        return trained
    if sizes.adapter_rank is not None:
        return trained / (sizes.copies * sizes.context)
    world = sizes.copies * sizes.context * sizes.tensor
    expert_copies = max(1, world // (sizes.expert * sizes.expert_tensor))
    return (trained - experts) / (sizes.copies * sizes.context) + experts / expert_copies


def _adapters(shape: Architecture, sizes: Sizes) -> float:
    """Parameters of all adapters."""
    rank, parts = sizes.adapter_rank or 0, linears(shape)
    return shape.num_layers * sum(rank * sum(parts[name]) for name in sizes.adapted)


def _held_adapters(shape: Architecture, sizes: Sizes) -> float:
    """Parameters of a rank's adapters, of which tensor parallelism divides one factor; the smaller part is taken as nothing."""
    return _adapters(shape, sizes) * (sizes.layers or shape.num_layers) / shape.num_layers / sizes.tensor


def _activations(shape: Architecture, sizes: Sizes) -> float:
    """Kept for the backward pass of all rows in flight, and what the backward pass of one layer takes."""
    tokens, layers = sizes.tokens / sizes.context, sizes.layers or shape.num_layers
    whole = tokens * _kept_of_layer(shape, sizes)
    entry = tokens * sizes.width * shape.hidden_size / (sizes.tensor if sizes.sequence else 1)
    if "layer" in sizes.recomputed:
        kept = -(-layers // sizes.unit) * entry * sizes.in_flight + min(sizes.unit, layers) * whole
    elif sizes.recomputed & {"mlp", "moe"}:
        again = tokens * sizes.width * _feed_forward_elements(shape) / sizes.tensor
        kept = layers * (whole - again) * sizes.in_flight + again
    else:
        kept = layers * whole * sizes.in_flight
    return kept + 3 * entry + tokens * _beside(shape, sizes)


def _kept_of_layer(shape: Architecture, sizes: Sizes) -> float:
    """Bytes a token that a layer keeps: activations, and in float32 what its two norms and each head's softmax divided by."""
    heads, groups, head = shape.num_attention_heads, shape.num_query_groups, shape.kv_channels
    hidden = 4 * shape.hidden_size / (sizes.tensor if sizes.sequence else 1)
    normed = heads + groups if shape.qk_norm else 0
    attention = ((2 * heads + 2 * groups + normed) * head) / sizes.tensor
    divisors = 2 + heads / sizes.tensor
    return sizes.width * (hidden + attention + _feed_forward_elements(shape) / sizes.tensor) + _FLOAT * divisors


def _feed_forward_elements(shape: Architecture) -> float:
    """Elements a token that the feed-forward part keeps besides what enters it: its products, and what is made of them."""
    if shape.experts:
        return shape.experts.top_k * (5 * shape.ffn_hidden_size + 2 * shape.hidden_size)
    if not shape.gated:
        return 2 * shape.ffn_hidden_size
    return (2 if shape.activation == "silu" else 4) * shape.ffn_hidden_size  # what silu makes of the two is made again


def _beside(shape: Architecture, sizes: Sizes) -> float:
    """Bytes a token that the backward pass of one layer takes at most: in attention (in float32), feed-forward part or norm."""
    heads, groups, head = shape.num_attention_heads, shape.num_query_groups, shape.kv_channels
    attention = (max(6 * groups, 2 * heads) * _FLOAT + (2 * heads + 2 * groups) * sizes.width) * head / sizes.tensor
    picked = shape.experts.top_k if shape.experts else 1
    feed_forward = 5 * sizes.width * picked * shape.ffn_hidden_size / sizes.tensor
    return max(attention, feed_forward, 4 * _FLOAT * shape.hidden_size)


def _logits(shape: Architecture, sizes: Sizes) -> float:
    """What is kept of logits, a block of them, and what the gradient of the tokens in it takes beside it."""
    tokens, entries = min(LOGITS_TOKENS, sizes.tokens), shape.vocab_size / sizes.tensor
    block, gradient = _FLOAT * min(LOGITS_ENTRIES, entries), shape.hidden_size * (2 * _FLOAT + 2 * sizes.width)
    return min(sizes.tokens * entries * sizes.width, sizes.logits_bytes) + tokens * (block + gradient)
