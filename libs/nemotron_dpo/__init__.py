"""Direct preference optimization on megatron-core, as libraries; the executables in bin/ wire them together."""

__version__ = "0.1.0"
