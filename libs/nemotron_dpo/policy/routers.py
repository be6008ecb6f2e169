"""The routers of a policy's mixtures of experts, as megatron-core makes them: those that this rank holds, and freezing them."""

from __future__ import annotations

from collections.abc import Iterator

from megatron.core.transformer.moe.router import TopKRouter
from torch import nn


def routers(model: nn.Module) -> Iterator[TopKRouter]:
    """The routers of this rank's layers, in their order; none where no layer has experts."""
    return (module for module in model.modules() if isinstance(module, TopKRouter))


def freeze_routers(model: nn.Module) -> None:
    """Keep the routers' weights as they are: no gradient, no update, no weight decay. Call it before the model is trained.

    Gradients still pass through the routers to what is below them, as in NeMo-RL.
    """
    for router in routers(model):
        router.requires_grad_(False)
