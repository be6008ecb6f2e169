"""One micro batch as tensors: a single packed row of whole pairs, each laid out prompt | chosen | rejected.

Legend: S packed tokens, L those of them that this context-parallel rank holds, R response tokens (both responses of all
pairs), M those of them that this rank predicts, P pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from nemotron_dpo.kernels import recurrence
from nemotron_dpo.kernels.segments import Segment
from nemotron_dpo.policy.device import to_device


@dataclass(frozen=True)
class Cut:
    """Context-parallel rank `rank` of `size` takes its part of a row, in multiples of `tokens_together` tokens."""

    rank: int = 0
    size: int = 1
    tokens_together: int = 1

    @property
    def multiple(self) -> int:
        """What the length of a row must be a multiple of."""
        return self.tokens_together * (2 * self.size if self.size > 1 else 1)


@dataclass(frozen=True)
class Share:
    """The part of a row that one context-parallel rank holds: two chunks of equal length, the earlier first.

    Rank c of n takes chunks c and 2n - 1 - c of the row's 2n: tokens late in a sequence attend to more than early ones do,
    and so each rank gets about the same work.

    tokens_L: places in the packed row of the tokens held. order_S: where each packed token lies once the shares of all
    ranks are put behind one another. held_M: places in R of the response tokens whose predictor is held, and predictors_M
    the places of those predictors in L.
    """

    chunks: tuple[slice, slice]
    tokens_L: torch.Tensor
    order_S: torch.Tensor
    held_M: torch.Tensor
    predictors_M: torch.Tensor


@dataclass(frozen=True, eq=False)  # two rows are never the same: tensors and slices can neither be compared nor hashed
class PackedRow:
    """Whole pairs packed behind one another. Travels through megatron-core as its `packed_seq_params`.

    input_ids_S, positions_S: int64, positions restarting at the prompt's end for the rejected response.
    predictors_R: the packed index whose hidden state predicts each response token (the prompt's last token for the first).
    targets_R: the response tokens; chosen and rejected of pair 0, then of pair 1, and so on.
    response_R: the response that each response token is of, counted in that order.
    segments: the P pairs, then the padding where there is any. share: None where this rank holds all tokens.
    """

    input_ids_S: torch.Tensor
    positions_S: torch.Tensor
    predictors_R: torch.Tensor
    targets_R: torch.Tensor
    response_R: torch.Tensor
    segments: tuple[Segment, ...]
    num_pairs: int
    share: Share | None = None
    qkv_format: str = "pairs"

    @property
    def num_tokens(self) -> int:
        """S, padding included."""
        return len(self.input_ids_S)

    @property
    def longest(self) -> int:
        """Tokens of the longest text, a prompt and one of its responses."""
        texts = ((pair.chosen - pair.prompt, pair) for pair in self.segments)
        return max(prompt + max(pair.rejected - pair.chosen, pair.end - pair.rejected) for prompt, pair in texts)

    @property
    def input_ids_L(self) -> torch.Tensor:
        """The token ids that this rank holds."""
        return self.input_ids_S if self.share is None else self.input_ids_S[self.share.tokens_L]

    @property
    def positions_L(self) -> torch.Tensor:
        """Their positions."""
        return self.positions_S if self.share is None else self.positions_S[self.share.tokens_L]

    @cached_property
    def chunks_of_recurrence(self) -> recurrence.Chunks:
        """In what pieces a recurrence goes over the row: a pair's prompt, from whose end both of its responses go on."""
        pieces: list[tuple[int, int, int]] = []
        for pair in self.segments[: self.num_pairs]:  # padding is in none, and becomes zero
            prompt = len(pieces)
            pieces.append((pair.prompt, pair.chosen, -1))
            pieces += [(pair.chosen, pair.rejected, prompt), (pair.rejected, pair.end, prompt)]
        return recurrence.plan(pieces)

    def sums_of_responses(self, values_R: torch.Tensor) -> torch.Tensor:
        """Of a value a response token, the sums [P, 2] over the tokens of each pair's chosen and of its rejected response."""
        sums = torch.zeros(2 * self.num_pairs, dtype=values_R.dtype, device=values_R.device)
        if values_R.is_cuda:  # where index_add adds in the order that threads come by
            return sums.index_put((self.response_R,), values_R, accumulate=True).view(self.num_pairs, 2)
        return sums.index_add(0, self.response_R, values_R).view(self.num_pairs, 2)

    def sequences(self) -> torch.Tensor:
        """Which tokens are of which sequence, bool [2 P, L]: a pair's prompt and chosen response, then prompt and rejected."""
        pairs = self.segments[: self.num_pairs]
        edges = np.array([(pair.prompt, pair.chosen, pair.rejected, pair.end) for pair in pairs], dtype=np.int64).reshape(-1, 4)
        prompt_P1, chosen_P1, rejected_P1, end_P1 = to_device(edges).split(1, dim=1)
        at_S = torch.arange(self.num_tokens, device=self.input_ids_S.device)
        chosen_PS = (at_S >= prompt_P1) & (at_S < rejected_P1)
        rejected_PS = (at_S >= prompt_P1) & (at_S < end_P1) & ~((at_S >= chosen_P1) & (at_S < rejected_P1))
        sequences = torch.stack((chosen_PS, rejected_PS), dim=1).flatten(0, 1)
        return sequences if self.share is None else sequences[:, self.share.tokens_L]

    @property
    def is_tail_R(self) -> torch.Tensor:
        """Float32: 1 for a response token that is past the number of tokens of its pair's shorter response, else 0."""
        counts = torch.bincount(self.response_R, minlength=2 * self.num_pairs)
        places_R = torch.arange(len(self.response_R), device=counts.device) - (counts.cumsum(0) - counts)[self.response_R]
        shorter_P = counts.view(self.num_pairs, 2).amin(1)
        return (places_R >= shorter_P[self.response_R // 2]).float()

    @property
    def chunks(self) -> tuple[slice, ...]:
        """The runs of packed tokens that this rank holds, in the order it holds them."""
        return (slice(0, self.num_tokens),) if self.share is None else self.share.chunks


def pack_row(
    prompts: Sequence[np.ndarray], chosen: Sequence[np.ndarray], rejected: Sequence[np.ndarray], cut: Cut = Cut()
) -> PackedRow:
    """Lay out P pairs (lists of int token-id arrays, each at least one token long) as one PackedRow on this device.

    The row is padded to what `cut` asks for, and is never empty: without pairs it is all padding.
    """
    ids, positions, segments = [], [], []
    predictors, targets, responses = [], [], []
    start = 0
    for pair, (prompt, *sides) in enumerate(zip(prompts, chosen, rejected, strict=True)):
        lengths = len(prompt), *map(len, sides)
        segment = Segment(start, start + lengths[0], start + lengths[0] + lengths[1], start + sum(lengths))
        ids += [prompt, *sides]
        positions += [np.arange(lengths[0] + lengths[1]), np.arange(lengths[0], lengths[0] + lengths[2])]
        for side, (first, response) in enumerate(zip((segment.chosen, segment.rejected), sides, strict=True)):
            predictors += [[segment.chosen - 1], np.arange(first, first + len(response) - 1)]
            targets.append(response)
            responses.append(np.full(len(response), _response(pair, side)))
        segments.append(segment)
        start = segment.end
    padding = -start % cut.multiple if start else cut.multiple
    if padding:
        end = start + padding
        segments.append(Segment(start, end, end, end))
        ids.append(np.zeros(padding))
        positions.append(np.zeros(padding))
    arrays = [_joined(parts) for parts in (ids, positions, predictors, targets, responses)]
    share = None if cut.size == 1 else _share(cut, start + padding, arrays[2])
    tensors = [to_device(array) for array in arrays]
    return PackedRow(*tensors, segments=tuple(segments), num_pairs=len(prompts), share=share)


def join_responses(chosen: Sequence[np.ndarray], rejected: Sequence[np.ndarray]) -> np.ndarray:
    """Values of the response tokens of some pairs in the order of R."""
    return np.concatenate([side for pair in zip(chosen, rejected, strict=True) for side in pair])


def split_responses(values_R: np.ndarray, chosen: np.ndarray, rejected: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """The inverse of `join_responses`: each pair's values, its responses being of so many tokens [P] each."""
    sides = np.split(values_R, np.cumsum(np.stack([chosen, rejected], axis=1).ravel())[:-1])
    return list(zip(sides[0::2], sides[1::2], strict=True))


def parts_of_pairs(row: PackedRow, max_tokens: int) -> list[slice] | None:
    """R in parts of whole pairs, of at most `max_tokens` response tokens each; None where a pair has more."""
    parts: list[slice] = []
    end = 0
    for pair in row.segments[: row.num_pairs]:
        start, end = end, end + pair.end - pair.chosen
        if end - start > max_tokens:
            return None
        if parts and end - parts[-1].start <= max_tokens:
            parts[-1] = slice(parts[-1].start, end)
        else:
            parts.append(slice(start, end))
    return parts


def _share(cut: Cut, num_tokens: int, predictors_R: np.ndarray) -> Share:
    chunk = num_tokens // (2 * cut.size)
    starts = [(rank * chunk, (2 * cut.size - 1 - rank) * chunk) for rank in range(cut.size)]
    places = np.concatenate([np.arange(start, start + chunk) for pair in starts for start in pair])
    order_S = np.argsort(places)
    mine = slice(2 * chunk * cut.rank, 2 * chunk * (cut.rank + 1))
    local_R = order_S[predictors_R] - mine.start
    held_M = np.flatnonzero((local_R >= 0) & (local_R < 2 * chunk))
    early, late = (slice(start, start + chunk) for start in starts[cut.rank])
    tensors = [to_device(array) for array in (places[mine], order_S, held_M, local_R[held_M])]
    return Share((early, late), *tensors)


def _response(pair: int, side: int) -> int:
    """The place of a response among those of a row. The order is known here alone: `PackedRow` and the two functions above."""
    return 2 * pair + side


def _joined(parts: list) -> np.ndarray:
    return np.concatenate(parts).astype(np.int64) if parts else np.zeros(0, dtype=np.int64)
