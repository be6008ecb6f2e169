"""The objective that a config asks for: what it needs and what it is made of can be asked of it before torch is loaded."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass
from typing import Any

from nemotron_dpo.config.dpo import DpoConfig
from nemotron_dpo.errors import UserError
from nemotron_dpo.objective.modified import modified, modifiers
from nemotron_dpo.objective.protocol import Objective
from nemotron_dpo.objective.registry import Entry, entries, find
from nemotron_dpo.objective.settings import SettingError, check
from nemotron_dpo.objective.weighted_sum import Named, weighted_sum

# What people ask for by a name that is no objective's: how it is spelled here.
MEANT = {
    "cdpo": "it is dpo with dpo.label_smoothing",
    "kto": "it takes single responses, not pairs; bco_pair is built alike",
    "kto_pair": "TRL has it no more; bco_pair is built alike",
    "ld_dpo": "it is dpo with dpo.ld_alpha",
    "mpo": "it is {dpo: 0.8, bco_pair: 0.2, sft: 1.0}",
    "rdpo": "it is dpo with dpo.length_alpha",
    "rpo": "with rewards of rows it is rpo_bwd_kl, rpo_fwd_kl or rpo_sq; TRL's is dpo with dpo.sft_loss_weight",
    "wpo": "it is dpo with dpo.wpo_weighting=true",
}
LOSS, SFT = "dpo.preference_loss", "sft"
TRL_F_ALPHA = 0.5
_ALONE = "preference"  # the term of an objective that is in no mixture
# Setting of an objective -> key below dpo where the names differ.
BETA_KEY = "reference_policy_kl_penalty"
_KEYS = {"beta": BETA_KEY, "average": "preference_average_log_probs"}


@dataclass(frozen=True)
class Part:
    """One objective of the run with its weight; `term` is what its loss is called."""

    entry: Entry
    weight: float = 1.0
    term: str = _ALONE

    @property
    def settings(self) -> dict[str, dataclasses.Field[Any]]:
        """Key below dpo -> the field of the objective that it sets."""
        fields = dataclasses.fields(self.entry.make)  # type: ignore[arg-type] - every objective is a dataclass
        return {self.key(item.name): item for item in fields if item.name in self.entry.settings}

    def key(self, setting: str) -> str:
        """The key below dpo that gives `setting`."""
        return "sft_average_log_probs" if (self.entry.name, setting) == (SFT, "average") else _KEYS.get(setting, setting)


def objective_of(dpo: DpoConfig) -> Objective:
    """The objectives of the run, each times its weight. Raises UserError where the settings make none."""
    parts = parts_of(dpo)
    plain = [(part.entry, _made(part, dpo)) for part in parts]
    try:
        objectives = modified(plain, **modifier_values(dpo))
    except SettingError as error:
        raise UserError(error.problem, field=f"dpo.{error.setting}") from None
    if dpo.own_objective is not None and len(parts) > 1 and SFT in objectives[0].terms:
        message = f"is {dpo.sft_loss_weight:g}, and {dpo.own_objective.entry.name} has a term sft too"
        raise UserError(message, field="dpo.sft_loss_weight", remedy="leave it 0, or call the term otherwise")
    named = [one if part.term in (_ALONE, SFT) else Named(part.term, one) for part, one in zip(parts, objectives, strict=True)]
    return weighted_sum(*((part.weight, one) for part, one in zip(parts, named, strict=True)))


def modifier_values(dpo: DpoConfig) -> dict[str, Any]:
    """The settings that go across objectives, where they say something.

    Left out is what TRL writes out for f_alpha where there is no alpha_divergence, and all of them where only sft has a weight.
    """
    keys = [key for modifier in modifiers().values() for key in modifier.settings]
    values = {key: value for key in keys if (value := getattr(dpo, key)) is not None}
    if values.get("f_alpha") == TRL_F_ALPHA and values.get("f_divergence") != "alpha_divergence":
        del values["f_alpha"]
    return {} if dpo.preference_loss_weight == 0 else values


def objective_names(dpo: DpoConfig) -> list[str]:
    """What the run trains, by name."""
    return [part.entry.name for part in parts_of(dpo)]


def parts_of(dpo: DpoConfig) -> tuple[Part, ...]:
    """What the run trains, in the order of the config; what has no weight is no part of it.

    Raises UserError, whose field is the dotted key, for a name that no objective has, for weights that are none, and for
    weights in two places.
    """
    parts = _preferences(dpo)
    if dpo.sft_loss_weight and any(part.entry.name == SFT and part.weight for part in parts):
        message = f"is {dpo.sft_loss_weight:g}, and {LOSS} has sft already"
        raise UserError(message, field="dpo.sft_loss_weight", remedy="leave it 0")
    parts.append(Part(find(SFT), dpo.sft_loss_weight, SFT))
    return tuple(part for part in parts if part.weight)


def canonical_name(name: str) -> str:
    """The objective's own name, of a name or an alias that `parts_of` took."""
    return find(name).name


