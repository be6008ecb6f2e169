"""Small random hybrids of transformers' NemotronH, and the same as architectures and weights of ours.

Nothing here is taken from `checkpoint`, so that the policy and its files have witnesses of their own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from nemotron_dpo.policy.architecture import Architecture, Layer
from nemotron_dpo.policy.sublayers.attention import Attention
from nemotron_dpo.policy.sublayers.dense import Dense
from nemotron_dpo.policy.sublayers.experts import Experts, Router
from nemotron_dpo.policy.sublayers.mamba import Mamba

VOCAB, HIDDEN = 96, 32
MAMBA = Mamba(num_heads=8, head_size=4, state_size=16, num_groups=4)
ATTENTION = Attention(num_heads=4, num_groups=2, head_size=8, rotary=None)
DENSE = Dense(48, "relu2", gated=False)
ROUTER = Router(4, 2, score="sigmoid", expert_bias=True, scaling=2.5)
EXPERTS = Experts(ROUTER, Dense(24, "relu2", gated=False), shared=Dense(40, "relu2", gated=False))
LAYERS = {"M": Layer(MAMBA, None), "*": Layer(ATTENTION, None), "-": Layer(None, DENSE), "E": Layer(None, EXPERTS)}
_KINDS = {"M": "linear_attention", "*": "full_attention", "-": "mlp", "E": "moe"}


def architecture(pattern: str, dtype: str = "float32") -> Architecture:
    """The architecture of a pattern such as `M-M*`."""
    return Architecture(
        tuple(LAYERS[symbol] for symbol in pattern),
        hidden_size=HIDDEN,
        vocab_size=VOCAB,
        max_position_embeddings=256,
        norm_epsilon=1e-5,
        tied_embeddings=False,
        dtype=dtype,
        family="nemotron_h",
    )


def theirs(pattern: str, *, clamped: bool = False) -> Any:
    """A random model of it in transformers, float32; norms and biases are random too, or a swap of them would go unseen.

    Unless `clamped`, the floor under dt is taken away, which Megatron and NVIDIA's own code do not have
    (huggingface/transformers issue 48989). Some heads have a dt below it.
    """
    from transformers import AutoModelForCausalLM, NemotronHConfig

    config = NemotronHConfig(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        layers_block_type=[_KINDS[symbol] for symbol in pattern],
        num_attention_heads=ATTENTION.num_heads,
        num_key_value_heads=ATTENTION.num_groups,
        head_dim=ATTENTION.head_size,
        intermediate_size=DENSE.ffn_hidden_size,
        ssm_state_size=MAMBA.state_size,
        mamba_num_heads=MAMBA.num_heads,
        mamba_head_dim=MAMBA.head_size,
        n_groups=MAMBA.num_groups,
        chunk_size=16,
        n_routed_experts=ROUTER.num,
        num_experts_per_tok=ROUTER.top_k,
        routed_scaling_factor=ROUTER.scaling,
        moe_intermediate_size=EXPERTS.expert.ffn_hidden_size,
        moe_shared_expert_intermediate_size=40,
        max_position_embeddings=256,
        initializer_range=0.2,
        use_cache=False,
    )
    torch.manual_seed(len(pattern))
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if name.endswith(("norm.weight", "norm_f.weight", ".D", "conv1d.bias")):
            torch.nn.init.normal_(tensor, mean=1.0, std=0.2)
        elif name.endswith("A_log"):
            torch.nn.init.uniform_(tensor, -1, 2)
        elif name.endswith("dt_bias"):
            tensor.data = torch.linspace(-9, 0.5, len(tensor))
        elif name.endswith("e_score_correction_bias"):
            torch.nn.init.normal_(tensor, std=0.1)
        elif name.endswith("conv1d.weight"):
            torch.nn.init.normal_(tensor, std=0.5)
        elif "experts." in name or name.endswith("gate.weight"):
            torch.nn.init.normal_(tensor, std=0.2)
    for module in model.modules():
        if hasattr(module, "time_step_limit") and not clamped:
            module.time_step_limit = (0.0, float("inf"))
    return model


def named(model: torch.nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of a policy of ours (of this rank) by their names in the whole model."""
    found = {}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        layer, expert = re.match(r"decoder\.layers\.(\d+)\.", name), re.search(r"local_experts\.(\d+)\.", name)
        if layer is not None:
            number = model.get_submodule(layer[0][:-1]).layer_number - 1  # type: ignore[operator] - megatron-core's layers have a number
            name = f"decoder.layers.{number}.{name[layer.end() :]}"
        if expert is not None:
            name = name.replace(expert[0], f"local_experts.{int(expert[1]) + _first_expert()}.")
        if not name.endswith("local_tokens_per_expert"):
            found[name] = tensor
    return found


