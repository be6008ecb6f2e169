"""Layers that go through a packed row token by token, with the prompt's state computed once for both of its responses.

    chunks = plan([(0, 70, -1), (70, 110, 0), (110, 130, 0)])   # a prompt and two responses that go on where it ends
    x = causal_conv(x, weight, bias, chunks)
    y = scan(x, dt, A, B, C, D, chunks)

`gated_delta` is another recurrence. All are differentiable: both responses send their gradient back into the prompt's state. No
token sees another piece than those on its path. `nemotron_dpo.kernels.chunks` has the plan.
"""

from nemotron_dpo.kernels.chunks import Chunks, plan
from nemotron_dpo.kernels.recurrence.convolution import causal_conv
from nemotron_dpo.kernels.recurrence.gated_delta import gated_delta
from nemotron_dpo.kernels.recurrence.mamba2 import scan

__all__ = ["Chunks", "causal_conv", "gated_delta", "plan", "scan"]
