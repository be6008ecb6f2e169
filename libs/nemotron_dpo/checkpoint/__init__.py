"""Checkpoints: Hugging Face folders and NVIDIA's `checkpoint_megatron`, in and out."""
