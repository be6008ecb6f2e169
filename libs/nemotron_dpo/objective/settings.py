"""The settings of objectives: what values they may have, said beside each field and checked in one place."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

_BOUNDS = {
    "minimum": (lambda value, bound: value >= bound, "must be at least"),
    "more_than": (lambda value, bound: value > bound, "must be more than"),
    "maximum": (lambda value, bound: value <= bound, "must be at most"),
    "less_than": (lambda value, bound: value < bound, "must be less than"),
}


class SettingError(ValueError):
    """A setting, or a combination of settings, that has no meaning.

    `setting` is its name in a config below `dpo.` (`beta` and `average` as in Entry); `problem` is a sentence about it.
    """

    def __init__(self, setting: str, problem: str) -> None:
        super().__init__(f"{setting} {problem}")
        self.setting, self.problem = setting, problem


def setting(default: Any = dataclasses.MISSING, *, about: str, **bounds: Any) -> Any:
    """A field of an objective that a config may set: `about` says what it does and where its default is from.

    `bounds` are `minimum`, `more_than`, `maximum`, `less_than` (inclusive or not, as they say), and `choices`.
    """
    return dataclasses.field(default=default, metadata={"about": about, **bounds})


def state() -> Any:
    """A field that goes from step to step and is no setting; it begins at 0."""
    return dataclasses.field(default=0.0, repr=False, metadata={"state": True})


def names(made: Any) -> tuple[str, ...]:
    """The names of the settings of a dataclass."""
    return tuple(field.name for field in dataclasses.fields(made) if "state" not in field.metadata)


def state_of(made: Any) -> dict[str, float]:
    """The numbers of a dataclass that go from step to step, by name."""
    return {field.name: getattr(made, field.name) for field in dataclasses.fields(made) if "state" in field.metadata}


def check(made: Any) -> None:
    """Raise SettingError where a field of a dataclass has a value that it may not have."""
    for field in dataclasses.fields(made):
        _check(field.name, getattr(made, field.name), field.metadata)


def _check(name: str, value: Any, metadata: Mapping[str, Any]) -> None:
    choices = metadata.get("choices")
    if choices is not None and value not in choices:
        raise SettingError(name, f"is {value!r}: there are {', '.join(choices)}")
    if isinstance(value, float) and not math.isfinite(value):
        raise SettingError(name, f"is {value}: must be finite")
    for key, (holds, text) in _BOUNDS.items():
        if key in metadata and not holds(value, metadata[key]):
            raise SettingError(name, f"is {value}: {text} {metadata[key]}")


def beta(*, positive: bool = False) -> Any:
    """The strength of the KL penalty. Where a formula divides by it, it must be `positive`."""
    return setting(about="strength of the KL penalty", **({"more_than": 0} if positive else {"minimum": 0}))


def average(default: bool = False) -> Any:
    """Whether a response's log-ratio is its mean over tokens, not its sum."""
    return setting(default, about="divide the log-ratio of a response by the number of its tokens")


def label_smoothing(default: float = 0.0, **bounds: Any) -> Any:
    """The share of pairs whose labels are thought to be the wrong way round."""
    return setting(
        default, about="share of pairs whose responses are thought swapped", **{"minimum": 0, "less_than": 0.5, **bounds}
    )
