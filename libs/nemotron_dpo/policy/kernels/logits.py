"""Logits of bfloat16 in float32 and what is kept of them, in one pass, by C on a CPU that multiplies bfloat16.

Legend: C tokens, B entries of a block of the vocabulary, H hidden.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nemotron_dpo.policy.kernels.build import library
from nemotron_dpo.policy.workspace import room


def serves(hidden_CH: Tensor, weight_BH: Tensor) -> bool:
    """Whether there is a kernel for these: bfloat16 in the memory of a CPU, without gaps, and features that come in pairs."""
    both = (hidden_CH, weight_BH)
    if not all(x.device.type == "cpu" and x.dtype is torch.bfloat16 and x.is_contiguous() for x in both):
        return False
    loaded = library()
    return loaded is not None and weight_BH.shape[1] % 2 == 0 and loaded.panels_room(*weight_BH.shape) > 0


def read(hidden_CH: Tensor, weight_BH: Tensor, place_C: Tensor, softmax_CB: Tensor | None) -> tuple[Tensor, Tensor]:
    """Of logits hidden @ weight.T one of each token's, and the logarithm of the sum of their exponentials; float32 [C] each.

    Their softmax is written to `softmax_CB`, bfloat16, if there is one.
    """
    loaded, threads = library(), torch.get_num_threads()
    assert loaded is not None
    at_C, log_sums_C = torch.empty(2, len(hidden_CH))
    panels = room("logit panels", loaded.panels_room(*weight_BH.shape))
    tiles = room("logit tiles", threads * loaded.tiles_room(*weight_BH.shape))
    tensors = hidden_CH, weight_BH, place_C.contiguous(), at_C, log_sums_C, softmax_CB, panels, tiles
    pointers = (None if x is None else x.data_ptr() for x in tensors)
    loaded.read_logits(*pointers, len(hidden_CH), *weight_BH.shape, threads)
    return at_C, log_sums_C
