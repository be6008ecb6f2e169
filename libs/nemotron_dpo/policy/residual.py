"""How what a sublayer computed is added to the residual stream, where that is more than a sum."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from megatron.core.transformer import ModuleSpec
from torch import Tensor, nn

from nemotron_dpo.policy.norm import Norm


class ResidualAdd(nn.Module):
    """stream + scale * norm(out), in the place of a layer spec's bias_dropout_add; without `norm` out is added as it is.

    Megatron-Bridge has this norm in the linear layer before it. Beside an adapter it would then norm a part of the sum.
    """

    def __init__(self, config: Any, *, norm: bool = False, scale: float = 1.0) -> None:
        super().__init__()
        self.post_layernorm = Norm(config, config.hidden_size, config.layernorm_epsilon) if norm else None
        self.scale = scale

    def forward(self, training: bool, fused: bool) -> Callable[[Any, Tensor, float], Tensor]:
        """The function that adds, as megatron-core asks for it."""
        return self._add

    def _add(self, out_with_bias: tuple[Tensor, Tensor | None], stream: Tensor, dropout: float) -> Tensor:
        """Tensors [S, 1, H]; dropout is 0."""
        out, bias = out_with_bias
        if bias is not None:
            out = out + bias
        if self.post_layernorm is not None:
            out = self.post_layernorm(out)
        return stream + (out if self.scale == 1.0 else out * self.scale)


def with_norm(config: Any) -> ModuleSpec:
    """A spec of what adds the norm of what a sublayer computed."""
    return ModuleSpec(ResidualAdd, params={"config": config, "norm": True})


def scaled(add: Any, config: Any, scale: float) -> Any:
    """The spec `add` of a sublayer, times `scale`."""
    if scale == 1.0:
        return add
    given = add.params if isinstance(add, ModuleSpec) and add.module is ResidualAdd else {"config": config}
    return ModuleSpec(ResidualAdd, params={**given, "scale": scale})


def add_without_gradients(layer: Any) -> None:
    """Let a layer of megatron-core add as the rest of it computes: it records gradients there even where none are asked for.

    Of a sum nothing is kept for them; of a norm all that enters it would be, in every layer, while a reference is scored.
    """
    layer.bias_dropout_add_exec_handler = nullcontext
