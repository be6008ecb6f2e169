"""The metrics that checkpoints can be ranked by, as checkpointing.metric_name spells them; known here before anything runs."""

from __future__ import annotations

from collections.abc import Iterable

# What every training step and every validation measures, and what a step does besides.
OF_PAIRS = (
    "loss",
    "preference_loss",
    "sft_loss",
    "accuracy",
    "rewards_chosen_mean",
    "rewards_rejected_mean",
    "num_valid_samples",
    "global_valid_seqs",
    "global_valid_toks",
)
OF_STEPS = (*OF_PAIRS, "grad_norm", "lr", "wd")
_HIGHER_IS_BETTER = {"accuracy": True, "loss": False, "preference_loss": False, "sft_loss": False}


def selectors(sets: Iterable[str]) -> list[str]:
    """The names there are in a run that validates `sets`."""
    return [f"{start}{metric}" for start, metrics in _families(sets) for metric in metrics]


def shown(sets: Iterable[str]) -> str:
    """The same for a person, those of one kind together."""
    return " and ".join(f"{start}{{{', '.join(metrics)}}}" for start, metrics in _families(sets))


def keeps_the_worst(name: str, *, higher_is_better: bool) -> bool:
    """Whether what counts as best by `name` is what everybody else calls worst."""
    ends = [metric for metric in OF_PAIRS if name.endswith((f":{metric}", f"_{metric}"))]
    metric = max(ends, key=len, default="")
    return _HIGHER_IS_BETTER.get(metric, higher_is_better) is not higher_is_better


def _families(sets: Iterable[str]) -> list[tuple[str, tuple[str, ...]]]:
    return [("train:", OF_STEPS), *((f"val:validation-{name}_", OF_PAIRS) for name in sets)]