def _made(part: Part, dpo: DpoConfig) -> Objective:
    given: dict[str, Any] = {}
    for key, item in part.settings.items():
        value = getattr(dpo, key, None)
        if value is not None:
            given[item.name] = value
        elif item.default is MISSING:
            raise UserError(f"is not set, and {part.entry.name} needs it", field=f"dpo.{key}")
    try:
        objective = part.entry.make(**given)
        check(objective)
    except SettingError as error:
        message = f"{error.problem} with {LOSS}={part.entry.name}"
        raise UserError(message, field=f"dpo.{part.key(error.setting)}") from None
    return objective


def _preferences(dpo: DpoConfig) -> list[Part]:
    if dpo.own_objective is not None:
        if dpo.preference_loss != DpoConfig.preference_loss:
            shown = dpo.preference_loss if isinstance(dpo.preference_loss, str) else "a mixture"
            raise UserError(f"is {shown}, and --objective stands in its place", field=LOSS, remedy="leave it out")
        if dpo.preference_loss_weight == 0:
            raise UserError(
                "is 0, and --objective would not be trained", field="dpo.preference_loss_weight", remedy="leave it out"
            )
        return [Part(dpo.own_objective.entry, dpo.preference_loss_weight)]
    if isinstance(dpo.preference_loss, str):
        entry = _find(dpo.preference_loss)
        return [Part(entry, dpo.preference_loss_weight, SFT if entry.name == SFT else _ALONE)]
    if dpo.preference_loss_weight != 1:
        message = f"is {dpo.preference_loss_weight:g}, and {LOSS} has a weight for each of its objectives"
        raise UserError(message, field="dpo.preference_loss_weight", remedy="leave it 1")
    return _mixture(dpo.preference_loss)


def _mixture(weights: Mapping[str, float]) -> list[Part]:
    if not weights:
        raise UserError("is an empty mapping", field=LOSS, remedy="name an objective, or several with their weights")
    parts: dict[str, Part] = {}
    for name, weight in weights.items():
        entry = _find(name)
        if not (weight > 0 and math.isfinite(weight)):
            raise UserError(f"gives {name} the weight {weight:g} where more than 0 is due", field=LOSS, remedy="leave it out")
        if entry.name in parts:
            raise UserError(f"has {entry.name} twice: {', '.join(map(str, weights))}", field=LOSS, remedy="give it one weight")
        parts[entry.name] = Part(entry, weight, entry.name)
    return list(parts.values())


def _find(name: str) -> Entry:
    try:
        return find(name)
    except KeyError:
        pass
    if ".py" in name:
        message = f"is {name!r}: code is never taken from a config, which may be a stranger's"
        raise UserError(message, field=LOSS, remedy="give it as dpo-train --objective FILE.py:NAME")
    if "," in name or " " in name.strip():
        raise UserError(f"is {name!r}, no objective", field=LOSS, remedy="several are a mapping: {NAME: WEIGHT, NAME: WEIGHT}")
    plain = name.lower().replace("-", "_")
    if plain in MEANT:
        raise UserError(f"is {name!r}, no objective here", field=LOSS, remedy=MEANT[plain])
    names = [known for entry in entries().values() for known in (entry.name, *entry.aliases)]
    close = difflib.get_close_matches(plain, names, n=1, cutoff=0.6)
    guess = f"did you mean {close[0]}? " if close else ""
    raise UserError(f"is {name!r}, no objective", field=LOSS, remedy=f"{guess}there are {', '.join(entries())}")
