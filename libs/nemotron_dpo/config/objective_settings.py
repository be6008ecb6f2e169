"""Which settings of objectives count in a run.

A setting belongs to the objectives that have a field of its name. One that no objective of the run has is an error, unless it
has the value that asks for nothing: configs of other programs write such defaults out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import MISSING
from typing import Any

from nemotron_dpo.config.dpo import DpoConfig
from nemotron_dpo.config.objective import LOSS, SFT, TRL_F_ALPHA, Part, modifier_values, objective_of, parts_of
from nemotron_dpo.errors import UserError
from nemotron_dpo.objective.modified import modifiers
from nemotron_dpo.objective.registry import Entry, entries, find

_NO_WEIGHT = "belongs to a term of the loss that has no weight"
_BETA, _AVERAGE = "reference_policy_kl_penalty", "preference_average_log_probs"
_SHOWN = 12  # of the names in a message


def settings_of(dpo: DpoConfig) -> dict[str, Any]:
    """The keys below dpo that count in the run, with their values; where they say nothing, what their objectives agree on."""
    found: dict[str, Any] = {}
    for part in parts_of(dpo):
        for key, item in part.settings.items():
            given = getattr(dpo, key, None)
            value = _default(item) if given is None else given
            found[key] = value if found.get(key, value) == value else None
    return {**found, **{key: _default(item) for key, item in _of_modifiers().items()}, **modifier_values(dpo)}


def idle_settings(dpo: DpoConfig) -> dict[str, str]:
    """Dotted keys that say something, and that no objective of the run has, with the reason why they may.

    Raises UserError for one that asks for something.
    """
    parts = parts_of(dpo)
    if not parts:
        return {}
    has_preference, across = dpo.preference_loss_weight != 0, modifier_values(dpo)
    idle = {}
    for key, value in _given(dpo).items():
        if any(_takes(part.entry, key) for part in parts) and (key != "f_alpha" or key in across):
            continue
        if value == neutral(key):
            others = "alpha_divergence" if key == "f_alpha" else f"other objectives than {_names(parts)}"
            idle[f"dpo.{key}"] = f"is a setting of {others}, and asks for nothing"
        elif not has_preference:
            idle[f"dpo.{key}"] = _NO_WEIGHT
        elif key not in across:  # of a modifier, the objective says with what it has a meaning
            raise _unused(key, value, parts)
    if not has_preference and dpo.preference_loss != DpoConfig.preference_loss:
        idle[LOSS] = _NO_WEIGHT
    if dpo.sft_average_log_probs and not any(part.entry.name == SFT for part in parts) and not dpo.preference_average_log_probs:
        idle["dpo.sft_average_log_probs"] = _NO_WEIGHT  # it is often set for both terms at once
    return idle


def objective_remarks(dpo: DpoConfig) -> Iterator[tuple[str, str]]:
    """(dotted key, what its value comes to) where few will mean it."""
    preferences = [part for part in parts_of(dpo) if part.entry.name != SFT]
    if dpo.reference_policy_kl_penalty == 0 and any(_BETA in part.settings for part in preferences):
        yield f"dpo.{_BETA}", _without_beta([first for name, first in objective_of(dpo).terms.items() if name != SFT])
    averaging = [part for part in preferences if _AVERAGE in part.settings and part.settings[_AVERAGE].default is True]
    if averaging and dpo.preference_average_log_probs is False:
        text = f"is false: {_names(averaging)} then sums log-ratios over tokens, and averages them by its own default"
        yield f"dpo.{_AVERAGE}", text
    for part in preferences:
        if part.entry.usual_beta is not None and dpo.reference_policy_kl_penalty == DpoConfig.reference_policy_kl_penalty:
            text = "is {:g}, the default, and with {} it is usually {:g} to {:g}"
            yield f"dpo.{_BETA}", text.format(dpo.reference_policy_kl_penalty, part.entry.name, *part.entry.usual_beta)
    for name in _names_given(dpo):
        if (note := find(name).notes.get(name)) is not None:
            yield LOSS, f"has {name}, which {note}"


def kl_penalty(dpo: DpoConfig) -> tuple[float | None, bool]:
    """The beta that holds the policy to its reference, None where none does, and whether it is of DPO's size.

    It is of another where log-ratios are averaged over tokens.
    """
    parts, settings = parts_of(dpo), settings_of(dpo)
    holds = _BETA in settings and objective_of(dpo).needs.reference
    is_plain = not settings.get(_AVERAGE) and all(part.entry.usual_beta is None for part in parts)
    return dpo.reference_policy_kl_penalty if holds else None, is_plain


def objectives_with(key: str) -> list[str]:
    """The objectives that `key`, below dpo, is a setting of, or of a modifier that has a meaning with them."""
    return [entry.name for entry in entries().values() if _takes(entry, key)]


def neutral(key: str) -> Any:
    """The value of `key` that asks for nothing: the default of the first objective that has it, dpo before the others."""
    if key == "f_alpha":
        return TRL_F_ALPHA
    if key in _of_modifiers():
        return _default(_of_modifiers()[key])
    having = sorted(objectives_with(key), key=lambda name: name != "dpo")
    return _default(Part(entries()[having[0]]).settings[key]) if having else None


def _takes(entry: Entry, key: str) -> bool:
    of = next((modifier.name for modifier in modifiers().values() if key in modifier.settings), key)
    return key in Part(entry).settings or of in entry.modifiers


def _of_modifiers() -> dict[str, dataclasses.Field[Any]]:
    """Key below dpo -> the field of the modifier that it sets."""
    fields = [item for modifier in modifiers().values() for item in dataclasses.fields(modifier.make)]  # type: ignore[arg-type] - a dataclass
    return {item.name: item for item in fields}


def _given(dpo: DpoConfig) -> dict[str, Any]:
    """The settings of preference losses that say something; of the one that always does, another value than the default."""
    keys = [item.name for item in dataclasses.fields(dpo) if "is_setting" in item.metadata]
    given = {key: value for key in keys if (value := getattr(dpo, key)) is not None}
    beta = dpo.reference_policy_kl_penalty
    return given | ({_BETA: beta} if beta != DpoConfig.reference_policy_kl_penalty else {})


def _default(item: dataclasses.Field[Any]) -> Any:
    return None if item.default is MISSING else item.default


def _without_beta(firsts: Sequence[Any]) -> str:
    if not all(first is not None and first.slope == 0 for first in firsts):
        return "is 0: it takes the difference of the two responses out of the loss"
    readings = " and ".join(dict.fromkeys(first.formula for first in firsts))
    return f"is 0: the preference loss is {readings} whatever the policy does, and moves nothing"


def _unused(key: str, value: Any, parts: Sequence[Part]) -> UserError:
    counting = dict.fromkeys(f"dpo.{name}" for part in parts for name in part.settings)
    theirs = f"what it uses is {', '.join(counting)}" if counting else "it has no settings"
    message = f"is {str(value).lower() if isinstance(value, bool) else value}, which is not used by {_names(parts)}"
    return UserError(message, field=f"dpo.{key}", remedy=f"{theirs}; {_those_with(key)}")


def _names_given(dpo: DpoConfig) -> list[str]:
    """The objectives as the config calls them."""
    if dpo.own_objective is not None:
        return []
    return [dpo.preference_loss] if isinstance(dpo.preference_loss, str) else list(dpo.preference_loss)


def _names(parts: Sequence[Part]) -> str:
    return " and ".join(part.entry.name for part in parts)


def _those_with(key: str) -> str:
    names = objectives_with(key)
    return f"dpo.{key} is for {', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''}"
