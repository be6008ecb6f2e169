"""The objective that a config of theirs asks for, by the names of the registry; what is not built is refused."""

from __future__ import annotations

from typing import Any

from nemotron_dpo.config.theirs.given import Given
from nemotron_dpo.objective.registry import find

# TRL's name -> ours where they differ. What TRL calls aot is the paired one since 1.0.
_NAMES = {"sigmoid": "dpo", "sigmoid_norm": "dpo_norm", "aot": "aot_paired", "aot_pair": "aot_paired"}
_SMOOTHED = ("robust", "exo_pair", "aot_paired", "aot_unpaired")  # those whose label_smoothing TRL reads
_SFT = "a mean over the tokens of each chosen response here, and over all tokens of a batch there"


def objective(given: Given) -> None:
    names, weights = list(map(str, _listed(given.get("loss_type")))), given.get("loss_weights")
    ours = [_NAMES.get(name, name) for name in names]
    for theirs, name in zip(names, ours, strict=True):
        if not _is_built(name):
            given.refuse("loss_type", f"has {theirs}, which is not built", "`nemotron-steps show rl/nemo_rl/dpo` has what is")
    if weights is not None and len(_listed(weights)) != len(names):
        given.refuse("loss_weights", f"has {len(_listed(weights))} weights for {len(names)} losses")
    is_one = len(ours) == 1 and weights in (None, [1], [1.0])
    shares = _numbers(given, weights) if weights is not None else [1.0] * len(ours)
    given.write(
        "dpo.preference_loss", ours[0] if is_one else dict(zip(ours, shares, strict=False)), "loss_type", "loss_weights"
    )
    given.write("dpo.reference_policy_kl_penalty", given.get("beta"), "beta")
    _fine_tuning(given, names)
    _settings(given, ours)


def _numbers(given: Given, weights: Any) -> list[float]:
    try:
        return [float(weight) for weight in _listed(weights)]
    except (ValueError, OverflowError):
        given.refuse("loss_weights", f"is {weights} where numbers are due")
        return []


def _fine_tuning(given: Given, names: list[str]) -> None:
    alpha = given.get("rpo_alpha")
    if alpha:
        given.write("dpo.sft_loss_weight", alpha, "rpo_alpha")
    if alpha or "sft" in names:
        given.write("dpo.sft_average_log_probs", True, "rpo_alpha" if alpha else "loss_type")
        if given.program != "llama_factory":  # which takes the mean over the tokens of each response, too
            given.differ("rpo_alpha" if alpha else "loss_type", f"sft is {_SFT}")


def _settings(given: Given, ours: list[str]) -> None:
    smoothing = given.get("label_smoothing")
    if smoothing and (given.program != "trl" or set(ours) & set(_SMOOTHED)):
        given.write("dpo.label_smoothing", smoothing, "label_smoothing")
    elif smoothing:
        given.differ("label_smoothing", f"TRL does not read it with {', '.join(ours)}; dpo.label_smoothing would count here")
    if "discopop" in ours:
        given.write("dpo.discopop_tau", given.get("discopop_tau"), "discopop_tau")
    if given.get("simpo_gamma") is not None and "simpo" in ours:
        given.write("dpo.gamma", given.get("simpo_gamma"), "simpo_gamma")
    if given.get("ld_alpha") is not None:
        given.write("dpo.ld_alpha", given.get("ld_alpha"), "ld_alpha")
    if given.get("use_weighting"):
        given.write("dpo.wpo_weighting", True, "use_weighting")
    divergence = given.get("f_divergence_type")
    if divergence != "reverse_kl":
        given.write("dpo.f_divergence", divergence, "f_divergence_type")
    if divergence == "alpha_divergence":
        given.write("dpo.f_alpha", given.get("f_alpha_divergence_coef"), "f_alpha_divergence_coef")
    if set(ours) & {"aot_paired", "aot_unpaired"}:
        given.differ("loss_type", "aot sorts over the whole batch of a step here, and over a micro batch there")


def _is_built(name: str) -> bool:
    try:
        find(name)
    except KeyError:
        return False
    return True


def _listed(value: Any) -> list[Any]:
    if isinstance(value, str):
        return [part.strip() for part in value.split(",")]
    return value if isinstance(value, list) else [value]
