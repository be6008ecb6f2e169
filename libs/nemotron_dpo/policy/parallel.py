"""Process groups: one process alone or the ranks of a torchrun job, divided by megatron-core as a Layout says."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
import torch.distributed as dist

from nemotron_dpo import launcher
from nemotron_dpo.errors import UserError
from nemotron_dpo.policy import gloo_devices
from nemotron_dpo.policy.allocator import keep_freed_memory
from nemotron_dpo.policy.device import device, redirect, without_cuda_random_state
from nemotron_dpo.policy.job_kernels import warn_of_mixed
from nemotron_dpo.policy.layout import Layout
from nemotron_dpo.policy.meeting import join
from nemotron_dpo.policy.rows import Cut

T = TypeVar("T")

ALONE = Layout()
_layout = ALONE


def initialize(layout: Layout = ALONE, seed: int = 42, say: Callable[[str], object] = lambda line: None) -> None:
    """Join the job (or be alone) and build megatron-core's groups; NCCL on GPUs, gloo on CPUs.

    Processes that are waited for are told to `say`. Raises UserError where they do not divide into `layout`, or where a job
    that something other than torchrun started does not say which of its processes this is and where they meet.
    """
    global _layout
    redirect()
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.random import initialize_rng_tracker, model_parallel_cuda_manual_seed

    layout.data(job_size())
    if not dist.is_initialized():
        join(say)
    parallel_state.initialize_model_parallel(
        layout.tensor,
        layout.pipeline,
        context_parallel_size=layout.context,
        expert_model_parallel_size=layout.expert,
        expert_tensor_parallel_size=layout.expert_tensor,
        create_gloo_process_groups=False,
    )
    _layout = layout
    warn_of_mixed(say)
    torch.manual_seed(seed)
    if device().type == "cpu":
        initialize_rng_tracker(inference_rng_tracker=True)  # dropout is off, and there is no CUDA random state to track
        without_cuda_random_state()
    else:
        model_parallel_cuda_manual_seed(seed)


@contextlib.contextmanager
def joined(say: Callable[[str], object] = lambda line: None) -> Iterator[None]:
    """Be one of the job for the block, before it is known how its processes divide the model; leave it at the end.

    A process alone joins nothing until `initialize`. Raises UserError as that does.
    """
    try:
        if job_size() > 1 and not dist.is_initialized():
            join(say)
        yield
    finally:
        shut_down()


@contextlib.contextmanager
def divided(layout: Layout, say: Callable[[str], object]) -> Iterator[Callable[[], None]]:
    """Be one of the processes that share a policy, divided by `layout`, for the block; leave the job at the end.

    A process alone joins nothing before it calls what is yielded: where no policy is needed it takes no time. It keeps freed
    memory from then on. Raises UserError as `initialize` does.
    """

    def initialized() -> None:
        keep_freed_memory()
        initialize(layout, say=say)

    layout.data(job_size())
    try:
        if job_size() > 1:
            initialized()
        yield initialized
    finally:
        shut_down()


def shut_down() -> None:
    """Leave the job, so that the interpreter exits without complaint; safe where `initialize` was never reached."""
    global _layout
    if not dist.is_initialized():
        return
    if "megatron.core.parallel_state" in sys.modules:  # importing it takes seconds, and where nobody did there are no groups
        sys.modules["megatron.core.parallel_state"].destroy_model_parallel()
    dist.destroy_process_group()
    gloo_devices.forget()
    _layout = ALONE


def layout() -> Layout:
    """The layout that `initialize` was given."""
    return _layout


def data_rank() -> int:
    """This process's data-parallel rank; the ranks of one tensor, pipeline or context group share it."""
    from megatron.core import parallel_state

    return parallel_state.get_data_parallel_rank()


def data_size() -> int:
    """The number of data-parallel replicas."""
    from megatron.core import parallel_state

    return parallel_state.get_data_parallel_world_size()


def job_size() -> int:
    """The number of processes in the job, 1 without one; known before `initialize`."""
    return launcher.job_size()


def rank() -> int:
    """The number of this process in the job, from 0; known before `initialize`."""
    return launcher.rank()


def world_size() -> int:
    """The number of processes in the job."""
    return dist.get_world_size()


def is_last_stage() -> bool:
    """True where this process ends the pipeline and so holds losses and log-probs."""
    from megatron.core import parallel_state

    return parallel_state.is_pipeline_last_stage()


def is_first_copy() -> bool:
    """True on one rank of each tensor- and context-parallel group, whose ranks hold the same losses and log-probs."""
    from megatron.core import parallel_state

    return parallel_state.get_tensor_model_parallel_rank() == 0 and parallel_state.get_context_parallel_rank() == 0


def row_cut() -> Cut:
    """How this rank's micro batches are padded, and which part of their tokens it holds."""
    from megatron.core import parallel_state

    size = parallel_state.get_context_parallel_world_size()
    tokens_together = _layout.tensor if _layout.splits_sequence else 1
    return Cut(parallel_state.get_context_parallel_rank(), size, tokens_together)


def num_micro_batches(mine: int) -> int:
    """How many micro batches this rank must run where its own data makes `mine`; every rank of the job calls it.

    Ranks that divide experts exchange tokens in every layer and so run equally many.
    """
    if _layout.expert == 1:
        return mine
    votes = torch.tensor([mine], device=device())
    dist.all_reduce(votes, op=dist.ReduceOp.MAX)
    return int(votes.item())


def sum_over_job(values: torch.Tensor) -> torch.Tensor:
    """Sum `values` over data-parallel ranks and give the result to every process.

    Stages other than the pipeline's last must pass zeros; the ranks of a tensor- or context-parallel group hold the same
    values, so the sum over the world is divided by their number.
    """
    total = values.to(device())
    dist.all_reduce(total)
    return total / (_layout.tensor * _layout.context)


def placed_over_job(values_CP: torch.Tensor, places_P: torch.Tensor, size: int) -> torch.Tensor:
    """The values of all data-parallel ranks, each at its place: float64 [C, size], the same bit for bit on every process.

    Stages other than the pipeline's last pass no values. The ranks of a tensor- or context-parallel group have the same pairs:
    the values of the first are taken. No place may be another replica's too.
    """
    whole_CB = torch.zeros(len(values_CP), size, dtype=torch.float64, device=device())
    if is_first_copy():
        whole_CB[:, places_P] = values_CP.double()
    dist.all_reduce(whole_CB)
    return whole_CB


def any_rank(flag: bool) -> bool:
    """True on every process where `flag` is on one of them."""
    return bool(largest_of_ranks(int(flag)))


def largest_of_ranks(number: int) -> int:
    """The largest `number` of all processes, on each of them."""
    votes = torch.tensor([number], device=device())
    dist.all_reduce(votes, dist.ReduceOp.MAX)
    return int(votes.item())


def agreed(work: Callable[[], T]) -> T:
    """What `work` gives; where it raises UserError on any process of the job, all raise that of the first of these.

    Every process calls it, after `joined` or `initialize`.
    """
    if job_size() == 1:
        return work()
    errors: list[UserError | None] = [None] * job_size()
    try:
        result, error = [work()], None
    except UserError as raised:
        result, error = [], raised
    dist.all_gather_object(errors, error)
    for refusal in errors:
        if refusal is not None:
            raise refusal
    return result[0]


def gather(mine: T) -> list[T]:
    """`mine` of every process."""
    parts = [mine] * dist.get_world_size()
    dist.all_gather_object(parts, mine)
    return parts
