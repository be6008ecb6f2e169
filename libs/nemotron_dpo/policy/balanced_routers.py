"""Routers with an auxiliary loss whose gradient does not depend on how a global batch is cut. `load_balancing` has its formula.

megatron-core's own is of a micro batch as it is packed, and its scale depends on tensor and context parallelism in some
versions. Here a row says which tokens are of which sequence, ranks that share the row add up its counts, and the loss is a
sum over pairs, like the objective's: the trainer divides both by the pairs of the global batch.

Legend: T tokens of a row that this rank has, N sequences of a row (the two of pair 0, then of pair 1), G groups of tokens that
are balanced together, E experts, L layers of the whole policy.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.transformer.moe.router import TopKRouter
from torch import Tensor, nn

from nemotron_dpo.errors import UserError
from nemotron_dpo.policy.architecture import Architecture
from nemotron_dpo.policy.device import device
from nemotron_dpo.policy.load_balancing import METRICS, LoadBalancing
from nemotron_dpo.policy.routers import routers


@dataclass(frozen=True)
class RouterLoss:
    """The auxiliary loss of a global batch: its metric's name, its mean over layers, and what it adds to the loss."""

    metric: str
    value: float
    added: float


class Balancer:
    """The auxiliary loss of all routers of a policy, of which this rank may hold a part."""

    def __init__(self, settings: LoadBalancing, coeff: float, architecture: Architecture) -> None:
        self.settings, self.coeff = settings, coeff
        self.router = architecture.routers[0]  # megatron-core takes all to be alike
        self._layers = [bool(layer.num_experts) for layer in architecture.layers]
        self._counting = False
        self._counts_LE = torch.zeros(len(self._layers), self.router.num, dtype=torch.float64, device=device())
        self._losses_L = torch.zeros(len(self._layers), dtype=torch.float64, device=device())

    def begin(self) -> None:
        """Forget the batch before."""
        self._losses_L.zero_()
        self._counts_LE.zero_()

    @property
    def is_counting(self) -> bool:
        """Whether forward passes count the picked experts."""
        return self._counting

    @contextmanager
    def counting(self) -> Iterator[None]:
        """In the block, forward passes count the picked experts."""
        self._counting = True
        try:
            yield
        finally:
            self._counting = False

    def share_counts(self, num_pairs: int) -> None:
        """Make the counts those of the job and slopes of them; `num_pairs` are those of this rank that no other counts.

        The slope of expert e is by how much a token's loss, a sum over pairs, grows with its probability of e.
        """
        counts = torch.cat([self._counts_LE.flatten(), self._counts_LE.new_tensor([num_pairs])])
        dist.all_reduce(counts)
        counts_LE, pairs, (num, top_k) = counts[:-1].view_as(self._counts_LE), counts[-1], (self.router.num, self.router.top_k)
        tokens = counts_LE.sum() / (top_k * sum(self._layers))
        if self.settings.kind == "transformers_aux_loss":
            all_layers = counts_LE.sum(0).expand_as(counts_LE)
            self._slopes_LE = pairs * num * all_layers / (sum(self._layers) * tokens) ** 2
        else:
            self._slopes_LE = pairs * num * counts_LE / (top_k * tokens**2)

    def see(self, layer: int, logits_TE: Tensor, picked_TE: Tensor, sequences_TN: Tensor, group: Any) -> Tensor | None:
        """What router `layer` adds to the loss of a row, a sum over its pairs of what is of this rank's tokens.

        None where nothing is to be differentiated: then the picks are counted, if that was asked for. `group` are the ranks
        that share the row.
        """
        if self._counting:
            self._counts_LE[layer] += sequences_TN.sum(1).double() @ picked_TE.double()
        if not torch.is_grad_enabled() or not sequences_TN.shape[1]:
            return None
        probs_TE = self._probabilities(logits_TE.float())
        if self.settings.counts_first:
            weights_T = sequences_TN.sum(1).float()
            loss = (weights_T @ probs_TE) @ self._slopes_LE[layer].float()
        else:
            loss = self._of_groups(probs_TE, picked_TE, sequences_TN, group)
        self._losses_L[layer] += loss.detach()
        return self.coeff * loss

    def _probabilities(self, logits_TE: Tensor) -> Tensor:
        """megatron-core's for the loss; those of sigmoids are made to sum to one."""
        if self.router.score == "softmax":
            return torch.softmax(logits_TE, -1)
        scores_TE = torch.sigmoid(logits_TE)
        return scores_TE / (scores_TE.sum(-1, keepdim=True) + 1e-20)

    def _of_groups(self, probs_TE: Tensor, picked_TE: Tensor, sequences_TN: Tensor, group: Any) -> Tensor:
        weights_TG, share = sequences_TN.float(), 0.5  # two sequences make a pair
        if self.settings.kind == "aux_loss":
            weights_TG, share = weights_TG.unflatten(1, (-1, 2)).sum(-1), 1.0
        counts_GE = weights_TG.t() @ picked_TE.float()
        if dist.get_world_size(group) > 1:
            dist.all_reduce(counts_GE, group=group)
        tokens_G = counts_GE.sum(1) / self.router.top_k
        sums_G = ((weights_TG.t() @ probs_TE) * counts_GE).sum(1)
        return (sums_G / tokens_G**2).sum() * (share * self.router.num / self.router.top_k)

    def loss(self, num_pairs: float) -> RouterLoss:
        """The loss of the batch that was trained on, of `num_pairs` pairs over the job; every rank calls it."""
        losses_L = self._losses_L.clone()
        dist.all_reduce(losses_L)  # of a token and a layer, one rank alone has the loss
        total = losses_L.sum().item() / num_pairs
        parts = 1 if self.settings.kind == "transformers_aux_loss" else sum(self._layers)
        return RouterLoss(METRICS[self.settings.kind], total / parts, self.coeff * total)


