"""Numbers in the description of a model that are beyond those of any model: a layer is an object before anything else looks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nemotron_dpo.errors import UserError

_MOST_LAYERS, _MOST = 10_000, 1 << 40


def refuse_absurd(described: Mapping[str, Any]) -> None:
    """Raise UserError where a number of `described`, a config.json or a provider's fields, cannot be meant."""
    for key, value in described.items():
        most = _MOST_LAYERS if "layer" in key else _MOST
        if isinstance(value, int) and abs(value) > most:
            said = f"{value:.3g}" if abs(value) < 1 << 1000 else f"a number of {value.bit_length()} bits"
            raise UserError(f"is {said}, and no model has more than {most:,}", field=key)
