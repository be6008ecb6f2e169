"""Add the gradient of a weight directly to its sum (`main_grad`), without a tensor of the weight's size for every micro batch.

For linear layers, megatron-core does so only on GPUs with Apex, by a compiled extension named fused_weight_gradient_mlp_cuda.
This module replaces that extension by torch operations. It does the same for the token embedding, of which a micro batch
touches only a few rows.

Legend: S tokens, N output and K input features, V vocabulary entries, H hidden.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core.distributed import param_and_grad_buffer
from megatron.core.tensor_parallel import (
    VocabParallelEmbedding,
    layers,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)
from torch import Tensor, nn

from nemotron_dpo.kernels.accumulation import add_product, add_rows
from nemotron_dpo.policy.patches import overwrite


def accumulate_in_place(model: nn.Module) -> None:
    """Make each layer of `model` whose weight has a `main_grad` add the gradient of the weight to it."""
    if not layers._grad_accum_fusion_available:
        overwrite("megatron.core.tensor_parallel.layers:fused_weight_gradient_mlp_cuda", _PRODUCTS)
        overwrite("megatron.core.tensor_parallel.layers:_grad_accum_fusion_available", True)
    for module in model.modules():
        if hasattr(module, "gradient_accumulation_fusion"):
            module.gradient_accumulation_fusion = True  # type: ignore[assignment] - to torch any attribute is a tensor or a module


def update_in_one_pass(optimizer: Any) -> None:
    """Where megatron-core falls back to torch's AdamW, make that update a weight in one pass, without temporary tensors."""
    for part in getattr(optimizer, "chained_optimizers", [optimizer]):
        if isinstance(part.optimizer, torch.optim.AdamW):
            for group in part.optimizer.param_groups:
                group["fused"] = True


def skip_collectives_of_one() -> None:
    """Skip the distributed optimizer's collectives in a group of one process, where gloo would only copy. Idempotent."""
    for name in ("dist_reduce_scatter_func", "dist_all_gather_func"):
        collective = getattr(param_and_grad_buffer, name)
        if not isinstance(collective, _UnlessAlone):
            overwrite(f"megatron.core.distributed.param_and_grad_buffer:{name}", _UnlessAlone(collective))


@dataclass(frozen=True)
class _UnlessAlone:
    """A collective from `given` into `into`. It is skipped in a group of one process where both are the same memory."""

    collective: Callable[..., Any]

    def __call__(self, into: Tensor, given: Tensor, *, group: Any, **options: Any) -> Any:
        if dist.get_world_size(group) == 1 and into.data_ptr() == given.data_ptr():
            return None
        return self.collective(into, given, group=group, **options)


class TokenEmbedding(VocabParallelEmbedding):
    """megatron-core's VocabParallelEmbedding, except that its gradient is added only to the rows that were looked up."""

    def forward(self, input_: Tensor) -> Tensor:
        """Token ids [1, S] -> embeddings [1, S, H]; under sequence parallelism this rank's tokens, [S / ranks, 1, H]."""
        is_share = len(self.weight) < self.num_embeddings
        rows_SH = _Lookup.apply(input_, self.weight, self.vocab_start_index, is_share)
        if self.reduce_scatter_embeddings:
            return reduce_scatter_to_sequence_parallel_region(rows_SH.transpose(0, 1).contiguous(), group=self.tp_group)
        return reduce_from_tensor_model_parallel_region(rows_SH, group=self.tp_group)


class _Lookup(torch.autograd.Function):
    """Rows of a weight, or of this rank's share of it. An id outside a share gives zeros; outside a whole weight, an error."""

    @staticmethod
    def forward(ctx: Any, ids: Tensor, weight_VH: Tensor, first: int, is_share: bool) -> Tensor:
        local, elsewhere = ids - first, None
        if is_share:
            elsewhere = (local < 0) | (local >= len(weight_VH))
            local = local.masked_fill(elsewhere, 0)
        ctx.weight, ctx.local, ctx.elsewhere = weight_VH, local, elsewhere
        rows_SH = F.embedding(local, weight_VH)
        return rows_SH if elsewhere is None else rows_SH.masked_fill_(elsewhere[..., None], 0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor | None, None, None]:
        main_grad = getattr(ctx.weight, "main_grad", None)
        total_VH = torch.zeros_like(ctx.weight) if main_grad is None else main_grad
        rows_SH = grads[0]
        if ctx.elsewhere is not None:
            rows_SH = rows_SH.masked_fill(ctx.elsewhere[..., None], 0)  # selecting rows would make the host wait for the GPU
        add_rows(total_VH, ctx.local.flatten(), rows_SH.flatten(0, 1))
        return None, total_VH if main_grad is None else None, None, None


def _add_product_of_inputs(x_SK: Tensor, grad_SN: Tensor, total_NK: Tensor) -> None:
    add_product(total_NK, grad_SN, x_SK)


_PRODUCTS: Any = SimpleNamespace(wgrad_gemm_accum_fp32=_add_product_of_inputs, wgrad_gemm_accum_fp16=_add_product_of_inputs)
