"""The most FLOPs a second that GPUs do by their data sheets: what a step reaches is a share of it. Imports no torch."""

from __future__ import annotations

import re

# By what the name of a GPU has in it, the first that fits: 10^12 FLOPs a second of dense products in bfloat16, summed in
# float32, and in float32 without TF32, which is off here. From NVIDIA's data sheets, which give bfloat16 with sparsity: twice
# as much.
_TERAFLOPS = (
    ("GB300", 2450.0, 80.0),
    ("GB200", 2450.0, 80.0),
    ("B300", 2250.0, 80.0),
    ("B200", 2250.0, 80.0),
    ("H200 NVL", 835.5, 60.0),
    ("GH200", 989.5, 67.0),
    ("H200", 989.5, 67.0),
    ("H100 NVL", 835.5, 60.0),
    ("H100 PCIe", 756.5, 51.0),
    ("H100", 989.5, 67.0),
    ("H800", 989.5, 67.0),
    ("A100", 312.0, 19.5),
    ("A800", 312.0, 19.5),
    ("L40S", 362.0, 91.6),
    ("L40", 181.0, 90.5),
    ("L4", 121.0, 30.3),
    ("A40", 149.7, 37.4),
    ("A30", 165.0, 10.3),
    ("A10", 125.0, 31.2),
)


def known_gpu(text: str) -> str | None:
    """The first GPU of the table that `text` names, in whatever case: a device's name, a partition, a resource shape.

    A short word counts where it stands alone: `pool4` is no L4, and an A10G no A10.
    """
    for word, *_ in _TERAFLOPS:
        start = r"(?<![A-Za-z0-9])" if len(word) < 4 else ""
        if re.search(f"{start}{re.escape(word)}(?![A-Za-z0-9])", text, re.IGNORECASE):
            return word
    return None


def peak_flops(device: str, precision: str) -> float | None:
    """FLOPs a second of the GPU called `device` in `precision` (bfloat16 or float32); None where unknown, as of a CPU."""
    word = known_gpu(device)
    rates = next(({"bfloat16": wide, "float32": narrow} for name, wide, narrow in _TERAFLOPS if name == word), None)
    return None if rates is None else rates[precision] * 1e12
