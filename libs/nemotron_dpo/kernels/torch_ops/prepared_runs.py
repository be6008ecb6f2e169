"""Memory for the runs of an attention plan, laid out once for all layers of a pass.

Each block of queries has views of it for what is computed of the block, in float32. So no call allocates anything.

Legend: L queries, S keys, G key/value heads, Q query heads of each, D head size; B the queries of a block, those of all heads
of a group behind one another, token by token, and E their keys; T tokens of a block.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from nemotron_dpo.kernels.scratch import scratch
from nemotron_dpo.kernels.torch_ops.block_plan import BLOCK, AttentionPlan, AttentionRun


@dataclass(frozen=True)
class PreparedRun:
    """A run with float32 memory for its keys (scaled), its values and the gradients of both."""

    keys: tuple[tuple[slice, slice], ...]  # in S and in E
    blocks: tuple[PreparedBlock, ...]
    k_GED: Tensor
    v_GED: Tensor
    dk_GED: Tensor
    dv_GED: Tensor

    def load(self, key: Tensor, value: Tensor, scale: float) -> None:
        """Take the run's part of key and value [S, 1, G, D]."""
        for into_GED, x in ((self.k_GED, key), (self.v_GED, value)):
            x_GSD = x.squeeze(1).transpose(0, 1)
            for theirs, ours in self.keys:
                into_GED[:, ours].copy_(x_GSD[:, theirs])
        self.k_GED.mul_(scale)

    def add_to(self, total_SGD: Tensor, part_GED: Tensor) -> None:
        """Add the run's part of a gradient to the whole."""
        for theirs, ours in self.keys:
            total_SGD[theirs] += part_GED[:, ours].transpose(0, 1)


