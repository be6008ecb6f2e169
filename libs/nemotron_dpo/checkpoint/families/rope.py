"""Rotary positions in a config.json: `rope_parameters` of transformers 5, `rope_scaling` of 4, and fields beside either.

Where both sections are there, transformers 5 takes `rope_scaling` in the place of `rope_parameters`, and transformers 4 ignores
`rope_parameters`. So both are accepted only where they agree, as in the configs that we write.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemotron_dpo.checkpoint.families import rope_scaling
from nemotron_dpo.checkpoint.families.family import Family
from nemotron_dpo.errors import UserError
from nemotron_dpo.policy.sublayers.rotary import Rotary, Scaling
from nemotron_dpo.policy.uniform import UniformDecoder

_OLD, _NEW = "rope_scaling", "rope_parameters"
# settings of a scaling that config.json may have beside the sections
_BESIDE = ("original_max_position_embeddings",)
_OLDER = {"phi3": {"su": "longrope", "yarn": "longrope"}}  # names that files of a family have for what it calls so now


def read(family: Family, config: Mapping[str, Any], path: Path | None) -> tuple[float, float, Scaling | None]:
    """(theta, rotated part of a head, scaling). Raises UserError where the fields disagree or are not supported."""
    sections = {name: dict(config[name]) for name in (_OLD, _NEW) if config.get(name)}
    if not sections and _NEW in family.defaults:
        sections = {_NEW: dict(family.defaults[_NEW])}
    for name, section in sections.items():
        if nested := next((key for key, value in section.items() if isinstance(value, Mapping)), None):
            raise UserError(f"{name} of its own for {nested} is not supported", source=path, remedy="one for all layers is")
    kind = _agreed("rope type", _kinds(sections, family), "default", path)
    _refuse_dropped(sections, config, path)
    theta = _agreed("rope_theta", _said("rope_theta", sections, config), family.defaults.get("rope_theta", 10000.0), path)
    usual = family.defaults.get("partial_rotary_factor", 1.0)
    percent = float(_agreed("partial_rotary_factor", _said("partial_rotary_factor", sections, config), usual, path))
    if percent != 1.0 and not family.partial_rotary:
        raise UserError(f"partial_rotary_factor {percent} is not supported", source=path, remedy="1.0 is")
    _refuse_growth(family, sections, path)
    said = _Said(sections, {**family.defaults, **config}, path)
    return float(theta), percent, rope_scaling.read(kind, said.value, config["max_position_embeddings"], path)


def _refuse_growth(family: Family, sections: Mapping[str, Mapping[str, Any]], path: Path | None) -> None:
    """Raise UserError where positions multiply queries, as only Ministral 3's do in transformers."""
    if family.model_type != "ministral3" and any(section.get(rope_scaling.QUERY_GROWTH) for section in sections.values()):
        raise UserError(f"{rope_scaling.QUERY_GROWTH} of a {family.model_type} is not supported", source=path)


def write(decoder: UniformDecoder, family: Family) -> dict[str, Any]:
    """The fields in the form of transformers 4 and in that of 5: each version misreads the other's."""
    rotary = Rotary(decoder.rotary_base, decoder.rotary_percent, decoder.rope_scaling)
    return written(rotary, family, decoder.max_position_embeddings)


def written(rotary: Rotary, family: Family, max_positions: int) -> dict[str, Any]:
    """The same of the positions of a layer."""
    new, old, beside = rope_scaling.write(rotary.scaling, max_positions)
    percent = {"partial_rotary_factor": rotary.percent} if family.partial_rotary else {}
    return {
        _NEW: {"rope_theta": rotary.base, **percent, **new},
        _OLD: old,
        "rope_theta": rotary.base,
        **percent,
        **beside,
    }


@dataclass(frozen=True)
class _Said:
    sections: Mapping[str, Mapping[str, Any]]
    config: Mapping[str, Any]
    path: Path | None

    def value(self, key: str) -> Any:
        """What all fields that give `key` a value agree on; None without any."""
        return _agreed(key, _said(key, self.sections, self.config if key in _BESIDE else {}), None, self.path)


def _kinds(sections: Mapping[str, Mapping[str, Any]], family: Family) -> dict[str, str]:
    """Each field that names a kind of rope, with the kind. A section that names none means the default."""
    older: Mapping[str, str] = _OLDER.get(family.model_type, {})
    kinds: dict[str, str] = {}
    for name, section in sections.items():
        said = {f"{name}.{key}": section[key] for key in ("rope_type", "type") if key in section}
        named = {key: older.get(kind) or kind for key, kind in said.items()}
        kinds |= named or {name: "default"}
    return kinds


def _refuse_dropped(sections: Mapping[str, Mapping[str, Any]], config: Mapping[str, Any], path: Path | None) -> None:
    """Raise UserError where a value is only in the section that transformers 5 drops."""
    if _OLD not in sections:
        return
    for key in sections.get(_NEW, {}):
        if key not in ("rope_type", "type") and key not in sections[_OLD] and key not in config:
            remedy = f"write it beside {_OLD}: transformers 5 drops {_NEW} where that is there"
            raise UserError(f"{key} is in {_NEW} alone", source=path, remedy=remedy)


def _said(key: str, sections: Mapping[str, Mapping[str, Any]], config: Mapping[str, Any]) -> dict[str, Any]:
    """Each field that gives `key` a value, in the sections and in `config` beside them."""
    found = {f"{name}.{key}": section[key] for name, section in sections.items() if section.get(key) is not None}
    return found | ({key: config[key]} if config.get(key) is not None else {})


def _agreed(what: str, said: Mapping[str, Any], default: Any, path: Path | None) -> Any:
    """The value on which all fields agree. Raises UserError where they differ: transformers' versions choose differently."""
    values = list(said.values())
    if any(value != values[0] for value in values):
        places = " and ".join(f"{value!r} ({place})" for place, value in said.items())
        raise UserError(f"{what} is {places}", source=path, remedy="leave the right one")
    return values[0] if values else default
