"""Logits of bfloat16 in float32 and what is kept of them, in one pass, in C: on a CPU that multiplies pairs of bfloat16.

Sums over logits that torch multiplied are made in C on any CPU.

Legend: C tokens, B entries of a block of the vocabulary, H hidden.
"""

from __future__ import annotations

import ctypes
from functools import partial

import torch
from torch import Tensor

from nemotron_dpo.kernels.scratch import scratch
from nemotron_dpo.kernels.torch_ops.logits import read_summing


def serves(library: ctypes.CDLL, hidden_CH: Tensor, weight_BH: Tensor) -> bool:
    """Whether there is a kernel for these: bfloat16 in the memory of a CPU, without gaps, and features that come in pairs.

    There is none where the CPU has tiles of bfloat16 (AMX): there the products that torch takes are faster still.
    """
    both = (hidden_CH, weight_BH)
    if not all(x.device.type == "cpu" and x.dtype is torch.bfloat16 and x.is_contiguous() for x in both):
        return False
    return weight_BH.shape[1] % 2 == 0 and library.panels_floats(*weight_BH.shape) > 0


def read_logits(
    library: ctypes.CDLL,
    hidden_CH: Tensor,
    weight_BH: Tensor,
    place_C1: Tensor,
    softmax_CB: Tensor | None,
    sums_5C: Tensor | None = None,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """As `Kernels.read_logits`; logits that are capped are torch's."""
    if softcap is not None or not serves(library, hidden_CH, weight_BH):
        return read_summing(partial(_sum_up, library), hidden_CH, weight_BH, place_C1, softmax_CB, sums_5C, softcap)
    threads = torch.get_num_threads()
    at_C, log_sums_C = torch.empty(2, len(hidden_CH))
    panels = scratch("logit panels", library.panels_floats(*weight_BH.shape))
    tiles = scratch("logit tiles", threads * library.tiles_floats(*weight_BH.shape))
    tensors = hidden_CH, weight_BH, place_C1.contiguous(), at_C, log_sums_C, softmax_CB, sums_5C, panels, tiles
    pointers = (None if x is None else x.data_ptr() for x in tensors)
    library.read_logits(*pointers, len(hidden_CH), *weight_BH.shape, threads)
    return at_C, log_sums_C


def _sum_up(library: ctypes.CDLL, logits_CB: Tensor, place_C1: Tensor, sums_5C: Tensor) -> None:
    """The sums of `Kernels.read_logits`, of float32 logits that lie behind one another."""
    pointers = (x.data_ptr() for x in (logits_CB, place_C1.contiguous(), sums_5C))
    library.sum_up_logits(*pointers, *logits_CB.shape, torch.get_num_threads())
