"""Sums over the responses of made-up rows, in numpy's manner and not by the code that is tested."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def by_response(response_R: Tensor, num_pairs: int) -> Callable[[Tensor], Tensor]:
    """Sums a value a token over each response, [P, 2]; `response_R` is 2 * pair + (0 chosen, 1 rejected) of each token."""
    member = torch.nn.functional.one_hot(response_R, 2 * num_pairs)

    def sums(values_R: Tensor) -> Tensor:
        return (values_R @ member.to(values_R.dtype)).view(num_pairs, 2)

    return sums
