"""How a config.json scales rotary positions, for each kind of transformers: read into numbers of ours, and written back.

Where the versions of transformers differ, 5 is followed: a `factor` that is given counts, and not how much longer than the
original length the model is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nemotron_dpo.errors import UserError
from nemotron_dpo.policy.sublayers.rotary import Dynamic, LinearScaling, Llama3Scaling, LongRope, Scaling, Yarn

_ORIGINAL = "original_max_position_embeddings"
QUERY_GROWTH = "llama_4_scaling_beta"
_Value = Callable[[str], Any]  # of a setting of the scaling; None where nothing says it


def read(kind: str, value: _Value, max_positions: int, path: Path | None) -> Scaling | None:
    """The scaling of `kind`. Raises UserError where there is none of that name, KeyError or ValueError for its numbers."""
    if kind == "default":
        return None
    if kind not in _READERS:
        raise UserError(f"rope scaling {kind!r} is not supported", source=path, remedy=f"default, {', '.join(_READERS)} are")
    return _READERS[kind](value, max_positions)


def write(scaling: Scaling | None, max_positions: int) -> tuple[dict[str, Any], dict[str, Any] | None, dict[str, Any]]:
    """(for rope_parameters of transformers 5, for rope_scaling of 4, beside them)."""
    if scaling is None:
        return {"rope_type": "default"}, None, {}
    kind, settings = _written(scaling, max_positions)
    new = {"rope_type": kind, **settings}
    if not isinstance(scaling, LongRope):
        return new, new, {}
    # Phi-3 in transformers 4 takes sections of these three keys alone, and reads the original length beside them
    beside = {_ORIGINAL: scaling.original_length}
    return new, {"type": kind, **settings}, beside


def _written(scaling: Scaling, max_positions: int) -> tuple[str, dict[str, Any]]:
    match scaling:
        case LinearScaling(factor):
            return "linear", {"factor": factor}
        case Dynamic(factor):
            return "dynamic", {"factor": factor}
        case Llama3Scaling():
            frequencies = {"low_freq_factor": scaling.low_frequency, "high_freq_factor": scaling.high_frequency}
            return "llama3", {"factor": scaling.factor, **frequencies, _ORIGINAL: scaling.original_length}
        case Yarn():
            fields = {
                "factor": scaling.factor,
                _ORIGINAL: scaling.original_length,
                "attention_factor": scaling.attention_factor,
                "beta_fast": scaling.beta_fast,
                "beta_slow": scaling.beta_slow,
                "mscale": scaling.mscale,
                "mscale_all_dim": scaling.mscale_all_dim,
                "truncate": None if scaling.truncate else False,
                QUERY_GROWTH: scaling.query_growth,
            }
            return "yarn", {key: value for key, value in fields.items() if value is not None}
        case LongRope():
            own = {} if scaling.factor == max_positions / scaling.original_length else {"factor": scaling.factor}
            if scaling.attention_factor is not None:
                own["attention_factor"] = scaling.attention_factor
            return "longrope", {"short_factor": list(scaling.short), "long_factor": list(scaling.long), **own}


def _linear(value: _Value, max_positions: int) -> LinearScaling:
    return LinearScaling(_number(value, "factor"))


def _dynamic(value: _Value, max_positions: int) -> Dynamic:
    return Dynamic(_number(value, "factor"))


def _llama3(value: _Value, max_positions: int) -> Llama3Scaling:
    factor, low, high = (_number(value, key) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    if low >= high:
        raise ValueError(f"low_freq_factor {low} is not below high_freq_factor {high}")
    return Llama3Scaling(factor, low, high, _length(value, max_positions))


def _yarn(value: _Value, max_positions: int) -> Yarn:
    original, truncate = _length(value, max_positions), value("truncate")
    if truncate is not None and not isinstance(truncate, bool):
        raise ValueError(f"truncate is {truncate!r}")
    return Yarn(
        factor=_number(value, "factor", max_positions / original),
        original_length=original,
        attention_factor=_optional(value, "attention_factor"),
        beta_fast=_number(_unless_zero(value), "beta_fast", 32.0),
        beta_slow=_number(_unless_zero(value), "beta_slow", 1.0),
        mscale=_optional(_unless_zero(value), "mscale"),
        mscale_all_dim=_optional(_unless_zero(value), "mscale_all_dim"),
        truncate=truncate is not False,
        query_growth=_optional(_unless_zero(value), QUERY_GROWTH),
    )


def _longrope(value: _Value, max_positions: int) -> LongRope:
    original = _length(value, max_positions)
    factor, attention = _number(value, "factor", max_positions / original), _optional(value, "attention_factor")
    return LongRope(_factors(value, "short_factor"), _factors(value, "long_factor"), factor, original, attention)


_READERS: Mapping[str, Callable[[_Value, int], Scaling]] = {
    "linear": _linear,
    "dynamic": _dynamic,
    "yarn": _yarn,
    "longrope": _longrope,
    "llama3": _llama3,
}


def _number(value: _Value, key: str, default: float | None = None) -> float:
    found = _optional(value, key)
    if found is None and default is None:
        raise KeyError(key)
    return default if found is None else found  # type: ignore[return-value] - one of them is a number


def _optional(value: _Value, key: str) -> float | None:
    found = value(key)
    if found is not None and (isinstance(found, bool) or not isinstance(found, int | float) or not found > 0):
        raise ValueError(f"{key} is {found!r}")
    return None if found is None else float(found)


def _unless_zero(value: _Value) -> _Value:
    """The same, where transformers takes its default in the place of zero."""
    return lambda key: value(key) or None


def _length(value: _Value, max_positions: int) -> int:
    """The original length; transformers takes all positions where none is given."""
    found = value(_ORIGINAL)
    if found is None:
        return max_positions
    if isinstance(found, bool) or not isinstance(found, int) or found < 1:
        raise ValueError(f"{_ORIGINAL} is {found!r}")
    return found


def _factors(value: _Value, key: str) -> tuple[float, ...]:
    """A divisor for each frequency; how many there must be is checked where the size of a head is known."""
    found = value(key)
    if found is None:
        raise KeyError(key)
    if not isinstance(found, list) or not all(isinstance(each, int | float) and each > 0 for each in found):
        raise ValueError(f"{key} is no list of positive numbers")
    return tuple(float(each) for each in found)
