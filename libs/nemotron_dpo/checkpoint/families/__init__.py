"""The model families that are supported. A Family describes one, from config.json to weights, in both directions.

To add a dense one, give its table and its Family in `dense.py` and list it here; tests/libs/checkpoint/test_families.py
holds every family against transformers. One whose layers differ is a file of its own, as `nemotron_h.py`. `known` says what
their models are called, and which families are refused.
"""

from __future__ import annotations

from nemotron_dpo.checkpoint.families import (
    decilm,
    deepseek,
    dense,
    experts,
    gemma,
    glm4_moe,
    gpt_oss,
    granite,
    nemotron_h,
    olmo,
    qwen3_5,
    qwen3_next,
)
from nemotron_dpo.checkpoint.families.family import Family
from nemotron_dpo.checkpoint.families.wrappers import WRAPPERS, Wrapper
from nemotron_dpo.checkpoint.hf_weights import Rule, copy
from nemotron_dpo.policy.architecture import Architecture

_MODULES = (dense, experts, nemotron_h, decilm, olmo, granite, gemma, gpt_oss, qwen3_next, qwen3_5, glm4_moe, deepseek)
FAMILIES: dict[str, Family] = {family.model_type: family for module in _MODULES for family in module.FAMILIES}
FAMILIES["kimi_k2"] = deepseek.DEEPSEEK_V3  # its name for it, under which transformers knows no code


def rules(architecture: Architecture) -> list[Rule]:
    """A rule for every parameter, with `{}` for the numbers of layers and experts. A tied output layer has none."""
    table = list(FAMILIES[architecture.family].weights)
    if not architecture.tied_embeddings:
        table.append(copy("output_layer.weight", "lm_head.weight"))
    return table


def wrapper_of(architecture: Architecture) -> Wrapper | None:
    """What the architecture's model is within; None where it is a text model."""
    return WRAPPERS[architecture.around] if architecture.around else None


def module_of(architecture: Architecture, tensor: str) -> str:
    """The name of the module of transformers whose weight the file calls `tensor`."""
    stored, loaded = _prefixes(architecture)
    name = tensor.removesuffix(".weight")
    return loaded + name.removeprefix(stored) if name.startswith(stored) else name


def stored_module(architecture: Architecture, module: str) -> str:
    """The inverse of `module_of`, without the end `.weight`; a name as in files is taken too, as NVIDIA's own code has it."""
    stored, loaded = _prefixes(architecture)
    return stored + module.removeprefix(loaded) if module.startswith(loaded) else module


def _prefixes(architecture: Architecture) -> tuple[str, str]:
    """What names of tensors begin with in a text model, and those of transformers' modules in its place."""
    wrapper = wrapper_of(architecture)
    return ("model.", wrapper.module) if wrapper else FAMILIES[architecture.family].prefixes
