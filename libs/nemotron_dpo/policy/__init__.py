"""The policy on megatron-core: device, process groups, GPTModel over packed pairs, attention, log-probs, optimizer."""
