"""Packed log-probs and gradients of a folder's policy against two plain transformers forwards a pair."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nemotron_dpo.policy.rows import pack_row
from support import families, small


def assert_same_logps_and_gradients(folder: Path, *, count: int = 4, longest: int = 40) -> None:
    """Of the DPO loss of random pairs whose reference log-probs are 0; every gradient of ours is one of theirs, not 0."""
    from nemotron_dpo.checkpoint.policy import open_policy
    from nemotron_dpo.sources import resolve

    assert_same(open_policy(resolve(folder), "float32"), families.load(folder), count=count, longest=longest)


def assert_same(ours: Any, theirs: Any, *, count: int = 4, longest: int = 40) -> None:
    """The same of two models."""
    from nemotron_dpo.checkpoint import hf

    theirs.get_input_embeddings().padding_idx = None  # torch gives its row no gradient, as if it were never read
    pairs = small.random_pairs(count, seed=7, longest=longest)
    row = pack_row(pairs.prompts, pairs.chosen, pairs.rejected)
    parts = zip(pairs.prompts, pairs.chosen, pairs.rejected, strict=True)
    expected_R = torch.cat([small.reference_logps(theirs, prompt, side) for prompt, *sides in parts for side in sides])
    logps_R = ours(row)
    assert (logps_R - expected_R).abs().max() <= 2e-5 * max(1.0, expected_R.abs().max().item())
    for found_R in (logps_R, expected_R):
        margins = row.sums_of_responses(found_R) @ torch.tensor([1.0, -1.0])
        (-torch.nn.functional.logsigmoid(0.1 * margins).sum()).backward()
    due = gradients(theirs)
    for name, parameter, rule, place in hf.placed(ours):
        if isinstance(parameter, torch.nn.Parameter):
            assert parameter.grad is not None, name
            split = rule.split(hf.layer_at(ours.architecture, place), parameter.grad)
            for key, gradient in zip(rule.hf, split, strict=True):
                whole = due.pop(key.format(*place))
                assert whole.norm() > 0, key.format(*place)
                assert (gradient - whole).norm() <= 3e-5 * whole.norm(), key.format(*place)
    assert not due


def gradients(model: Any) -> dict[str, Tensor]:
    """Those of a model of transformers by the names in its files, which store experts apart."""
    found: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        stacked = re.fullmatch(r"(.*\.experts)\.(gate_up_proj|down_proj)", name)
        if stacked is None:
            found[name] = parameter.grad
            continue
        for number, gradient in enumerate(parameter.grad):
            halves = {"gate_proj": gradient.chunk(2)[0], "up_proj": gradient.chunk(2)[1]}
            named = halves if stacked[2] == "gate_up_proj" else {"down_proj": gradient}
            found |= {f"{stacked[1]}.{number}.{part}.weight": tensor for part, tensor in named.items()}
    return found
