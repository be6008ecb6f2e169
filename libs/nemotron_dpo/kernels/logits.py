"""Logits of some tokens by blocks of the vocabulary, made one after the other into memory that is used again.

Logits are float32 whatever they are made of: rounded to bfloat16, one of 16 would be up to 0.06 off. A block fits the cache
of a CPU: products write and read it there.

Legend: C tokens, H hidden, V this rank's share of the vocabulary, B entries of a block of it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nemotron_dpo.kernels.chosen import kernels
from nemotron_dpo.kernels.scratch import scratch

CHUNK_TOKENS, BLOCK_ENTRIES = 2048, 2048
GPU_CHUNK_TOKENS, GPU_BLOCK_ENTRIES = 8192, 16384  # large products; a gradient of weights is read and written once a chunk
KEPT_TOKENS, KEPT_BYTES = 4096, 2**29  # whose probabilities are kept at once, and what these take
GPU_KEPT_TOKENS, GPU_KEPT_BYTES = GPU_CHUNK_TOKENS, 2**31


class Logits:
    """hidden @ weight.T of one chunk of tokens; with `keep` the probabilities of a block that was read are kept.

    `softcap` is as in `Kernels.read_logits`. Only one such object may be in use at a time.
    """

    def __init__(self, hidden_CH: Tensor, weight_VH: Tensor, *, keep: bool, softcap: float | None = None) -> None:
        self._hidden_CH, self._weight_VH, self._keep, self._softcap = hidden_CH, weight_VH, keep, softcap
        self.blocks = blocks(weight_VH)
        self._memory = scratch(
            "kept probabilities" if keep else "probabilities",
            len(self.blocks) if keep else 1,
            len(hidden_CH) * (self.blocks[0].stop - self.blocks[0].start),
            dtype=weight_VH.dtype,
            device=weight_VH.device,
        )

    def read(self, index: int, place_C1: Tensor, sums_5C: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Of each token the logit of one entry of block `index`, and log(sum(exp(logits))) over the block; float32 [C] each.

        `sums_5C` is as in `Kernels.read_logits`.
        """
        return self._read(index, place_C1, self._at(index) if self._keep else None, sums_5C)

    def probabilities(self, index: int) -> Tensor:
        """softmax over block `index`, computed in float32 and rounded to the weight's dtype [C, B]; it may be changed.

        Of logits that are capped, times the slope of that.
        """
        probabilities_CB = self._at(index)
        if not self._keep:
            anywhere_C1 = torch.zeros(len(self._hidden_CH), 1, dtype=torch.long, device=self._hidden_CH.device)
            self._read(index, anywhere_C1, probabilities_CB, None)
        return probabilities_CB

    def _read(self, index: int, place_C1: Tensor, softmax_CB: Tensor | None, sums_5C: Tensor | None) -> tuple[Tensor, Tensor]:
        weight_BH = self._weight_VH[self.blocks[index]]
        return kernels().read_logits(self._hidden_CH, weight_BH, place_C1, softmax_CB, sums_5C, self._softcap)

    def _at(self, index: int) -> Tensor:
        """Memory for the probabilities of a block."""
        shape = len(self._hidden_CH), self.blocks[index].stop - self.blocks[index].start
        return self._memory[index if self._keep else 0][: shape[0] * shape[1]].view(shape)


def chunks(num_tokens: int, weight_VH: Tensor) -> list[slice]:
    """At least one chunk, be it empty: a rank may hold no response token."""
    size = GPU_CHUNK_TOKENS if weight_VH.is_cuda else CHUNK_TOKENS
    return [slice(start, min(start + size, num_tokens)) for start in range(0, max(1, num_tokens), size)]


def kept_tokens(weight_VH: Tensor) -> int:
    """The most tokens of a chunk whose probabilities are kept."""
    tokens, size = (GPU_KEPT_TOKENS, GPU_KEPT_BYTES) if weight_VH.is_cuda else (KEPT_TOKENS, KEPT_BYTES)
    return min(tokens, size // (len(weight_VH) * weight_VH.element_size()))


def blocks(weight_VH: Tensor) -> list[slice]:
    """The vocabulary in blocks."""
    size = GPU_BLOCK_ENTRIES if weight_VH.is_cuda else BLOCK_ENTRIES
    return [slice(start, min(start + size, len(weight_VH))) for start in range(0, len(weight_VH), size)]
