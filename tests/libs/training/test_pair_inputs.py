"""What is known of pairs survives its way through columns, all of it, and an objective is given what it asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

import pytest
import torch

from nemotron_dpo.objective.inputs import LossInputs, Responses, Tails
from nemotron_dpo.objective.protocol import Needs
from nemotron_dpo.training.pair_inputs import columns, needed, of_columns

OF_MODIFIERS = {"given_score"}  # computed from the rest by an objective itself, and never before


def responses(first: int) -> Responses:
    """Every value another one."""
    values = (torch.tensor([float(first + place), -1.0]) for place in range(8))
    logp, count, ratio, reward, entropy, squares, tail, tail_ratio = values
    means = {"entropy": entropy, "log_sum_squares": squares}
    return Responses(logp, count, ratio, reward, means, given_tails=Tails(tail, tail_ratio))


def test_columns_have_everything_and_give_it_back() -> None:
    pairs = LossInputs(responses(0), responses(8))
    found = columns(pairs)
    assert sorted(values[0].item() for values in found.values()) == list(range(16))
    assert _are_the_same(of_columns(found), pairs)
    empty = {field.name for field in fields(Responses) if getattr(pairs.chosen, field.name) is None}
    assert empty == OF_MODIFIERS, "a new field wants a column, or an objective of the whole batch would be without it"
    bare = pairs.each(lambda side: Responses(side.logp, side.num_tokens))
    assert list(columns(bare)) == ["chosen.logp", "chosen.num_tokens", "rejected.logp", "rejected.num_tokens"]
    assert _are_the_same(of_columns(columns(bare)), bare)


def _are_the_same(ours: LossInputs, others: LossInputs) -> bool:
    """Whether all fields hold the very same tensors; from Python 3.13 on, == asks tensors for one truth value."""
    return [id(tensor) for tensor in _tensors(ours)] == [id(tensor) for tensor in _tensors(others)]


def _tensors(value: object) -> list[torch.Tensor | None]:
    """Those of all fields of a dataclass and of its mappings, in their order; None where there is none."""
    if value is None or isinstance(value, torch.Tensor):
        return [value]
    parts = value.values() if isinstance(value, Mapping) else [getattr(value, field.name) for field in fields(value)]  # type: ignore[arg-type] - the rest are dataclasses
    return [tensor for part in parts for tensor in _tensors(part)]


def test_an_objective_gets_what_it_asked_for() -> None:
    pairs = LossInputs(responses(0), responses(8))
    given = needed(pairs, Needs(token_values=frozenset({"entropy"})))
    assert given.chosen.token_means.keys() == {"entropy"}
    with pytest.raises(AttributeError, match="say reference in its needs"):
        _ = given.rejected.log_ratio
    assert needed(pairs, Needs(reference=True)).rejected.log_ratio is pairs.rejected.log_ratio
