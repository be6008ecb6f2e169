"""The table that a backend fills in: one function a member, the same numbers from every backend but for rounding.

A member takes any tensor that the model gives it. Where a backend's own code does not serve a tensor (another dtype, a view
with gaps), the member falls back to torch's operations by itself, so that callers never ask which backend there is.

Legend: S packed tokens, L those held here, T tokens, N query heads, G key/value heads, D head size, H features, C tokens of a
chunk, B entries of a block of the vocabulary. In a recurrence N heads, of which those of one of G groups share B and C, K state
size, C channels, W taps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from nemotron_dpo.kernels.chunks import Chunks
from nemotron_dpo.kernels.scores import Scores
from nemotron_dpo.kernels.segments import PackedTokens

ScanGradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]  # of x, dt, A, B, C and D


class Attend(Protocol):
    """The form of `Kernels.attend`."""

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, row: PackedTokens, scores: Scores, sinks_N: Tensor | None = None, /
    ) -> Tensor: ...


@dataclass(frozen=True)
class Kernels:
    """A backend: its name, what tells its numbers from another's (`identity`), and its members.

    attend(query, key, value, row, scores, sinks_N): attention [L, 1, N * D] of query [L, 1, N, D] over key and value
        [S, 1, G, D], by the rule of `segments` and with `scores` as they say; differentiable. `sinks_N` are the scores of one
        more key that every query of a head sees and that has no value, or None.
    rms_norm(x, gain_H, eps): x [..., H] / sqrt(mean(x^2) + eps) * gain, and the inverses of the roots [T]. The gain is float32.
    rms_norm_backward(x, gain_H, scales_T, grad, of_gain): the gradients of x and, float32, of the gain. Where `of_gain` is
        False nobody reads the second, which may be None.
    swiglu(gate_and_up, owner): silu(gate) * up of the two halves [..., 2H] -> [..., H]. An `owner` announces that the gradient
        of the same tensor is the next to be asked for, with the same owner; None where it is not.
    swiglu_backward(gate_and_up, grad, owner): the gradient [..., 2H] of both halves.
    rotate(x, cosines, sines, direction): queries or keys [T, 1, N, D], of which the first entries are turned by angles
        [T, 1, 1, as many], times 1 or -1.
    read_logits(hidden_CH, weight_BH, place_C1, softmax_CB, sums_5C, softcap): of logits hidden @ weight.T one of each token's,
        and log(sum(exp(logits))), float32 [C] each. Their softmax is written to `softmax_CB`, unless it is None. Unless
        `sums_5C` is None, it gets of each token's logits, float32: the highest, 1 if the one at the token's place is the first
        of the highest, else 0, and of e = exp(logit - highest) the sums of e, of e * (highest - logit) and of e * e. These are
        sums of what is not negative, so no digits are lost in them. Whether they are asked for changes no bit of the rest. With
        a `softcap` c, unless it is None, all this is of c * tanh(logit / c), but that the softmax is multiplied by the slope of
        that, 1 - tanh(logit / c)^2, with which it is the gradient of what was capped.
    scan(x_SND, dt_SN, A_N, B_SGK, C_SGK, D_N, chunks): the recurrence of Mamba-2 along each path of `chunks`, as x.
        scan_backward takes the gradient of the result before these, and gives those of the six tensors.
    gated_delta(q_SGK, k_SGK, v_SND, g_SN, beta_SN, chunks): the gated delta rule along each path, as v; differentiable.
    convolve(x_SC, weight_CW, bias_C, chunks): of each channel the sum of its weights times the last W tokens of the path, as x.
        convolve_backward(grad_SC, x_SC, weight_CW, chunks) gives the gradients of the three tensors.
    add_rounded(total, part): total += part, where `total` is float32 and `part` is narrower.
    """

    name: str
    identity: str
    attend: Attend
    rms_norm: Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]
    rms_norm_backward: Callable[[Tensor, Tensor, Tensor, Tensor, bool], tuple[Tensor, Tensor | None]]
    swiglu: Callable[[Tensor, object], Tensor]
    swiglu_backward: Callable[[Tensor, Tensor, object], Tensor]
    rotate: Callable[[Tensor, Tensor, Tensor, int], Tensor]
    read_logits: Callable[[Tensor, Tensor, Tensor, Tensor | None, Tensor | None, float | None], tuple[Tensor, Tensor]]
    scan: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Chunks], Tensor]
    scan_backward: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Chunks], ScanGradients]
    gated_delta: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Chunks], Tensor]
    convolve: Callable[[Tensor, Tensor, Tensor | None, Chunks], Tensor]
    convolve_backward: Callable[[Tensor, Tensor, Tensor, Chunks], tuple[Tensor, Tensor, Tensor]]
    add_rounded: Callable[[Tensor, Tensor], None]


class Unavailable(Exception):
    """A backend cannot be used here; the message says why, in one line."""
