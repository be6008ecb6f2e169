"""The table of kernels in C, over torch's operations."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from nemotron_dpo.kernels import choice
from nemotron_dpo.kernels.c import attention, convolution, delta, layers, logits, scan
from nemotron_dpo.kernels.c.build import library
from nemotron_dpo.kernels.protocol import Kernels, Unavailable
from nemotron_dpo.kernels.torch_ops.table import torch_kernels


def c_kernels(environ: Mapping[str, str]) -> Kernels:
    """The table, with its library built by the compiler that `environ` names. Raises Unavailable."""
    compiler = choice.compiler(environ)
    if compiler is None:
        raise Unavailable(choice.obstacle("c", environ))
    return table_of(*library(compiler, environ))


def table_of(loaded: ctypes.CDLL, digest: str) -> Kernels:
    """The table of one library."""
    torchs = torch_kernels()
    return replace(
        torchs,
        name="c",
        identity=f"c {digest}, {torchs.identity}",
        attend=partial(attention.attend, loaded),
        rms_norm=partial(layers.rms_norm, loaded),
        rms_norm_backward=partial(layers.rms_norm_backward, loaded),
        swiglu=partial(layers.swiglu, loaded),
        swiglu_backward=partial(layers.swiglu_backward, loaded),
        rotate=partial(layers.rotate, loaded),
        read_logits=partial(logits.read_logits, loaded),
        scan=partial(scan.scan, loaded),
        scan_backward=partial(scan.scan_backward, loaded),
        gated_delta=partial(delta.gated_delta, loaded),
        convolve=partial(convolution.convolve, loaded),
        convolve_backward=partial(convolution.convolve_backward, loaded),
        add_rounded=partial(layers.add_rounded, loaded),
    )
