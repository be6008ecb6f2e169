"""FLOPs of a pair by the kinds of layers that it passes. Knows neither torch nor numpy: a dry run asks it.

They count matrix products only, 2 for each multiplication and addition.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from nemotron_dpo.policy.architecture import Architecture
from nemotron_dpo.policy.sublayers.sublayer import PairTokens


def weights_met(architecture: Architecture) -> int:
    """Elements of the matrices that each token is multiplied with in the layers."""
    return sum(sublayer.weights_met(architecture) for sublayer in architecture.sublayers())


def output_weights(architecture: Architecture) -> int:
    """Elements of the output layer, which only tokens of responses pass."""
    return architecture.vocab_size * architecture.hidden_size


def mixing(architecture: Architecture, pair: PairTokens) -> tuple[Any, Any]:
    """FLOPs between the tokens of a pair, where no weight takes part: (forward, backward)."""
    forward = backward = 0
    for sublayer, count in Counter(architecture.sublayers()).items():
        once = sublayer.mixing_flops(pair)
        forward, backward = forward + count * once[0], backward + count * once[1]
    return forward, backward


def forward(architecture: Architecture, pair: PairTokens) -> Any:
    """FLOPs of the forward pass of a pair."""
    layers = 2 * weights_met(architecture) * pair.all + mixing(architecture, pair)[0]
    return layers + 2 * output_weights(architecture) * pair.responses


def trained(architecture: Architecture, pair: PairTokens, *, are_frozen: bool = False) -> Any:
    """FLOPs of the forward and the backward pass of a pair that its gradients take, however they are computed.

    What is computed a second time to save memory does not count, nor do adapters. Frozen weights have no gradient of their own.
    """
    per_weight, (ahead, back) = (4 if are_frozen else 6), mixing(architecture, pair)
    layers = per_weight * weights_met(architecture) * pair.all + ahead + back
    return layers + per_weight * output_weights(architecture) * pair.responses
