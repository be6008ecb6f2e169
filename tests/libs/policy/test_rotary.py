"""The frequencies of rotary positions against transformers' own, and texts that longrope turns in one way or the other."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from nemotron_dpo.errors import UserError
from nemotron_dpo.policy.rotary import angles, frequencies, grown
from nemotron_dpo.policy.sublayers.attention import Attention
from nemotron_dpo.policy.sublayers.rotary import Dynamic, LinearScaling, Llama3Scaling, LongRope, Rotary, Scaling, Yarn
from support.policy_rows import packed

ORIGINAL = "original_max_position_embeddings"
LISTS = {"short_factor": [1.0 + i / 7 for i in range(12)], "long_factor": [2.0 + i / 3 for i in range(12)]}
LONGROPE = LongRope(tuple(LISTS["short_factor"]), tuple(LISTS["long_factor"]), 16.0, 4096)
LLAMA3 = {"low_freq_factor": 2.0, "high_freq_factor": 5.0}
CASES: list[tuple[Scaling, dict[str, Any]]] = [
    (LinearScaling(3.0), {"rope_type": "linear", "factor": 3.0}),
    (Dynamic(2.5), {"rope_type": "dynamic", "factor": 2.5}),
    (Llama3Scaling(8.0, 2.0, 5.0, 512), {"rope_type": "llama3", "factor": 8.0, **LLAMA3, ORIGINAL: 512}),
    (Yarn(4.0, 8192), {"rope_type": "yarn", "factor": 4.0, ORIGINAL: 8192}),
    (Yarn(32.0, 4096, truncate=False), {"rope_type": "yarn", "factor": 32.0, ORIGINAL: 4096, "truncate": False}),
    (
        Yarn(40.0, 4096, None, 16.0, 2.0, 1.0, 0.707),
        {
            "rope_type": "yarn",
            "factor": 40.0,
            ORIGINAL: 4096,
            "beta_fast": 16.0,
            "beta_slow": 2.0,
            "mscale": 1.0,
            "mscale_all_dim": 0.707,
        },
    ),
    (Yarn(4.0, 64, 1.7), {"rope_type": "yarn", "factor": 4.0, ORIGINAL: 64, "attention_factor": 1.7}),
    (Yarn(1.0, 64), {"rope_type": "yarn", "factor": 1.0, ORIGINAL: 64}),
    (LONGROPE, {"rope_type": "longrope", ORIGINAL: 4096, **LISTS}),
]


@pytest.mark.parametrize(
    ("scaling", "section"), CASES, ids=lambda value: value.get("rope_type") if isinstance(value, dict) else ""
)
@pytest.mark.parametrize("base", [1e4, 1.5e6])
def test_frequencies_are_those_of_transformers(base: float, scaling: Scaling, section: dict[str, Any]) -> None:
    """To the bit; 24 of 32 channels of a head turn."""
    theirs = LlamaConfig(
        hidden_size=128,
        num_attention_heads=4,
        head_dim=32,
        max_position_embeddings=65536,
        rope_parameters={"rope_theta": base, "partial_rotary_factor": 0.75, **section},
    )
    rotary = Rotary(base, 0.75, scaling)
    for is_long in (False, True) if isinstance(scaling, LongRope) else (False,):
        expected, amplitude = ROPE_INIT_FUNCTIONS[section["rope_type"]](theirs, torch.device("cpu"), 4097 if is_long else None)
        assert torch.equal(frequencies(rotary, 32, is_long=is_long), expected)
        assert rotary.amplitude == pytest.approx(amplitude, rel=1e-15)


def test_a_text_is_turned_by_its_own_length() -> None:
    """Of a row with a short and a long pair; a pair of one response of each kind has no one prompt to share."""
    rotary = Rotary(1e4, 1.0, LongRope((1.0, 2.0), (3.0, 4.0), 4.0, 8))
    got = angles(packed((3, 5, 2), (3, 6, 7)), rotary, 4)[:, 0, 0, :2]
    short, long = frequencies(rotary, 4), frequencies(rotary, 4, is_long=True)
    assert torch.equal(got[7], 7 * short)
    assert torch.equal(got[8], 3 * short)  # the first rejected token, behind a prompt of 3
    assert torch.equal(got[18], 8 * long)
    assert torch.equal(got[10 + 2], 2 * long)
    with pytest.raises(UserError, match="a prompt has 8 tokens with its chosen and 9 with its rejected response, and longrope"):
        angles(packed((3, 5, 6)), rotary, 4)


def test_queries_grow_with_the_position_on_their_path() -> None:
    """By hand, of an original length of 4: once it is before the fourth token, twice before the eighth."""
    rotary = Rotary(1e4, 1.0, Yarn(2.0, 4, query_growth=0.5))
    row = packed((3, 3, 6))
    ones = torch.ones(row.num_tokens, 1, 2, 8)
    got = grown(ones, row, rotary)
    positions = [*range(6), *range(3, 9)]  # the rejected response goes on at the prompt's end
    expected = [1 + 0.5 * math.log(1 + position // 4) for position in positions]
    assert torch.allclose(got[:, 0, 0, 0], torch.tensor(expected))
    assert torch.equal(got, got[:, :, :1, :1].expand_as(got))
    for same in (Rotary(1e4, 1.0, Yarn(2.0, 9, query_growth=0.5)), Rotary(1e4, 1.0, Yarn(2.0, 4)), None):
        assert grown(ones, row, same) is ones


def test_lists_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match="longrope has lists of 2 and 2 factors, and a head has 4 frequencies"):
        Attention(4, 2, 8, Rotary(1e4, 1.0, LongRope((1.0, 2.0), (3.0, 4.0), 4.0, 8)))
