"""The precision of a policy's tensors: one for nearly all, and that of the few which would be spoilt by less."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

_STATES = ("mixer.A_log", "mixer.D", "mixer.dt_bias", "self_attention.A_log", "self_attention.dt_bias")
_OWN = ("router.expert_bias", "router.local_tokens_per_expert", "self_attention.out_norm.weight")
Model = TypeVar("Model", bound=nn.Module)


def set_precision(model: Model, dtype: torch.dtype, *, states_in_float32: bool) -> Model:
    """Convert the tensors of `model` to `dtype`, in place, but for expert biases, counts of tokens and a recurrence's out_norm.

    These are float32. In bfloat16 routers would pick other experts than the model was trained with, a bias would lose what a
    step moves it by, counts would stop at 256, and a weight less one would lose digits of the weight. With
    `states_in_float32` a recurrence's own parameters are float32 too.
    """
    kept = (*(_STATES if states_in_float32 else ()), *_OWN)
    tensors = (*model.named_parameters(), *model.named_buffers())
    own = {name: tensor.data.float() for name, tensor in tensors if name.endswith(kept)}
    model.to(dtype)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if name in own:
            tensor.data = own[name]
    return model
