"""The same adapters in Hugging Face's `peft`, over the same weights in transformers: the oracle of our LoRA.

Ours has one A for the fused query, key and value projections (and one for gate and up); there each of them has its own, so
that equal copies of ours compute the same, and their gradients sum to ours.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from support import small

if TYPE_CHECKING:
    from nemotron_dpo.policy.lora_layers import LoraLinear

PARTS = {
    "linear_qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "linear_proj": ("self_attn.o_proj",),
    "linear_fc1": ("mlp.gate_proj", "mlp.up_proj"),
    "linear_fc2": ("mlp.down_proj",),
}


def twin(folder: Path, ours: nn.Module, dim: int, alpha: int, *, share_a: bool = False) -> Any:
    """A float32 PeftModel over the Llama in `folder`, holding copies of the adapters of `ours`.

    With `share_a` the A of projections that are one layer here is one parameter there too, so that it can be trained.
    """
    from nemotron_dpo.policy.lora import adapters  # here, since megatron-core must not be imported before its device is set

    peft = pytest.importorskip("peft", reason="peft is not installed (configs/pins.txt has it)")
    small.load_llama.cache_clear()  # peft changes the model it is given
    names = {part.rpartition(".")[2] for name in adapters(ours) for part in PARTS[name.rpartition(".")[2]]}
    config = peft.LoraConfig(r=dim, lora_alpha=alpha, target_modules=sorted(names), task_type="CAUSAL_LM")
    model = peft.get_peft_model(small.load_llama(folder), config).eval()
    small.load_llama.cache_clear()
    with torch.no_grad():
        for layer, theirs in _pairs(ours, model):
            for linear, rows in theirs:
                if share_a:
                    linear.lora_A["default"].weight = theirs[0][0].lora_A["default"].weight
                linear.lora_A["default"].weight.copy_(layer.adapter.linear_in.weight)
                linear.lora_B["default"].weight.copy_(layer.adapter.linear_out.weight[rows])
    return model


def gradients(ours: nn.Module, model: Any) -> list[tuple[str, Tensor, Tensor]]:
    """(name, our gradient, theirs put together) of every adapter weight."""
    grads = []
    for layer, theirs in _pairs(ours, model):
        mine_a, mine_b = layer.adapter.linear_in.weight, layer.adapter.linear_out.weight
        summed, whole = torch.zeros_like(mine_a), torch.zeros_like(mine_b)
        for linear, rows in theirs:
            summed += linear.lora_A["default"].weight.grad
            whole[rows] = linear.lora_B["default"].weight.grad
        assert mine_a.grad is not None
        assert mine_b.grad is not None
        grads += [("A", mine_a.grad, summed), ("B", mine_b.grad, whole)]
    return grads


def _pairs(ours: nn.Module, model: Any) -> list[tuple[LoraLinear, list[tuple[Any, Tensor]]]]:
    """Each of our adapted layers with peft's layers for it and the rows of our B that belong to each."""
    from nemotron_dpo.policy.lora import adapters

    found = []
    for name, layer in adapters(ours).items():
        parts = PARTS[name.rpartition(".")[2]]
        block = model.get_base_model().model.layers[int(name.split(".")[2])]
        rows = _rows(model.config, len(layer.adapter.linear_out.weight), len(parts))
        found.append((layer, [(block.get_submodule(part), own) for part, own in zip(parts, rows, strict=True)]))
    return found


def _rows(config: Any, total: int, count: int) -> list[Tensor]:
    """Row numbers: halves for gate over up; for qkv, in each key/value group its queries, then its key, then its value."""
    if count < 3:
        return list(torch.arange(total).chunk(count))
    size, groups = config.head_dim, config.num_key_value_heads
    by_group = torch.arange(total).reshape(groups, -1)
    queries = config.num_attention_heads // groups * size
    return [part.reshape(-1) for part in by_group.split([queries, size, size], dim=1)]
