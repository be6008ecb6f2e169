"""How a run divides and keeps its policy, and how long its pairs are: what its cost depends on. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from nemotron_dpo import wiring
from nemotron_dpo.config import RunConfig
from nemotron_dpo.policy.layout import Layout
from nemotron_dpo.policy.load_balancing import LoadBalancing
from nemotron_dpo.policy.lora_targets import Lora
from nemotron_dpo.policy.recompute import Recompute

CPU_LOGITS_BYTES, GPU_LOGITS_BYTES = 2**29, 2**31  # that kernels.logits keeps at once
CPU_BASE_BYTES = 400_000_000
CPU_SPREAD = 1.5  # bytes that the heap grows by for each byte of activations in use, measured
CPU_COMPACT = 1.15  # the same of layers that make few others beside those that they keep
GPU_BASE_BYTES = 1_500_000_000  # a CUDA context (0.55 GB on an H100) and NCCL besides


@dataclass(frozen=True)
class Lengths:
    """Mean tokens of a pair: of its prompt, and of both responses together."""

    prompt: float
    responses: float

    @property
    def all(self) -> float:
        """Tokens of a pair in a row, its prompt once."""
        return self.prompt + self.responses

    def meetings(self, window: int | None = None) -> float:
        """Queries times the keys they see: causal, both responses after the one prompt, taken as equally long."""

        def along(path: float) -> float:
            full = path if window is None else min(path, window)  # tokens that see all before them
            return full**2 / 2 + (path - full) * (window or 0)

        return 2 * along(self.prompt + self.responses / 2) - along(self.prompt)


@dataclass(frozen=True)
class Sizes:
    """How a run divides and keeps its policy; `tokens` are those of a row, `copies` the data-parallel replicas.

    `in_flight` are the rows whose activations a stage holds at a time. `lora` None trains all weights, without the routers'
    where these are frozen. `spread` is how much memory a byte of activations takes, `compact` where they lie
    densely, `logits_bytes` the most logits that are
    kept.
    """

    precision: str
    tokens: int
    layout: Layout = field(default_factory=Layout)
    copies: int = 1
    in_flight: int = 1
    distributed: bool = True
    grads_in_fp32: bool = True
    recompute: Recompute | None = None
    lora: Lora | None = None
    frozen_routers: bool = False
    load_balancing: LoadBalancing | None = None
    base_bytes: int = CPU_BASE_BYTES
    spread: float = CPU_SPREAD
    compact: float = CPU_COMPACT
    logits_bytes: int = CPU_LOGITS_BYTES

    @property
    def width(self) -> int:
        """Bytes of a weight."""
        return 2 if self.precision == "bfloat16" else 4

    @property
    def whole_layers(self) -> bool:
        """Whether layers are computed again as a whole."""
        return self.recompute is not None and self.recompute.granularity == "full"

    @cached_property
    def again(self) -> frozenset[str]:
        """The modules that are computed again within layers, in megatron-core's words."""
        if self.recompute is None or self.whole_layers:
            return frozenset()
        return frozenset(self.recompute.modules)


def kind_of_memory(*, is_gpu: bool) -> dict[str, Any]:
    """Fields of Sizes: what a process takes there at once, how activations lie there, and how many logits are kept."""
    if is_gpu:
        return {"base_bytes": GPU_BASE_BYTES, "spread": 1.0, "compact": 1.0, "logits_bytes": GPU_LOGITS_BYTES}
    return {}  # as Sizes has it


def sizes_of(run: RunConfig, lengths: Lengths) -> Sizes:
    """How `run` divides and keeps its policy."""
    layout, megatron = wiring.layout(run), run.policy.megatron_cfg
    copies = max(1, run.cluster.gpus_per_node * run.cluster.num_nodes // layout.replica)
    tokens = _row_tokens(run, lengths, copies)
    return Sizes(
        precision=run.policy.precision,
        tokens=tokens,
        layout=layout,
        copies=copies,
        in_flight=max(1, min(layout.pipeline, round(batch_tokens(run, lengths, copies) / tokens))),
        distributed=megatron.use_distributed_optimizer,
        grads_in_fp32=megatron.grad_reduce_in_fp32,
        recompute=wiring.recompute(run),
        lora=wiring.lora(run),
        frozen_routers=megatron.freeze_moe_router,
        load_balancing=wiring.load_balancing(run),
    )


def batch_tokens(run: RunConfig, lengths: Lengths, copies: int) -> float:
    """Tokens of one replica's part of a global batch."""
    return max(1, run.policy.train_global_batch_size // copies) * lengths.all


def _row_tokens(run: RunConfig, lengths: Lengths, copies: int) -> int:
    """Tokens of a full row: no more than a replica has of a batch, no less than a pair."""
    limit = wiring.row_tokens(run)
    if limit is None:
        return round(run.policy.train_micro_batch_size * lengths.all)
    return round(max(lengths.all, min(limit, batch_tokens(run, lengths, copies))))
