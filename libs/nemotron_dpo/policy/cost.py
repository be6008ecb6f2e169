"""What a packed pair costs: the arithmetic of its forward pass, by which work is divided over data-parallel replicas."""

from __future__ import annotations

import heapq
from typing import Any

import numpy as np

from nemotron_dpo.policy import parallel
from nemotron_dpo.policy.model import PairPolicy


def pair_flops(config: Any, vocab_size: int, prompt: np.ndarray, chosen: np.ndarray, rejected: np.ndarray) -> np.ndarray:
    """FLOPs [P] of the forward pass of pairs of so many tokens [P] each, the shared prompt once; `config` is megatron-core's.

    Two a weight and token in the layers (of a mixture, the experts that a token goes to), four a query, key and channel that
    meet in attention, and two a weight and response token in the output layer.
    """
    width, groups = config.kv_channels * config.num_attention_heads, config.kv_channels * config.num_query_groups
    projections = config.hidden_size * (2 * width + 2 * groups)
    dense = config.num_moe_experts is None
    inner = config.ffn_hidden_size if dense else config.moe_ffn_hidden_size * config.moe_router_topk
    feed_forward = (3 if config.gated_linear_unit else 2) * config.hidden_size * inner
    prompt, chosen, rejected = (lengths.astype(np.int64) for lengths in (prompt, chosen, rejected))
    seen = (prompt + chosen) * (prompt + chosen + 1) // 2 + rejected * prompt + rejected * (rejected + 1) // 2
    layer = 2 * (projections + feed_forward) * (prompt + chosen + rejected) + 4 * width * seen
    return config.num_layers * layer + 2 * config.hidden_size * vocab_size * (chosen + rejected)


def share_of_replica(policy: PairPolicy, prompt: np.ndarray, chosen: np.ndarray, rejected: np.ndarray) -> list[int]:
    """Which of the pairs of so many tokens [P] each this data-parallel replica computes, all having about the same FLOPs."""
    if parallel.data_size() == 1:
        return list(range(len(prompt)))
    costs = pair_flops(policy.config, policy.vocab_size, prompt, chosen, rejected)
    return balanced(costs, parallel.data_size())[parallel.data_rank()]


def balanced(costs: np.ndarray, size: int) -> list[list[int]]:
    """Indices of `costs` in `size` parts of about equal sums: assign the costliest to the lightest part.

    A part's indices are in order. No part is empty where there are as many costs as parts. Depends on `costs` alone, so that
    every rank finds the same.
    """
    parts: list[list[int]] = [[] for _ in range(size)]
    lightest = [(0.0, 0, part) for part in range(size)]  # a heap of (sum, number of costs, part)
    for index in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        total, count, part = lightest[0]
        parts[part].append(index)
        heapq.heapreplace(lightest, (total + float(costs[index]), count + 1, part))
    return [sorted(part) for part in parts]
