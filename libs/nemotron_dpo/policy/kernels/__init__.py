"""Kernels of ours for CPUs, in C: attention over packed pairs, and what lies between the products of a layer in bfloat16.

They make no temporaries where torch's operations make many. `build` compiles them once, where there is a compiler; elsewhere
torch's operations compute the same, as they do on GPUs.
"""
