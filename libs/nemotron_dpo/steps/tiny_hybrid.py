"""The weights and config.json of a tiny hybrid, in the shape of Nemotron-3-Nano, with a dense layer as its ancestors have.

`python -m nemotron_dpo.steps.tiny_policy --hybrid` writes them with their tokenizer. About a million parameters, float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy

# recurrence (M), attention (*), dense (-) and experts (E)
PATTERN = "MEM*M-ME"
HIDDEN, FFN, HEADS, GROUPS, HEAD_DIM = 128, 384, 4, 2, 32
MAMBA_HEADS, MAMBA_HEAD_DIM, MAMBA_GROUPS, STATES, WIDTH = 8, 32, 2, 32, 4
EXPERTS, PICKED, EXPERT_FFN, SHARED_FFN, SCALING = 4, 2, 128, 256, 2.5
SEED, INIT_STD = 1, 0.02


def random_weights(num_tokens: int) -> dict[str, numpy.ndarray]:
    """Every tensor by its Hugging Face name, float32: matrices normal with std 0.02, norms at one, a recurrence as NVIDIA's."""
    import numpy

    draw = numpy.random.default_rng(SEED)
    ones = numpy.ones(HIDDEN, numpy.float32)
    weights = {
        "backbone.embeddings.weight": _normal(draw, num_tokens, HIDDEN),
        "backbone.norm_f.weight": ones,
        "lm_head.weight": _normal(draw, num_tokens, HIDDEN),
    }
    parts = {"M": _recurrence, "*": _attention, "-": _dense, "E": _experts}
    for number, kind in enumerate(PATTERN):
        layer = f"backbone.layers.{number}"
        weights[f"{layer}.norm.weight"] = ones
        weights |= {f"{layer}.mixer.{name}": tensor for name, tensor in parts[kind](draw).items()}
    return weights


def _normal(draw: numpy.random.Generator, *shape: int) -> numpy.ndarray:
    return (INIT_STD * draw.standard_normal(shape)).astype("float32")


def _recurrence(draw: numpy.random.Generator) -> dict[str, numpy.ndarray]:
    """As Mamba-2 begins: decays of 1 to 16, time steps of 0.001 to 0.1 behind the softplus."""
    import numpy

    channels, states = MAMBA_HEADS * MAMBA_HEAD_DIM, MAMBA_GROUPS * STATES
    conv, bound = channels + 2 * states, WIDTH**-0.5
    steps = numpy.exp(draw.uniform(numpy.log(0.001), numpy.log(0.1), MAMBA_HEADS))
    tensors = {
        "A_log": numpy.log(draw.uniform(1, 16, MAMBA_HEADS)),
        "D": numpy.ones(MAMBA_HEADS),
        "dt_bias": steps + numpy.log(-numpy.expm1(-steps)),  # the inverse of softplus
        "conv1d.weight": draw.uniform(-bound, bound, (conv, 1, WIDTH)),
        "conv1d.bias": draw.uniform(-bound, bound, conv),
        "in_proj.weight": _normal(draw, channels + conv + MAMBA_HEADS, HIDDEN),
        "norm.weight": numpy.ones(channels),
        "out_proj.weight": _normal(draw, HIDDEN, channels),
    }
    return {name: tensor.astype("float32") for name, tensor in tensors.items()}


def _attention(draw: numpy.random.Generator) -> dict[str, numpy.ndarray]:
    return {
        "q_proj.weight": _normal(draw, HEADS * HEAD_DIM, HIDDEN),
        "k_proj.weight": _normal(draw, GROUPS * HEAD_DIM, HIDDEN),
        "v_proj.weight": _normal(draw, GROUPS * HEAD_DIM, HIDDEN),
        "o_proj.weight": _normal(draw, HIDDEN, HEADS * HEAD_DIM),
    }


def _dense(draw: numpy.random.Generator, channels: int = FFN) -> dict[str, numpy.ndarray]:
    return {"up_proj.weight": _normal(draw, channels, HIDDEN), "down_proj.weight": _normal(draw, HIDDEN, channels)}


def _experts(draw: numpy.random.Generator) -> dict[str, numpy.ndarray]:
    weights = {
        "gate.weight": _normal(draw, EXPERTS, HIDDEN),
        "gate.e_score_correction_bias": _normal(draw, EXPERTS),
        **{f"shared_experts.{name}": tensor for name, tensor in _dense(draw, SHARED_FFN).items()},
    }
    for number in range(EXPERTS):
        weights |= {f"experts.{number}.{name}": tensor for name, tensor in _dense(draw, EXPERT_FFN).items()}
    return weights


def architecture(num_tokens: int) -> dict[str, Any]:
    """config.json of the model, as NVIDIA's files have it."""
    return {
        "architectures": ["NemotronHForCausalLM"],
        "model_type": "nemotron_h",
        "hidden_size": HIDDEN,
        "hybrid_override_pattern": PATTERN,
        "num_hidden_layers": len(PATTERN),
        "intermediate_size": FFN,
        "num_attention_heads": HEADS,
        "num_key_value_heads": GROUPS,
        "head_dim": HEAD_DIM,
        "mamba_num_heads": MAMBA_HEADS,
        "mamba_head_dim": MAMBA_HEAD_DIM,
        "n_groups": MAMBA_GROUPS,
        "ssm_state_size": STATES,
        "conv_kernel": WIDTH,
        "chunk_size": 128,
        "n_routed_experts": EXPERTS,
        "num_experts_per_tok": PICKED,
        "moe_intermediate_size": EXPERT_FFN,
        "moe_shared_expert_intermediate_size": SHARED_FFN,
        "routed_scaling_factor": SCALING,
        "norm_topk_prob": True,
        "n_shared_experts": 1,
        "n_group": 1,
        "topk_group": 1,
        "mlp_hidden_act": "relu2",
        "mamba_hidden_act": "silu",
        "vocab_size": num_tokens,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
        "layer_norm_epsilon": 1e-5,
        "torch_dtype": "float32",
        "dtype": "float32",
    }
