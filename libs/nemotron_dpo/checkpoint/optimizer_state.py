"""The optimizer's state on disk, in megatron-core's torch_dist format: moments and float32 master weights by parameter name.

The state has a folder of its own beside the policy's checkpoint. So a reference pass, an export or another run, which need
weights alone, neither read nor hash its twelve bytes a parameter. The keys are Megatron's own, `optimizer.state.*`, in its
`fully_reshardable` form: a state that was saved with some tensor-, pipeline- and data-parallel sizes loads with any others.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from torch import nn

from nemotron_dpo import file_digests
from nemotron_dpo.checkpoint import torch_dist
from nemotron_dpo.errors import UserError
from nemotron_dpo.policy.trainable import TrainablePolicy

_CONTENT = {
    "singleton_local_shards": False,
    "distrib_optim_sharding_type": "fully_reshardable",
    "chained_optim_avoid_prefix": True,
}


def check_can_be_saved(model: nn.Module, *, distributed: bool) -> None:
    """Raise UserError where megatron-core could not save the state of the optimizer that trains `model`.

    Without the distributed optimizer it takes parameters of float32 beside others for one another.
    """
    kinds = {parameter.dtype for parameter in model.parameters() if parameter.requires_grad}
    if not distributed and len(kinds) > 1:
        what = "cannot save the state of a policy that trains float32 parameters beside others, as hybrids have them"
        raise UserError(f"false {what}", field="policy.megatron_cfg.use_distributed_optimizer", remedy="leave it true")


def save(policy: TrainablePolicy, folder: Path) -> None:
    """Write the state of `policy`'s optimizer into the new `folder`. Every rank calls it, after at least one step.

    Raises UserError where it cannot be written.
    """
    if dist.get_rank() == 0:
        folder.mkdir(parents=True)
    dist.barrier()
    torch_dist.save({"optimizer": _sharded(policy)}, folder, _CONTENT)
    if dist.get_rank() == 0:
        file_digests.write(folder)


def load(policy: TrainablePolicy, folder: Path) -> None:
    """Fill the optimizer of `policy` from `folder`, which was written with any parallel sizes. Every rank calls it.

    Raises UserError where the state is damaged or is another policy's.
    """
    for part in _parts(policy.optimizer):
        _allocate(part)
    remedy = f"is the copy complete? Without {folder.parent.name} the run goes on from the checkpoint before it"
    try:
        state = torch_dist.load({"optimizer": _sharded(policy, is_loading=True)}, folder)["optimizer"]
        parts, step = _parts(policy.optimizer), _step(state)
        for index, part in enumerate(parts):
            if len(parts) == 1 or index in state or part.optimizer.state:  # else it has no parameters, and so no state
                _restore(part, state if len(parts) == 1 else state[index], step)
    except UserError as error:
        error.remedy = remedy
        raise
    except (RuntimeError, ValueError, KeyError, TypeError, AssertionError) as error:
        raise UserError(f"cannot be loaded ({_reason(error)})", source=folder, remedy=remedy) from None


def _sharded(policy: TrainablePolicy, *, is_loading: bool = False) -> Any:
    weights = policy.model.sharded_state_dict(metadata=dict(_CONTENT))
    with _all_stepped(_parts(policy.optimizer)):
        return policy.optimizer.sharded_state_dict(weights, is_loading=is_loading, metadata=dict(_CONTENT))


@contextlib.contextmanager
def _all_stepped(parts: Sequence[Any]) -> Iterator[None]:
    """In the block an optimizer of no parameters has a step count too, which megatron-core asks for and takes from them.

    On a pipeline stage of dense layers alone that is the experts' optimizer.
    """
    counts = [state["step"] for part in parts for state in part.optimizer.state.values()]
    empty: list[Any] = [part for part in parts if isinstance(part, DistributedOptimizer) and not part.optimizer.state]
    for part in empty:
        part.optimizer.state[_NOBODY] = {"step": counts[0].clone() if counts else torch.tensor(0.0)}
    try:
        yield
    finally:
        for part in empty:
            part.optimizer.state.pop(_NOBODY, None)


_NOBODY = "no parameter"


def _parts(optimizer: Any) -> list[Any]:
    """The optimizers that megatron-core chains: the experts' parameters have one of their own."""
    return getattr(optimizer, "chained_optimizers", [optimizer])


def _allocate(part: Any) -> None:
    """Create a state of zeros for every parameter, with the step count of torch's AdamW, which megatron-core leaves out."""
    part.init_state_fn(part.optimizer, part.config)
    for parameter, state in part.optimizer.state.items():
        state.setdefault("step", torch.tensor(0.0, device=parameter.device))


def _step(state: Any) -> Any:
    """The number of steps that were taken, from the first group of parameters in what was stored besides tensors."""
    if isinstance(state, dict):
        groups = state.get("param_groups") or ()
        found = [group["step"] for group in groups if "step" in group]
        nested = (_step(value) for key, value in state.items() if key not in ("param_state", "state"))
        return found[0] if found else next((step for step in nested if step is not None), None)
    return None


def _restore(part: Any, state: dict[str, Any], step: Any) -> None:
    """`part.load_state_dict(state)`, with three faults of the distributed optimizer over torch's AdamW worked around.

    Groups of parameters are stored as the first rank has them, and other ranks, or other layouts, have others: experts have an
    optimizer of their own where ranks divide them. Of what they say only `step` is not what this run has set anyway.
    Loading the `fully_reshardable` form copies every entry of a parameter's state. The step count is not stored by parameter,
    so the copy would fail on it: it is removed meanwhile. And all parameters would share one step tensor, which AdamW would
    advance once for each of them: every parameter gets a copy.
    """
    if not isinstance(part, DistributedOptimizer):
        part.load_state_dict(state)
        return
    if step is None:
        raise ValueError("it does not say after how many steps it was saved")
    groups = [{**group, "step": step} for group in part.optimizer.state_dict()["param_groups"]]
    part.load_state_dict({"optimizer": {"param_groups": groups}})
    inner = part.optimizer.state
    steps = {parameter: its_state.pop("step") for parameter, its_state in inner.items() if "step" in its_state}
    part.load_parameter_state_from_fully_reshardable(state["param_state"])
    for parameter, count in steps.items():
        inner[parameter]["step"] = count.to(parameter.device, copy=True)


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
