"""Logits of some tokens by blocks of the vocabulary, made one after the other into memory that is used again.

A block fits a CPU's cache: products write and read it there. Legend: C tokens, H hidden, V this rank's share of the vocabulary,
B entries of a block of it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nemotron_dpo.policy.kernels import layers as kernels
from nemotron_dpo.policy.workspace import room

CHUNK_TOKENS, BLOCK_ENTRIES = 2048, 2048
GPU_CHUNK_TOKENS, GPU_BLOCK_ENTRIES = 8192, 16384  # large products; a gradient of weights is read and written once a chunk
KEPT_TOKENS, KEPT_BYTES = 4096, 2**29  # whose logits are kept at once, and what these take
GPU_KEPT_TOKENS, GPU_KEPT_BYTES = GPU_CHUNK_TOKENS, 2**31


class Logits:
    """hidden @ weight.T of one chunk of tokens; with `keep` a block stays as it was made until it is read as probabilities.

    Only one such object may be in use at a time.
    """

    def __init__(self, hidden_CH: Tensor, weight_VH: Tensor, *, keep: bool) -> None:
        self._hidden_CH, self._weight_VH, self._keep = hidden_CH, weight_VH, keep
        self.blocks = blocks(weight_VH)
        self._memory = room(
            "kept logits" if keep else "logits",
            len(self.blocks) if keep else 1,
            len(hidden_CH) * (self.blocks[0].stop - self.blocks[0].start),
            dtype=weight_VH.dtype,
            device=weight_VH.device,
        )
        self._made: set[int] = set()

    def at(self, index: int, place_C1: Tensor) -> Tensor:
        """The logits of one entry of each token in block `index`, float32 [C]."""
        return self._block(index).gather(1, place_C1).squeeze(1).float()

    def log_sum_exp(self, index: int) -> Tensor:
        """log(sum(exp(logits))) over block `index`, float32 [C]."""
        narrow_CB = self._block(index)
        if narrow_CB.is_cuda and kernels.serve(narrow_CB):
            return kernels.log_sum_exp(narrow_CB)
        wide_CB = room("wide logits", *narrow_CB.shape, device=narrow_CB.device)
        source_CB = narrow_CB if narrow_CB.dtype is torch.float32 else wide_CB.copy_(narrow_CB)
        return narrow_CB[:, 0].float() - torch.log_softmax(source_CB, 1, out=wide_CB)[:, 0]

    def probabilities(self, index: int) -> Tensor:
        """softmax over block `index`, computed in float32 and rounded to the weight's dtype [C, B]; the logits are gone."""
        logits_CB = self._block(index)
        self._made.discard(index)
        return torch.softmax(logits_CB, 1, out=logits_CB)

    def _block(self, index: int) -> Tensor:
        block = self.blocks[index]
        shape = len(self._hidden_CH), block.stop - block.start
        memory = self._memory[index if self._keep else 0]
        logits_CB = memory[: shape[0] * shape[1]].view(shape)
        if index not in self._made:
            torch.mm(self._hidden_CH, self._weight_VH[block].t(), out=logits_CB)
            self._made = {*self._made, index} if self._keep else {index}
        return logits_CB


def chunks(num_tokens: int, weight_VH: Tensor) -> list[slice]:
    """At least one chunk, be it empty: a rank may hold no response token."""
    size = GPU_CHUNK_TOKENS if weight_VH.is_cuda else CHUNK_TOKENS
    return [slice(start, min(start + size, num_tokens)) for start in range(0, max(1, num_tokens), size)]


def kept_tokens(weight_VH: Tensor) -> int:
    """The most tokens of a chunk whose logits are kept."""
    tokens, size = (GPU_KEPT_TOKENS, GPU_KEPT_BYTES) if weight_VH.is_cuda else (KEPT_TOKENS, KEPT_BYTES)
    return min(tokens, size // (len(weight_VH) * weight_VH.element_size()))


def blocks(weight_VH: Tensor) -> list[slice]:
    """The vocabulary in blocks."""
    size = GPU_BLOCK_ENTRIES if weight_VH.is_cuda else BLOCK_ENTRIES
    return [slice(start, min(start + size, len(weight_VH))) for start in range(0, len(weight_VH), size)]
