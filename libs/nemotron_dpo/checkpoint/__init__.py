"""Checkpoints: Hugging Face folders and NVIDIA's `checkpoint_megatron`, read and written."""
