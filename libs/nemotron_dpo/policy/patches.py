"""Every name of torch and megatron-core that we put something else in the place of: which, since when, why, until when.

A name that a new version no longer has, or has elsewhere, would take our value and do nothing with it. So none is overwritten
but by `overwrite`, which looks first.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from nemotron_dpo import versions
from nemotron_dpo.errors import UserError


@dataclass(frozen=True)
class Patch:
    """Why a name is overwritten, and when that can end; `adds` where it need not be there before."""

    why: str
    until: str
    adds: bool = False


_CUDA_ALONE = "megatron-core asks torch for its accelerator instead of naming CUDA"
_NO_APEX = "megatron-core adds gradients up in place without Apex"

# what makes a tensor on the device that it is told
_FUNCTIONS = ("arange", "as_tensor", "empty", "empty_like", "empty_strided", "eye", "full", "full_like", "linspace", "ones",
              "ones_like", "rand", "rand_like", "randint", "randn", "randn_like", "randperm", "tensor", "tril_indices",
              "triu_indices", "zeros", "zeros_like")  # fmt: skip
_METHODS = ("new_empty", "new_full", "new_ones", "new_tensor", "new_zeros")
MAKERS = (*(f"torch:{name}" for name in _FUNCTIONS), *(f"torch:Tensor.{name}" for name in _METHODS))

PRODUCTS = ("torch:matmul", "torch:Tensor.matmul", "torch:Tensor.__matmul__", "torch.nn.functional:linear")

# torch keeps its compiler away from these, and imports it in order to
_SHIELDED = ("add_param_group", "load_state_dict", "state_dict", "zero_grad")
SHIELDED = tuple(f"torch.optim.optimizer:Optimizer.{name}" for name in _SHIELDED)
STEPS = ("torch.optim.adam:Adam.step", "torch.optim.sgd:SGD.step")

# "module:name", in megatron-core 0.16 to 0.19 alike unless it says otherwise
PATCHES = {
    "torch:compile": Patch("its kernels differ with and without gradients", "all fusions are options of the config"),
    **dict.fromkeys(
        (*SHIELDED, *STEPS), Patch("they import the compiler: a quarter of a start", "torch asks whether it is imported")
    ),
    **dict.fromkeys(MAKERS, Patch('tensors are made on the device "cuda"', _CUDA_ALONE)),
    **dict.fromkeys(
        PRODUCTS, Patch("of bfloat16 they are slow on CPUs without AVX512", "torch has kernels for these, as for others")
    ),
    "torch:Tensor.cuda": Patch("they are moved there", _CUDA_ALONE),
    "torch:Tensor.to": Patch("the same", _CUDA_ALONE),
    "torch:Tensor.type": Patch("optimizers take torch.cuda.FloatTensor, by that name", _CUDA_ALONE),
    "torch.distributed:ProcessGroupGloo.__init__": Patch("each group makes a device and its thread", "groups share them"),
    "torch.cuda:current_device": Patch("buffers and counts are made there", _CUDA_ALONE),
    "torch.cuda:current_stream": Patch("asked for by gradient buffers, from 0.19 on", _CUDA_ALONE),
    "torch.cuda:synchronize": Patch("called around checkpoints and gradient norms", _CUDA_ALONE),
    "torch.cuda:empty_cache": Patch("called around checkpoints", _CUDA_ALONE),
    "torch.cuda:get_rng_state": Patch("kept with the state of every layer's random numbers", _CUDA_ALONE),
    "torch.cuda:set_rng_state": Patch("the same", _CUDA_ALONE),
    "megatron.core.tensor_parallel.random:_get_cuda_rng_state": Patch("kept for recomputation", _CUDA_ALONE),
    "megatron.core.tensor_parallel.random:_set_cuda_rng_state": Patch("the same", _CUDA_ALONE),
    "megatron.core.transformer.moe.moe_utils:te_general_gemm": Patch(
        "the router asks for it, and has it only with Transformer Engine", "0.17 is the oldest that is served", adds=True
    ),
    "megatron.core.transformer.moe.token_dispatcher:MoEAlltoAllTokenDispatcher.cuda_dtoh_stream": Patch(
        "where it is None a CUDA stream is made", _CUDA_ALONE
    ),
    "megatron.core.transformer.moe.token_dispatcher:MoEAlltoAllTokenDispatcher._maybe_dtoh_and_synchronize": Patch(
        "copies counts of tokens on that stream", _CUDA_ALONE
    ),
    "megatron.core.tensor_parallel.layers:fused_weight_gradient_mlp_cuda": Patch("Apex's, or ours", _NO_APEX, adds=True),
    "megatron.core.tensor_parallel.layers:_grad_accum_fusion_available": Patch("says whether it is there", _NO_APEX),
    "megatron.core.distributed.param_and_grad_buffer:dist_reduce_scatter_func": Patch(
        "gloo copies what a single replica has already", "megatron-core leaves out collectives of one"
    ),
    "megatron.core.distributed.param_and_grad_buffer:dist_all_gather_func": Patch(
        "the same", "megatron-core leaves out collectives of one"
    ),
    "megatron.core.dist_checkpointing.serialization:load_common": Patch(
        "in 0.17 and 0.18: it reads common.pt, which 0.19 does not write", "0.19 is the oldest that is served"
    ),
    "megatron.core.dist_checkpointing.strategies.filesystem_async:FileSystemWriterAsync.write_preloaded_data_multiproc": Patch(
        "a writing process that is killed is waited for without end", "writing is by threads, as from 0.20 on"
    ),
    "megatron.core.dist_checkpointing.strategies.filesystem_async:_results_queue": Patch(
        "a server process of seconds, which outlives a killed run", "writing has a form without processes"
    ),
}


def overwrite(target: str, value: Any) -> None:
    """Put `value` in the place of `target`, a name of PATCHES. Raises UserError where there is no such name."""
    owner, name = _owner(target)
    if not PATCHES[target].adds:
        present(target)
    setattr(owner, name, value)


def present(target: str) -> Any:
    """What `target` names now, "module:name". Raises UserError where there is no such name."""
    owner, name = _owner(target)
    try:
        return getattr(owner, name)
    except AttributeError:
        raise _gone(target) from None


def _owner(target: str) -> tuple[Any, str]:
    """The module or class that has the name, and the last part of the name."""
    module, _, path = target.partition(":")
    *owners, name = path.split(".")
    try:
        owner: Any = importlib.import_module(module)
        for part in owners:
            owner = getattr(owner, part)
    except (ImportError, AttributeError):
        raise _gone(target) from None
    return owner, name


def _gone(target: str) -> UserError:
    package = "torch" if target.startswith("torch") else "megatron-core"
    message = f"{versions.called(package)} has no {target.replace(':', '.')}, in whose place something of ours has to be"
    return UserError(message, remedy=versions.remedy(package))
