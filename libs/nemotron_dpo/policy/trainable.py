"""Train a PairPolicy with megatron-core's DistributedDataParallel, optimizer and pipeline schedule."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor, nn

from nemotron_dpo.policy import parallel
from nemotron_dpo.policy.balanced_routers import Balancer, RouterLoss
from nemotron_dpo.policy.logprobs import slope_of
from nemotron_dpo.policy.model import PairPolicy
from nemotron_dpo.policy.rows import PackedRow
from nemotron_dpo.policy.token_values import TokenValues
from nemotron_dpo.policy.weight_gradients import accumulate_in_place, skip_collectives_of_one, update_in_one_pass


class MicroBatch(Protocol):
    """One packed row, and whatever else its loss needs."""

    @property
    def row(self) -> PackedRow: ...


# (micro batch, log-probs float32 [R]) -> (loss summed over the row's pairs, a value for the caller). The loss of a pair may
# depend only on its own log-probs, because the function is also called while those of later pairs are still 0. Where
# token values are asked for, it gets these as well, by name: float32 [R] each, without gradient, 0 for later pairs as well.
Loss = Callable[..., tuple[Tensor, Any]]
NO_VALUES: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Optimization:
    """AdamW with decoupled weight decay. Gradients are not clipped if `max_grad_norm` is None or 0."""

    lr: float
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    max_grad_norm: float | None = 1.0
    use_distributed_optimizer: bool = True
    grad_reduce_in_fp32: bool = True


class TrainablePolicy:
    """Owns the gradients and the optimizer of `model`; the loss is a mean over the pairs of the global batch."""

    def __init__(self, model: PairPolicy, settings: Optimization) -> None:
        self.model = model
        ddp = DistributedDataParallelConfig(
            use_distributed_optimizer=settings.use_distributed_optimizer,
            grad_reduce_in_fp32=settings.grad_reduce_in_fp32,
            overlap_grad_reduce=False,
            average_in_collective=False,
        )
        self._ddp = DistributedDataParallel(model.config, ddp, model)
        accumulate_in_place(model)
        skip_collectives_of_one()
        self.optimizer = get_megatron_optimizer(_optimizer_config(model, settings), [self._ddp], use_gloo_process_groups=False)
        _name_states_rightly(self.optimizer)
        update_in_one_pass(self.optimizer)
        model.config.finalize_model_grads_func = finalize_model_grads
        model.config.no_sync_func = self._ddp.no_sync

    def accumulate(self, batches: Sequence[MicroBatch], loss: Loss, token_values: frozenset[str] = NO_VALUES) -> list[Any]:
        """Compute the gradients of one global batch, and return what `evaluate` returns.

        `batches` is this rank's part of the global batch, at least one micro batch. `token_values` are names of
        `token_values.NAMES` that the loss is given.
        """
        if self.model.balancer is not None:
            self._balance(self.model.balancer, batches)
        self._ddp.train()
        self._ddp.zero_grad_buffer()
        self.optimizer.zero_grad()
        return run_schedule(self._ddp, batches, loss, token_values, forward_only=False)

    def evaluate(self, batches: Sequence[MicroBatch], loss: Loss, token_values: frozenset[str] = NO_VALUES) -> list[Any]:
        """The second value of `loss` for each of `batches` (one or more), without gradients; empty before the last stage."""
        self._ddp.eval()
        with torch.no_grad():
            return run_schedule(self._ddp, batches, loss, token_values, forward_only=True)

    def router_loss(self, num_pairs: float) -> RouterLoss | None:
        """The auxiliary loss of the batch that was accumulated, of `num_pairs` pairs over the job; every rank calls it."""
        return None if self.model.balancer is None else self.model.balancer.loss(num_pairs)

    def _balance(self, balancer: Balancer, batches: Sequence[MicroBatch]) -> None:
        """Prepare the routers' loss; where it needs the whole batch, by a forward pass that ends before the output layer."""
        balancer.begin()
        if not balancer.settings.counts_first:
            return
        self._ddp.eval()
        with torch.no_grad(), balancer.counting(), self.model.without_output():
            run_schedule(self._ddp, batches, lambda _, hidden: (hidden.new_zeros(()), None), forward_only=True)
        is_first = parallel.is_last_stage() and parallel.is_first_copy()
        balancer.share_counts(sum(batch.row.num_pairs for batch in batches) if is_first else 0)

    def step(self, lr: float) -> float:
        """Apply the accumulated gradients at learning rate `lr` and return their norm before clipping."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        _, norm, _ = self.optimizer.step()  # pyright: ignore[reportGeneralTypeIssues] - the base class returns nothing
        return float(norm)


def run_schedule(
    model: nn.Module,
    batches: Sequence[MicroBatch],
    loss: Loss,
    token_values: frozenset[str] = NO_VALUES,
    *,
    forward_only: bool,
    through: Callable[[Iterable[Any]], Iterator[Any]] = iter,
) -> list[Any]:
    """Run `batches` through this rank's part of the policy by megatron-core's schedule, which takes them from `through`.

    Returns the second value of `loss` for each batch on the last pipeline stage, and an empty list on the other stages.
    """
    return get_forward_backward_func()(
        forward_step_func=partial(_forward_step, loss, token_values),
        data_iterator=through(batches),
        model=[model],
        num_microbatches=len(batches),
        seq_length=batches[0].row.num_tokens,
        micro_batch_size=1,
        forward_only=forward_only,
    )


def _forward_step(
    loss: Loss, token_values: frozenset[str], batches: Any, model: Any
) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, Tensor, Any]]]:
    batch, values = next(batches), TokenValues(token_values) if token_values else None

    def given(logps_R: Tensor) -> tuple[Tensor, Any]:
        return loss(batch, logps_R) if values is None else loss(batch, logps_R, values.by_name)

    def counted(logps_R: Tensor) -> tuple[Tensor, Tensor, Any]:
        # megatron-core divides the summed gradients by the global sum of this count. It expects tokens; we count pairs. The
        # sum includes context-parallel ranks, each of which has the loss of every pair, so only the first one counts them.
        total, sums = given(logps_R)
        num_pairs = batch.row.num_pairs if parallel_state.get_context_parallel_rank() == 0 else 0
        return total, torch.full((), num_pairs, dtype=torch.int, device=total.device), sums

    slope = slope_of(lambda logps_R: given(logps_R)[0]) if torch.is_grad_enabled() else None
    return model(batch.row, slope=slope, values=values), counted


def _name_states_rightly(optimizer: Any) -> None:
    """Let the distributed optimizer find the state of each parameter where one group has several precisions.

    megatron-core puts a group's float32 parameters before the others, and looks states up by the order from before that, so it
    stored those of one parameter as another's, or failed where their sizes differ.
    """
    for part in getattr(optimizer, "chained_optimizers", [optimizer]):
        if isinstance(part, DistributedOptimizer):
            for group, both in enumerate(zip(part.model_fp32_groups, part.model_float16_groups, strict=True)):
                for place, parameter in enumerate(parameter for kind in both for parameter in kind):
                    part.model_param_group_index_map[parameter] = (group, place)


def _optimizer_config(model: PairPolicy, settings: Optimization) -> OptimizerConfig:
    unclipped = settings.max_grad_norm in (None, 0)
    return OptimizerConfig(
        optimizer="adam",
        lr=settings.lr,
        weight_decay=settings.weight_decay,
        adam_beta1=settings.betas[0],
        adam_beta2=settings.betas[1],
        adam_eps=settings.eps,
        clip_grad=float("inf") if unclipped else float(settings.max_grad_norm or 0),
        bf16=model.config.bf16,
        params_dtype=model.config.params_dtype,
        use_distributed_optimizer=settings.use_distributed_optimizer,
        use_precision_aware_optimizer=False,
    )
