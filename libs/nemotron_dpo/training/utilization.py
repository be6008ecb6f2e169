"""What share of its devices' peak a step reaches, as NeMo-RL's train_fp_utilization."""

from __future__ import annotations

import numpy as np

from nemotron_dpo.policy import device, flops, parallel
from nemotron_dpo.policy.cost import PairLengths
from nemotron_dpo.policy.lora import adapted_of
from nemotron_dpo.policy.model import PairPolicy
from nemotron_dpo.policy.peak_flops import peak_flops
from nemotron_dpo.training.pair_values import PairValues


def utilization(policy: PairPolicy, pairs: PairValues, seconds: float) -> dict[str, float]:
    """FLOPs that training on `pairs` takes, by those of all devices at their peak in that time; empty where that is unknown.

    It counts as is usual: the products of a forward and a backward pass, not those computed again to save memory.
    """
    precision = str(policy.config.params_dtype).removeprefix("torch.")
    peak = peak_flops(device.name(), precision)
    if peak is None:
        return {}
    return {"train_fp_utilization": flops_of(policy, pairs) / (seconds * peak * parallel.world_size())}


def flops_of(policy: PairPolicy, pairs: PairValues) -> float:
    """FLOPs that the gradients of `pairs` take."""
    data, rows = pairs.data, np.asarray(pairs.rows, dtype=np.int64)
    lengths = PairLengths(*(column.lengths[rows] for column in (data.prompt, data.chosen, data.rejected)))
    return float(flops.trained(policy.architecture, lengths, are_frozen=adapted_of(policy) is not None).sum())
