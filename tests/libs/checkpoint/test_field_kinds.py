"""A value of another kind than its field, or a size that is none, is refused wherever in the architecture it stands."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from nemotron_dpo.checkpoint.field_kinds import checked
from nemotron_dpo.policy.architecture import Architecture, Layer
from nemotron_dpo.policy.sublayers.attention import Attention
from nemotron_dpo.policy.sublayers.dense import Dense
from nemotron_dpo.policy.sublayers.experts import Experts, Router
from nemotron_dpo.policy.sublayers.rotary import LinearScaling, Rotary

ROTARY = Rotary(10000, scaling=LinearScaling(2))  # whole numbers where fractions are due, as people write them
MIXER, DENSE, ROUTER = Attention(4, 2, 8, ROTARY), Dense(48), Router(8, 2)
MODEL = Architecture(
    (Layer(MIXER, DENSE), Layer(MIXER, Experts(ROUTER, DENSE)), Layer(None, DENSE)),
    32,
    96,
    128,
    1e-5,
    False,
    "float32",
    "llama",
)


def test_kinds():
    assert checked(MODEL) is MODEL
    assert checked(replace(MODEL, bos_token_id=0, eos_token_id=[0, 2]))
    odd: list[tuple[str, dict[str, Any], dict[str, Any], dict[str, Any], dict[str, Any]]] = [
        ("hidden_size is '32'", {"hidden_size": "32"}, {}, {}, {}),
        ("hidden_size is True", {"hidden_size": True}, {}, {}, {}),
        ("vocab_size is 0", {"vocab_size": 0}, {}, {}, {}),
        ("tied_embeddings is 'no'", {"tied_embeddings": "no"}, {}, {}, {}),
        ("normalization is 'BatchNorm'", {"normalization": "BatchNorm"}, {}, {}, {}),
        ("norm_epsilon is inf", {"norm_epsilon": float("inf")}, {}, {}, {}),
        (r"eos_token_id is \[1, 'a'\]", {"eos_token_id": [1, "a"]}, {}, {}, {}),
        (r"qk_norm is \[None\]", {}, {"qk_norm": [None]}, {}, {}),
        ("window is -1", {}, {"window": -1}, {}, {}),
        ("percent is '1'", {}, {"rotary": Rotary(1e4, "1")}, {}, {}),  # type: ignore[arg-type] - what is refused
        ("gated is 1", {}, {}, {"gated": 1}, {}),
        ("renormalize is None", {}, {}, {}, {"renormalize": None}),
    ]
    for message, whole, mixer, dense, router in odd:
        experts = Experts(replace(ROUTER, **router), replace(DENSE, **dense))
        layers = (Layer(MIXER, DENSE), Layer(replace(MIXER, **mixer), experts))
        with pytest.raises(ValueError, match=f"^{message}$"):
            checked(replace(MODEL, layers=layers, **whole))