class BalancedRouter(TopKRouter):
    """megatron-core's router, whose auxiliary loss is the balancer's. `padding_mask` says which tokens are of which sequence.

    That is bool [T, N]. It is the one tensor that reaches a router through all layers, recomputed ones included. The counts by
    which an expert bias is moved are of sequences too: a token of the prompt counts twice, one of the padding not at all.
    """

    balancer: Balancer | None = None

    def routing(self, logits: Tensor, padding_mask: Tensor | None = None, **others: Any) -> tuple[Tensor, Tensor]:
        """megatron-core's probabilities and picks [T, E] for logits [T, 1, E]."""
        probs_TE, picked_TE = super().routing(logits, **others)
        if padding_mask is None:
            return probs_TE, picked_TE
        if self.local_tokens_per_expert is not None and torch.is_grad_enabled():  # then every token was counted once
            self.local_tokens_per_expert += (padding_mask.sum(1) - 1).float() @ picked_TE.float()
        if self.balancer is None:
            return probs_TE, picked_TE
        layer, logits_TE = (self.layer_number or 1) - 1, logits.flatten(0, 1)
        by_score_TE = picked_TE
        if self.score_function == "sigmoid":  # megatron-core's loss is of the picks without biases and groups
            by_score_TE = torch.zeros_like(picked_TE).scatter(1, logits_TE.topk(self.topk).indices, True)
        loss = self.balancer.see(layer, logits_TE, by_score_TE, padding_mask, self.tp_cp_group)
        return (probs_TE if loss is None else _Beside.apply(probs_TE, loss)), picked_TE  # type: ignore[return-value] - torch does not type Function.apply


class _Beside(torch.autograd.Function):
    """Values as they are; in the backward pass `loss` gets the gradient 1, as if it were added to the loss of the row."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, loss: Tensor) -> Tensor:
        ctx.like = loss.new_ones(())
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        return grads[0], ctx.like


def balance(model: nn.Module, settings: LoadBalancing | None) -> None:
    """Train the routers of `model`, a PairPolicy, with an auxiliary loss; without experts or a coefficient there is none.

    Raises UserError where the coefficient is to be the model's own, and the model does not say it.
    """
    architecture: Any = model.architecture
    if settings is None or not architecture.routers:
        return
    coeff = settings.coeff_of(architecture.routers[0].usual_coeff)
    if coeff is None:
        raise UserError("the model does not say the coefficient of its auxiliary loss", remedy="set moe_aux_loss_coeff")
    if coeff == 0:
        return
    model.balancer = balancer = Balancer(settings, coeff, architecture)  # type: ignore[assignment] - to torch any attribute is a tensor or a module
    for router in routers(model):
        router.__class__ = BalancedRouter
        router.balancer = balancer  # type: ignore[assignment] - the same


def move_biases(model: nn.Module, rate: float) -> None:
    """Let each step move the experts' biases of `model`, a PairPolicy, by `rate` towards equal counts of tokens; 0 does not.

    The rule is megatron-core's (Wang et al., 2024, arXiv 2408.15664); a bias has no gradient. Without one this does nothing.
    """
    architecture: Any = model.architecture
    config: Any = model.config
    if not any(router.expert_bias for router in architecture.routers):
        return
    config.moe_router_bias_update_rate = rate
    for router in routers(model):
        router.__class__ = BalancedRouter
