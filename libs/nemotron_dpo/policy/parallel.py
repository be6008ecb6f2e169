"""Process groups: one process alone or the ranks of a torchrun job, divided by megatron-core into TP x PP x DP."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

from nemotron_dpo.errors import UserError
from nemotron_dpo.policy.device import device, redirect


@dataclass(frozen=True)
class Layout:
    """How many ranks share one copy of the model; the rest of the world is data-parallel."""

    tensor: int = 1
    pipeline: int = 1

    def data(self, world_size: int) -> int:
        """The number of data-parallel replicas. Raises UserError where the world does not divide."""
        if world_size % (self.tensor * self.pipeline):
            raise UserError(
                f"{world_size} processes do not divide into tensor x pipeline = {self.tensor} x {self.pipeline}",
                remedy="start a multiple of that many",
            )
        return world_size // (self.tensor * self.pipeline)


def initialize(layout: Layout = Layout(), seed: int = 42) -> None:
    """Join the job (or be alone) and build megatron-core's groups; NCCL on GPUs, gloo on CPUs."""
    redirect()
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.random import initialize_rng_tracker, model_parallel_cuda_manual_seed

    layout.data(job_size())
    if not dist.is_initialized():
        _join(job_size())
    parallel_state.initialize_model_parallel(layout.tensor, layout.pipeline, create_gloo_process_groups=False)
    torch.manual_seed(seed)
    if device().type == "cpu":
        initialize_rng_tracker(inference_rng_tracker=True)  # dropout is off, and there is no CUDA random state to track
    else:
        model_parallel_cuda_manual_seed(seed)


def shut_down() -> None:
    """Leave the job, so that the interpreter exits without complaint; safe where `initialize` was never reached."""
    if not dist.is_initialized():
        return
    from megatron.core import parallel_state

    parallel_state.destroy_model_parallel()
    dist.destroy_process_group()


def data_rank() -> int:
    """This process's data-parallel rank."""
    from megatron.core import parallel_state

    return parallel_state.get_data_parallel_rank()


def data_size() -> int:
    """The number of data-parallel replicas."""
    from megatron.core import parallel_state

    return parallel_state.get_data_parallel_world_size()


def job_size() -> int:
    """The number of processes torchrun started, 1 without it; known before `initialize`."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def world_size() -> int:
    """The number of processes in the job."""
    return dist.get_world_size()


def is_last_stage() -> bool:
    """True where this process ends the pipeline and so holds losses and log-probs."""
    from megatron.core import parallel_state

    return parallel_state.is_pipeline_last_stage()


def sum_over_job(values: torch.Tensor) -> torch.Tensor:
    """Sum `values` over data-parallel ranks and give the result to every process.

    Stages other than the pipeline's last must pass zeros; the ranks of one tensor-parallel group hold the same values,
    so the sum over the world is divided by their number.
    """
    from megatron.core import parallel_state

    total = values.to(device())
    dist.all_reduce(total)
    return total / parallel_state.get_tensor_model_parallel_world_size()


def any_rank(flag: bool) -> bool:
    """True on every process where `flag` is on one of them."""
    votes = torch.tensor([int(flag)], device=device())
    dist.all_reduce(votes)
    return bool(votes.item())


def gather(mine: list[int]) -> list[list[int]]:
    """`mine` of every process."""
    parts: list[list[int]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(parts, mine)
    return parts


def _join(world_size: int) -> None:
    backend = "nccl" if device().type == "cuda" else "gloo"
    if world_size == 1:
        dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
    else:
        dist.init_process_group(backend)