@dataclass(frozen=True)
class PreparedBlock:
    """Some queries of a run with memory for what is made of them: [G, B, D], and the same with tokens T and heads apart."""

    queries: slice
    num_keys: int
    q_GBD: Tensor
    q_GTQD: Tensor
    grad_GBD: Tensor
    grad_GTQD: Tensor
    out_GBD: Tensor
    out_GTQD: Tensor
    s_GBE: Tensor
    ds_GBE: Tensor
    capped_GBE: Tensor  # tanh of the scores, where these are capped
    own_GTQE: Tensor  # of the scores, those to which `hidden` is added
    hidden: Tensor
    product_GED: Tensor

    def seen(self, x_GED: Tensor) -> Tensor:
        """The first of the keys, in memory of their own: torch would copy a part anew for every product with it."""
        return x_GED if self.num_keys == x_GED.shape[1] else x_GED[:, : self.num_keys].contiguous()

    def probabilities(self, k_GED: Tensor, softcap: float | None, sinks_N: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """softmax [G, B, E] of the scores of the queries, valid until the next block's; and of it the sinks' part [G, B]."""
        torch.bmm(self.q_GBD, k_GED.mT, out=self.s_GBE)
        if softcap is not None:
            torch.tanh(self.s_GBE.div_(softcap), out=self.capped_GBE)
            torch.mul(self.capped_GBE, softcap, out=self.s_GBE)
        self.own_GTQE.add_(self.hidden)
        if sinks_N is None:
            return torch.softmax(self.s_GBE, -1, out=self.s_GBE), None
        sinks_G1Q = sinks_N.view(len(self.q_GTQD), 1, -1)
        beyond_GB = (sinks_G1Q - self.s_GBE.logsumexp(-1).view(self.q_GTQD.shape[:3])).flatten(1)
        torch.softmax(self.s_GBE, -1, out=self.s_GBE)
        return self.s_GBE.mul_((-beyond_GB).sigmoid_()[..., None]), beyond_GB.sigmoid_()

    def score_gradients(self, v_GED: Tensor, softcap: float | None, sink_GB: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The gradient [G, B, E] of the scores: p * (dp - sum(p * dp)), where dp = grad @ v; and of the sinks', negative."""
        torch.bmm(self.grad_GBD, v_GED.mT, out=self.ds_GBE)
        taken_GB = None if sink_GB is None else sink_GB * (self.s_GBE * self.ds_GBE).sum(-1)
        torch.ops.aten._softmax_backward_data.out(self.ds_GBE, self.s_GBE, -1, torch.float32, grad_input=self.ds_GBE)
        if softcap is not None:
            self.ds_GBE.mul_(self.capped_GBE.square_().neg_().add_(1))
        return self.ds_GBE, taken_GB

    def of_heads(self, x_GB: Tensor) -> Tensor:
        """A number of each query, summed up for each head [N]."""
        return x_GB.view(self.q_GTQD.shape[:3]).sum(1).flatten()

    def add_product(self, total_GED: Tensor, a_GBE: Tensor, b_GBD: Tensor) -> None:
        """Add a.T @ b to the first keys of `total`, or be it all of them: set it."""
        if self.num_keys == total_GED.shape[1]:
            torch.bmm(a_GBE.mT, b_GBD, out=total_GED)
        else:
            total_GED[:, : self.num_keys] += torch.bmm(a_GBE.mT, b_GBD, out=self.product_GED)


@functools.lru_cache(maxsize=2)
@torch.inference_mode(False)
def prepared(plan: AttentionPlan, num_groups: int, per_group: int, head_size: int, is_capped: bool) -> tuple[PreparedRun, ...]:
    """The runs of a plan with views of the memory that all of them share; prepared once for the layers of a pass."""
    largest = max((_num_queries(run) * _num_keys(run) for run in plan.runs), default=0)
    for name in ("scores", "score gradients", *(["capped scores"] if is_capped else [])):
        scratch(name, num_groups * per_group * largest)
    return tuple(_prepare_run(run, num_groups, per_group, head_size, is_capped) for run in plan.runs)


def _prepare_run(run: AttentionRun, num_groups: int, per_group: int, head_size: int, is_capped: bool) -> PreparedRun:
    keys, end = [], 0
    for part in run.keys:
        start, end = end, end + part.stop - part.start
        keys.append((part, slice(start, end)))
    memory = [scratch(f"attention {name} of run", num_groups, end, head_size) for name in ("k", "v", "dk", "dv")]
    blocks = []
    first = run.queries.start
    before = end - (run.queries.stop - first)
    for start in range(first, run.queries.stop, _num_queries(run)):
        queries = slice(start, min(run.queries.stop, start + _num_queries(run)))
        num_keys = before + queries.stop - first
        shape = num_groups, queries.stop - start, per_group, head_size
        blocks.append(_prepare_block(run, queries, num_keys, shape, is_capped))
    return PreparedRun(tuple(keys), tuple(blocks), *memory)


def _prepare_block(
    run: AttentionRun, queries: slice, num_keys: int, shape: tuple[int, int, int, int], is_capped: bool
) -> PreparedBlock:
    num_groups, num_tokens, per_group, head_size = shape
    rows = num_tokens * per_group
    q_GTQD, grad_GTQD, out_GTQD = (scratch(f"attention {name}", *shape) for name in ("q", "grad", "out"))
    s_GBE, ds_GBE = (scratch(name, num_groups, rows, num_keys) for name in ("scores", "score gradients"))
    capped_GBE = scratch("capped scores", num_groups, rows, num_keys) if is_capped else s_GBE
    own_GTQE, hidden = s_GBE.view(num_groups, num_tokens, per_group, num_keys), run.hidden
    if hidden is None:
        own_GTQE, hidden = own_GTQE[..., -num_tokens:], _triangle()[:num_tokens, :num_tokens]
    return PreparedBlock(
        queries,
        num_keys,
        q_GBD=q_GTQD.view(num_groups, rows, head_size),
        q_GTQD=q_GTQD,
        grad_GBD=grad_GTQD.view(num_groups, rows, head_size),
        grad_GTQD=grad_GTQD,
        out_GBD=out_GTQD.view(num_groups, rows, head_size),
        out_GTQD=out_GTQD,
        s_GBE=s_GBE,
        ds_GBE=ds_GBE,
        capped_GBE=capped_GBE,
        own_GTQE=own_GTQE,
        hidden=hidden[:, None],
        product_GED=scratch("attention product", num_groups, num_keys, head_size),
    )


@functools.cache
def _triangle() -> Tensor:
    """-inf where one of BLOCK queries must not see one of their own keys, else 0."""
    return torch.full((BLOCK, BLOCK), -torch.inf).triu_(1)


def _num_queries(run: AttentionRun) -> int:
    """Of the largest block of a run."""
    num_queries = run.queries.stop - run.queries.start
    return num_queries if run.hidden is not None else min(num_queries, BLOCK)


def _num_keys(run: AttentionRun) -> int:
    return sum(part.stop - part.start for part in run.keys)
