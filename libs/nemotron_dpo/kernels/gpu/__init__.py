"""Members in Triton for a GPU: what lies between the products of a layer, and what is made of a block of logits.

Attention there is torch's own FlashAttention, in `torch_ops`.
"""
