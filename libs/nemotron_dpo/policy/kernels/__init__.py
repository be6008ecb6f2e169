"""Kernels of ours: for CPUs, in C, attention over packed pairs and what lies between the products of a layer in bfloat16; for
GPUs, in Triton, the latter and the sums over a block of logits.

They make no temporaries where torch's operations make many. `build` compiles those in C once, where there is a compiler;
without it, or without Triton, torch's operations compute the same.
"""
