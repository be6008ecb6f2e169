"""Kernels of ours: for CPUs, in C, attention over packed pairs, what lies between the products of a layer in bfloat16, and
the logits with what is made of them; for GPUs, in Triton, the second and what is made of a block of logits.

They make no temporaries where torch's operations make many. `build` compiles those in C once, where there is a compiler;
without it, or without Triton, torch's operations compute the same.
"""
