"""Every member by torch's own operations, on a CPU or a GPU.

The other backends fall back to them, and tests hold the other backends to them.
"""
