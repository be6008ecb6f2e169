"""The layers of a hybrid as a letter each: M a recurrence, * attention, - a dense part, E experts."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from nemotron_dpo.errors import UserError
from nemotron_dpo.policy.architecture import Architecture, Layer
from nemotron_dpo.policy.sublayers.attention import Attention
from nemotron_dpo.policy.sublayers.dense import Dense
from nemotron_dpo.policy.sublayers.experts import Experts
from nemotron_dpo.policy.sublayers.mamba import Mamba


def layer_kinds(pattern: str) -> str:
    """The letters of the layers of a pattern of Megatron's: without the marks of pipeline stages, and without what predicts
    several tokens behind a `/`, which is not trained. Raises UserError where it has a letter of another kind."""
    kinds = pattern.partition("/")[0].replace("|", "")
    if unknown := sorted(set(kinds) - set("M*-E")):
        raise UserError(f"layers of kind {unknown[0]!r} are not supported", remedy="M, *, - and E are")
    if not kinds:
        raise ValueError("its pattern names no layer")
    return kinds


def pattern_of(architecture: Architecture) -> str:
    """The letters of the layers. Raises UserError where one is of no such kind, or of two."""
    return "".join(_letter(layer) for layer in architecture.layers)


def _letter(layer: Layer) -> str:
    kinds: dict[type, str] = {Mamba: "M", Attention: "*", Dense: "-", Experts: "E"}
    if len(layer.sublayers) != 1:
        raise UserError("a hybrid whose layers have two parts is not supported", remedy="Nemotron-H's layers have one")
    return kinds[type(layer.sublayers[0])]


def build_layers(kinds: str, made: Mapping[str, Callable[[], Layer]]) -> tuple[Layer, ...]:
    """A layer for each letter; one of a kind that does not occur is not made, so what a file says of it does not count."""
    layers = {kind: made[kind]() for kind in set(kinds)}
    return tuple(layers[kind] for kind in kinds)