def fill(model: torch.nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give a policy of ours, or this rank's part of one, the weights of a state dict of transformers."""
    with torch.no_grad():
        for name, tensor in named(model).items():
            tensor.copy_(shard(name, whole(name, state)))


def whole(name: str, state: Mapping[str, Tensor]) -> Tensor:
    """The tensor of ours of this name, by that of transformers (its gradient, where `state` has gradients)."""
    top = {
        "embedding.word_embeddings.weight": "model.embeddings.weight",
        "decoder.final_norm.weight": "model.norm_f.weight",
        "output_layer.weight": "lm_head.weight",
    }
    if name in top:
        return state[top[name]]
    found = re.fullmatch(r"decoder\.layers\.(\d+)\.(.*)", name)
    assert found is not None, name
    prefix, part = f"model.layers.{found[1]}.", found[2]
    if part in ("norm.weight", "input_layernorm.weight", "pre_mlp_layernorm.weight"):
        return state[f"{prefix}norm.weight"]
    if part == "self_attention.linear_qkv.weight":
        parts = [state[f"{prefix}mixer.{letter}_proj.weight"] for letter in "qkv"]
        heads = [x.reshape(ATTENTION.num_groups, -1, ATTENTION.head_size, HIDDEN) for x in parts]
        return torch.cat(heads, 1).reshape(-1, HIDDEN)
    expert = re.fullmatch(r"mlp\.experts\.local_experts\.(\d+)\.linear_fc(\d)\.weight", part)
    if expert is not None:
        return state[f"{prefix}mixer.experts.{'up' if expert[2] == '1' else 'down'}_proj"][int(expert[1])]
    for ours, theirs in _PARTS.items():
        part = part.replace(ours, theirs)
    return state[prefix + part]


def put_back(name: str, tensor: Tensor, state: dict[str, Tensor]) -> None:
    """The inverse of `whole`: write a whole tensor of ours into a state dict of transformers."""
    if name.endswith("linear_qkv.weight"):
        prefix = name.replace("decoder.", "model.").replace("self_attention.linear_qkv.weight", "mixer.")
        heads = tensor.reshape(ATTENTION.num_groups, -1, ATTENTION.head_size, HIDDEN)
        for letter, part in zip("qkv", heads.split([heads.shape[1] - 2, 1, 1], 1), strict=True):
            state[f"{prefix}{letter}_proj.weight"].copy_(part.reshape(-1, HIDDEN))
    else:
        whole(name, state).copy_(tensor)


_PARTS = {
    "self_attention.linear_proj": "mixer.o_proj",
    "mlp.shared_experts.": "mixer.shared_experts.",
    "mlp.router.weight": "mixer.gate.weight",
    "mlp.router.expert_bias": "mixer.gate.e_score_correction_bias",
    "mlp.linear_": "mixer.linear_",
    "linear_fc1": "up_proj",
    "linear_fc2": "down_proj",
}


def shard(name: str, full: Tensor) -> Tensor:
    """This tensor-parallel rank's part of a whole tensor: of in_proj and the convolution, its part of each of theirs."""
    from megatron.core import parallel_state

    whose = "expert_tensor" if ".local_experts." in name else "tensor_model"
    ranks, rank = (getattr(parallel_state, f"get_{whose}_parallel_{what}")() for what in ("world_size", "rank"))
    if re.search(r"mixer\.(in_proj|conv1d)\.", name):
        sizes = MAMBA.parts if "in_proj" in name else MAMBA.conv_parts
        return torch.cat([part.chunk(ranks)[rank] for part in full.split(list(sizes.values()))])
    if re.search(r"(linear_proj|linear_fc2|out_proj)\.weight", name):
        return full.chunk(ranks, 1)[rank]
    if re.search(r"word_embeddings|output_layer|linear_qkv|linear_fc1|mixer\.(A_log|D|dt_bias|norm)", name):
        return full.chunk(ranks)[rank]
    return full


def _first_expert() -> int:
    from megatron.core import parallel_state

    ranks, rank = parallel_state.get_expert_model_parallel_world_size(), parallel_state.get_expert_model_parallel_rank()
    return rank * (ROUTER.num // ranks)
