"""FLOPs of a run by its sizes. Imports no torch.

They count matrix products only, 2 for each multiplication and addition. One weight and token of a layer costs 2 forward and 4
backward (2 more where layers are computed again); so does the output layer, which runs on response tokens alone, and 2 more
under context parallelism, where it computes its logits again (as it does for a pair too long, which is not counted). What a
kind of layer costs between tokens, it says itself. Prompts are counted once a pair. Frozen weights under adapters cost 4,
without the gradient of the weight. Only the picked experts of a mixture count, and where its routers' auxiliary loss is of the
global batch, the layers' forward pass that counts them. Validation, norms, rope and the optimizer do not.
"""

from __future__ import annotations

from nemotron_dpo.policy import flops
from nemotron_dpo.policy.architecture import Architecture
from nemotron_dpo.policy.lora_targets import adapter_parameters
from nemotron_dpo.steps.estimate.sizes import Lengths, Sizes


def scoring(architecture: Architecture, lengths: Lengths) -> float:
    """Of one pair, forward alone: the reference pass."""
    return flops.forward(architecture, lengths)


def training(architecture: Architecture, sizes: Sizes, lengths: Lengths) -> float:
    """Of one pair, forward and backward."""
    weight, passes = (6 if sizes.lora is None else 4), (2 if sizes.whole_layers else 1)
    forward, backward = flops.mixing(architecture, lengths)
    layers = (weight + 2 * (passes - 1)) * flops.weights_met(architecture) * lengths.all + passes * forward + backward
    output = weight if sizes.layout.context == 1 else weight + 2
    adapters = 0 if sizes.lora is None else adapter_parameters(sizes.lora, architecture, met=True)
    layers += 2 * flops.weights_met(architecture) * lengths.all + forward if _counts_first(architecture, sizes) else 0
    return layers + output * flops.output_weights(architecture) * lengths.responses + 6 * adapters * lengths.all


def _counts_first(architecture: Architecture, sizes: Sizes) -> bool:
    """Whether a step has a forward pass of its own for the auxiliary loss of routers."""
    balancing, routers = sizes.load_balancing, architecture.routers
    if balancing is None or not balancing.counts_first or not routers:
        return False
    return balancing.coeff_of(routers[0].usual_coeff) != 0
