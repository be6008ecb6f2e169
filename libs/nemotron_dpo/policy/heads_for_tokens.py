"""Context parallelism of a recurrence, which needs all tokens of a row: ranks exchange tokens for heads, and back.

Legend: S packed tokens, L those that this context-parallel rank holds, c context-parallel ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nemotron_dpo.policy.rows import PackedRow


@dataclass(frozen=True)
class HeadsForTokens:
    """An exchange for one row. `parts` are the channels of what is stacked in a token's vector; each divides over the ranks.

    `order_S` is where each packed token lies once the shares of all ranks are put behind one another, `group` the ranks. Both
    are None, and nothing is exchanged, where this rank holds all tokens.
    """

    parts: tuple[int, ...]
    order_S: Tensor | None = None
    group: Any = None

    @staticmethod
    def of(row: PackedRow, parts: Sequence[int]) -> HeadsForTokens:
        """The exchange for `row`."""
        if row.share is None:
            return HeadsForTokens(tuple(parts))
        from megatron.core.parallel_state import get_context_parallel_group

        return HeadsForTokens(tuple(parts), row.share.order_S, get_context_parallel_group())

    @property
    def ranks(self) -> int:
        """c."""
        return 1 if self.group is None else self.group.size()

    @property
    def sizes(self) -> list[int]:
        """This rank's channels of each part."""
        return [part // self.ranks for part in self.parts]

    def forth(self, stacked: Tensor) -> Tensor:
        """[L, all channels] -> [S, this rank's channels of each part]."""
        if self.order_S is None:
            return stacked
        by_part = [part.chunk(self.ranks, dim=1) for part in stacked.split(self.parts, dim=1)]
        by_rank = [torch.cat(parts, dim=1) for parts in zip(*by_part, strict=True)]
        return _all_to_all(torch.cat(by_rank), self.group)[self.order_S]

    def back(self, mixed: Tensor) -> Tensor:
        """[S, this rank's channels] -> [L, the channels of all ranks]."""
        if self.order_S is None:
            return mixed
        by_rank = _all_to_all(mixed[torch.argsort(self.order_S)], self.group)
        return torch.cat(by_rank.chunk(self.ranks), dim=1)

    def rows(self, parameter: Tensor, num_parts: int) -> Tensor:
        """This rank's rows of a parameter that stacks the first `num_parts` parts."""
        if self.group is None:
            return parameter
        parts = parameter.split(self.parts[:num_parts])
        return torch.cat([part.chunk(self.ranks)[self.group.rank()] for part in parts])

    def heads(self, parameter: Tensor) -> Tensor:
        """This rank's rows of a parameter of one number a head."""
        return parameter if self.group is None else parameter.chunk(self.ranks)[self.group.rank()]


def _all_to_all(by_rank: Tensor, group: Any) -> Tensor:
    """Send the r-th part of the rows to rank r; what came from rank r is the r-th part of the result."""
    from megatron.core.tensor_parallel import all_to_all

    return all_to_all(group, by_rank.contiguous())
