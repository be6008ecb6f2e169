"""The most FLOPs a second that GPUs do by their data sheets, to say what share of it a step reaches. Imports no torch."""

from __future__ import annotations

# By how the name of a GPU begins, the first that fits: 10^12 FLOPs a second of dense products in bfloat16, added up in float32,
# and in float32 without TF32, which is off here. From NVIDIA's data sheets, which give bfloat16 with sparsity: twice as much.
_TERAFLOPS = (
    ("NVIDIA GB300", 2450.0, 80.0),
    ("NVIDIA GB200", 2450.0, 80.0),
    ("NVIDIA B300", 2250.0, 80.0),
    ("NVIDIA B200", 2250.0, 80.0),
    ("NVIDIA H200 NVL", 835.5, 60.0),
    ("NVIDIA H200", 989.5, 67.0),
    ("NVIDIA GH200", 989.5, 67.0),
    ("NVIDIA H100 NVL", 835.5, 60.0),
    ("NVIDIA H100 PCIe", 756.5, 51.0),
    ("NVIDIA H100", 989.5, 67.0),
    ("NVIDIA A100", 312.0, 19.5),
    ("NVIDIA L40S", 362.0, 91.6),
    ("NVIDIA L40", 181.0, 90.5),
    ("NVIDIA L4", 121.0, 30.3),
)


def peak_flops(device: str, precision: str) -> float | None:
    """FLOPs a second of the GPU called `device` in `precision` (bfloat16 or float32); None where unknown, as of a CPU."""
    for start, bfloat16, float32 in _TERAFLOPS:
        if device.startswith(start):
            return {"bfloat16": bfloat16, "float32": float32}[precision] * 1e12
    return None
