"""Qwen's windows, which a config.json gives, and switches on, by keys of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nemotron_dpo.errors import UserError
from nemotron_dpo.policy.uniform import UniformDecoder

ONLY: Mapping[str, tuple[Any, ...]] = {"use_sliding_window": (False, True)}
_SLIDING, _FULL = "sliding_attention", "full_attention"
_WINDOW, _FIRST = 4096, 28  # what transformers takes where config.json has no such key


def window_of(config: Mapping[str, Any]) -> int | None:
    """The window of those layers that have one."""
    window = config.get("sliding_window", _WINDOW) if config.get("use_sliding_window") else None
    if window is not None and (isinstance(window, bool) or not isinstance(window, int) or window < 1):
        raise ValueError(f"sliding_window is {window!r}")
    return window


def read(config: Mapping[str, Any]) -> dict[str, Any]:
    """The window, and which layers have it: those that layer_types names so, else those from max_window_layers on."""
    window, kinds, num = window_of(config), config.get("layer_types"), config["num_hidden_layers"]
    if kinds is None:
        first = config.get("max_window_layers")
        windowed = [window is not None and layer >= (_FIRST if first is None else first) for layer in range(num)]
        return _said(window, windowed)
    if unknown := set(kinds) - {_SLIDING, _FULL}:
        raise UserError(f"layers of {', '.join(sorted(unknown))} are not supported", remedy=f"{_SLIDING} and {_FULL} are")
    if len(kinds) != num:
        raise UserError(f"layer_types names {len(kinds)} layers, and num_hidden_layers {num}", remedy="leave the right ones")
    if window is None and _SLIDING in kinds:
        raise UserError(f"layer_types names layers of {_SLIDING} without a window", remedy="set use_sliding_window to true")
    return _said(window, [kind == _SLIDING for kind in kinds])


def write(decoder: UniformDecoder) -> dict[str, Any]:
    """The same keys; max_window_layers, all that older versions of transformers read, where it says the same as layer_types."""
    if decoder.window is None:
        return {"use_sliding_window": False}
    windowed = decoder.windowed or (True,) * decoder.num_layers
    first = windowed.index(True)
    return {
        "use_sliding_window": True,
        "sliding_window": decoder.window,
        "layer_types": [_SLIDING if has_window else _FULL for has_window in windowed],
        **({"max_window_layers": first} if all(windowed[first:]) else {}),
    }


def _said(window: int | None, windowed: list[bool]) -> dict[str, Any]:
    if not any(windowed):
        return {}
    return {"window": window, "windowed": None if all(windowed) else tuple(windowed)}
