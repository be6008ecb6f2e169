"""TRL's names of what the section `dpo` says, rewritten into ours.

A key with a plain counterpart is renamed in each layer of a config, before the layers are merged: so the last one counts,
whatever its name. What takes several keys to say (`loss_type` with `loss_weights`, `rpo_alpha`) is rewritten once the layers
are merged; a later layer that says the same in our names replaces it, and the other way round.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nemotron_dpo.errors import UserError

# TRL's name below dpo -> ours. The first are of DPOConfig, the others of CPOConfig, which has SimPO.
TRL_NAMES = {
    "beta": "reference_policy_kl_penalty",
    "f_divergence_type": "f_divergence",
    "f_alpha_divergence_coef": "f_alpha",
    "use_weighting": "wpo_weighting",
    "simpo_gamma": "gamma",
}
# ours -> TRL's keys that say the same; the first of these stands for it
_SEVERAL = {"preference_loss": ("loss_type", "loss_weights"), "sft_loss_weight": ("rpo_alpha",)}
_LOSS = "preference_loss"


def in_our_names(dpo: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The section `dpo` of one layer, called `source`, in our names. Raises UserError where two names disagree."""
    ours = {name: value for name, value in dpo.items() if name not in TRL_NAMES}
    for theirs, name in TRL_NAMES.items():
        if (value := dpo.get(theirs)) is None:  # TRL writes out null where nothing is asked for
            continue
        if ours.get(name, value) != value:
            message = f"is {value}, and dpo.{name}, its name here, is {ours[name]}"
            raise UserError(message, source=source, field=f"dpo.{theirs}", remedy="set one of them")
        ours[name] = value
    return ours


def dpo_spellings(key: str) -> list[str]:
    """The names below dpo under which a config may give the value of `key`, beginning with `key`."""
    return [key, *_SEVERAL.get(key, ()), *(theirs for theirs, ours in TRL_NAMES.items() if ours == key)]


def replaced(layer: Mapping[str, Any], path: str) -> list[str]:
    """The keys below, in the section `dpo`, that `layer`, the section of a later layer, replaces and does not merge with.

    A mixture is meant as a whole, unless the dotted `path` of an override leads into it.
    """
    keys = [] if layer.get(_LOSS) is None or path.startswith(f"dpo.{_LOSS}.") else [_LOSS]
    for ours, theirs in _SEVERAL.items():
        keys += [ours] if layer.get(theirs[0]) is not None else theirs if layer.get(ours) is not None else []
    return keys


def canonical_dpo(dpo: dict[str, Any]) -> None:
    """Rewrite what takes several of TRL's keys, in place. Raises UserError where they make no objective."""
    types, weights, alpha = (dpo.pop(name, None) for name in ("loss_type", "loss_weights", "rpo_alpha"))
    if types is None and weights is not None:
        raise UserError("belongs to dpo.loss_type, which is not set", field="dpo.loss_weights")
    for value, theirs, ours in ((types, "loss_type", _LOSS), (alpha, "rpo_alpha", "sft_loss_weight")):
        if value is not None and dpo.get(ours) is not None:
            raise UserError(f"is set, and so is dpo.{ours}, its name here", field=f"dpo.{theirs}", remedy="set one of them")
    if isinstance(types, dict):
        raise UserError(
            "is a mapping", field="dpo.loss_type", remedy=f"that is dpo.{_LOSS}; TRL has lists, and dpo.loss_weights"
        )
    if types is not None:
        dpo[_LOSS] = _objectives(types if isinstance(types, list) else [types], weights)
    if alpha is not None:
        dpo["sft_loss_weight"] = alpha
    if (alpha or "sft" in _items(types)) and dpo.get("sft_average_log_probs") is None:
        dpo["sft_average_log_probs"] = True
    if isinstance(dpo.get(_LOSS), list):
        raise UserError("is a list", field=f"dpo.{_LOSS}", remedy="map each objective to its weight: {dpo: 0.8, sft: 1.0}")
    if dpo.get(_LOSS, "") is None:
        del dpo[_LOSS]


def trl_remarks(sections: Sequence[Mapping[str, Any]], *, averages: bool) -> Iterator[tuple[str, str]]:
    """(dotted key, remark) where a key of TRL's comes to something else here.

    `sections` are those called dpo of the layers; sft `averages` over the tokens of a response, or sums.
    """
    how = "a mean over the tokens of each response" if averages else "a sum over the tokens of each response"
    text = f"{how} here, and a mean over the tokens of the batch in TRL"
    if "sft" in _items(_counting("loss_type", _LOSS, sections)):
        yield "dpo.loss_type", f"has sft: {text}"
    if _counting("rpo_alpha", "sft_loss_weight", sections):
        yield "dpo.rpo_alpha", f"is the weight of sft: {text}"


def _counting(theirs: str, ours: str, sections: Sequence[Mapping[str, Any]]) -> Any:
    """The value of `theirs` in the last section that says it or `ours`; None where that is ours."""
    last = next((one for one in reversed(sections) if one.get(theirs) is not None or one.get(ours) is not None), {})
    return last.get(theirs)


def _objectives(names: list[Any], weights: Any) -> str | dict[str, Any]:
    shown = ", ".join(map(str, names))
    if not names:
        raise UserError("is an empty list", field="dpo.loss_type")
    if weights is not None and not (isinstance(weights, list) and len(weights) == len(names)):
        message = f"is {weights}, and dpo.loss_type has {len(names)}: {shown}"
        raise UserError(message, field="dpo.loss_weights", remedy="give each objective its weight")
    if len(set(map(str, names))) < len(names):
        raise UserError(f"names an objective twice: {shown}", field="dpo.loss_type")
    if len(names) == 1 and weights in (None, [1]):
        return names[0]
    return dict(zip(map(str, names), weights or [1.0] * len(names), strict=True))


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]
