"""What packed pairs cost, by which data-parallel replicas divide them."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np

from nemotron_dpo.policy import flops, parallel
from nemotron_dpo.policy.architecture import Architecture


@dataclass(frozen=True)
class PairLengths:
    """Tokens of the prompt and of either response of each pair, int64 [P]."""

    prompt: np.ndarray
    chosen: np.ndarray
    rejected: np.ndarray

    @property
    def all(self) -> np.ndarray:
        """Tokens of each pair in a packed row."""
        return self.prompt + self.chosen + self.rejected

    @property
    def responses(self) -> np.ndarray:
        """Tokens of both responses."""
        return self.chosen + self.rejected

    def meetings(self, window: int | None = None) -> np.ndarray:
        """Queries times the keys they see, of each path the last `window`."""

        def along(path: np.ndarray) -> np.ndarray:
            full = path if window is None else np.minimum(path, window)  # tokens that see all before them
            return full * (full + 1) // 2 + (path - full) * (window or 0)

        return along(self.prompt + self.chosen) + along(self.prompt + self.rejected) - along(self.prompt)


def pair_flops(architecture: Architecture, prompt: np.ndarray, chosen: np.ndarray, rejected: np.ndarray) -> np.ndarray:
    """FLOPs [P] of the forward pass of pairs of so many tokens [P] each, the shared prompt once."""
    lengths = PairLengths(*(column.astype(np.int64) for column in (prompt, chosen, rejected)))
    return flops.forward(architecture, lengths)


def share_of_replica(architecture: Architecture, prompt: np.ndarray, chosen: np.ndarray, rejected: np.ndarray) -> list[int]:
    """Which of the pairs of so many tokens [P] each this data-parallel replica computes, all having about the same FLOPs."""
    if parallel.data_size() == 1:
        return list(range(len(prompt)))
    costs = pair_flops(architecture, prompt, chosen, rejected)
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
