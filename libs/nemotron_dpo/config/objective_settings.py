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
from nemotron_dpo.config.objective import LOSS, SFT, Part, made, parts_of
from nemotron_dpo.errors import UserError
from nemotron_dpo.objective.registry import entries

_NO_WEIGHT = "belongs to a term of the loss that has no weight"
_BETA, _AVERAGE = "reference_policy_kl_penalty", "preference_average_log_probs"
# They change what a log-ratio is: the objectives of a mixture must mean the same by it.
_OF_ALL = ("f_divergence", "f_alpha", "ld_alpha")
_SHOWN = 12  # of the names in a message


def settings_of(dpo: DpoConfig) -> dict[str, Any]:
    """The keys below dpo that count in the run, with their values; where they say nothing, what their objectives agree on."""
    found: dict[str, Any] = {}
    for part in parts_of(dpo):
        for key, item in part.settings.items():
            given = getattr(dpo, key, None)
            value = _default(item) if given is None else given
            found[key] = value if found.get(key, value) == value else None
    return found


def idle_settings(dpo: DpoConfig) -> dict[str, str]:
    """Dotted keys that say something, and that no objective of the run has, with the reason why they may.

    Raises UserError for one that asks for something.
    """
    parts = parts_of(dpo)
    if not parts:
        return {}
    counting = {key for part in parts for key in part.settings}
    only_sft = all(part.entry.name == SFT for part in parts)
    idle = {}
    for key, value in _given(dpo).items():
        if key in counting:
            _check_all_have(key, value, parts)
        elif value == neutral(key):
            idle[f"dpo.{key}"] = f"is a setting of other objectives than {_names(parts)}, and asks for nothing"
        elif only_sft:
            idle[f"dpo.{key}"] = _NO_WEIGHT
        else:
            raise _unused(key, value, parts)
    if only_sft and dpo.preference_loss_weight == 0 and dpo.preference_loss != DpoConfig.preference_loss:
        idle[LOSS] = _NO_WEIGHT
    if dpo.sft_average_log_probs and "sft_average_log_probs" not in counting and not dpo.preference_average_log_probs:
        idle["dpo.sft_average_log_probs"] = _NO_WEIGHT  # it is often set for both terms at once
    return idle


def objective_remarks(dpo: DpoConfig) -> Iterator[tuple[str, str]]:
    """(dotted key, what its value comes to) where few will mean it."""
    preferences = [part for part in parts_of(dpo) if part.entry.name != SFT]
    if dpo.reference_policy_kl_penalty == 0 and any(_BETA in part.settings for part in preferences):
        yield f"dpo.{_BETA}", _without_beta([first for part in preferences for first in made(part, dpo).terms.values()])
    averaging = [part for part in preferences if _AVERAGE in part.settings and part.settings[_AVERAGE].default is True]
    if averaging and dpo.preference_average_log_probs is False:
        text = f"is false: {_names(averaging)} then sums log-ratios over tokens, and averages them by its own default"
        yield f"dpo.{_AVERAGE}", text


def objectives_with(key: str) -> list[str]:
    """The objectives that `key`, below dpo, is a setting of."""
    return [entry.name for entry in entries().values() if key in Part(entry).settings]


def neutral(key: str) -> Any:
    """The value of `key` that asks for nothing: the default of the first objective that has it, dpo before the others."""
    having = sorted(objectives_with(key), key=lambda name: name != "dpo")
    return _default(Part(entries()[having[0]]).settings[key]) if having else None


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


def _check_all_have(key: str, value: Any, parts: Sequence[Part]) -> None:
    lacking = [part for part in parts if part.entry.name != SFT and key not in part.settings]
    if key in _OF_ALL and value != neutral(key) and lacking:
        message = f"is {value}, which has no meaning with {_names(lacking)}, and a mixture has one kind of log-ratio"
        raise UserError(message, field=f"dpo.{key}", remedy=_those_with(key))


def _unused(key: str, value: Any, parts: Sequence[Part]) -> UserError:
    counting = dict.fromkeys(f"dpo.{name}" for part in parts for name in part.settings)
    theirs = f"what it uses is {', '.join(counting)}" if counting else "it has no settings"
    message = f"is {str(value).lower() if isinstance(value, bool) else value}, which {_names(parts)} does not use"
    return UserError(message, field=f"dpo.{key}", remedy=f"{theirs}; {_those_with(key)}")


def _names(parts: Sequence[Part]) -> str:
    return " and ".join(part.entry.name for part in parts)


def _those_with(key: str) -> str:
    names = objectives_with(key)
    return f"dpo.{key} is for {', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''}"
