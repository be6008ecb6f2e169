"""The metrics of a run by name: what a step and a validation measure, and how checkpointing.metric_name spells them.

Imports no torch: a config is checked against these names before anything runs.
"""

from __future__ import annotations

from collections.abc import Iterable

# Means over pairs. The losses of the terms "preference" and "sft" are in every record, as in NeMo-RL.
LOSSES = ("loss", "preference_loss", "sft_loss")
REWARDS = ("accuracy", "rewards_chosen_mean", "rewards_rejected_mean")
# Means over response tokens where they are asked for, by what the output layer says of each: TRL's names and definitions.
TOKEN_METRICS = {"entropy": "entropy", "mean_token_accuracy": "is_most_probable"}
TOKEN_VALUES = frozenset(TOKEN_METRICS.values())
# Log-ratios to the reference, where there are scores that the objective itself does not read.
LOG_RATIOS = ("log_ratio_chosen_mean", "log_ratio_rejected_mean")
# What is known of each pair besides: means over pairs, and over response tokens where there are scores.
LOGPS = ("logps_chosen_mean", "logps_rejected_mean")
MARGIN = "rewards_margin_mean"
DISTANCES = ("log_ratio_chosen_per_token", "log_ratio_rejected_per_token", "kl_chosen", "kl_rejected")
COUNTS = ("num_valid_samples", "global_valid_seqs", "global_valid_toks")
# What a training step has besides.
OF_STEPS = ("grad_norm", "lr", "wd")


def loss_metric(term: str) -> str:
    """The metric of one term of an objective."""
    return f"{term}_loss"


def of_pairs(terms: Iterable[str], *, token_metrics: bool = False) -> tuple[str, ...]:
    """What training and validation measure with an objective of these `terms`, with or without TOKEN_METRICS."""
    of_tokens = TOKEN_METRICS if token_metrics else ()
    return tuple(dict.fromkeys((*LOSSES, *map(loss_metric, terms), *REWARDS, *of_tokens, *COUNTS)))


def selector(name: str) -> str:
    """`train/x` and `validation-n/x` of a record as metric_name spells them: `train:x`, `val:validation-n_x`."""
    section, _, metric = name.rpartition("/")
    return f"val:{section}_{metric}" if section.startswith("validation-") else f"{section}:{metric}"


def selectors(sets: Iterable[str], terms: Iterable[str], *, token_metrics: bool = False) -> list[str]:
    """The names that checkpoints can be ranked by in a run that validates `sets`."""
    return [f"{start}{metric}" for start, metrics in _sections(sets, terms, token_metrics) for metric in metrics]


def unmeasured(sets: Iterable[str], terms: Iterable[str], *, compares: bool) -> list[str]:
    """Those of `selectors` that are always 0: losses of other terms; rewards where the objective `compares` no responses."""
    names = {*LOSSES[1:]} - {loss_metric(term) for term in terms} | ({*REWARDS, MARGIN} if not compares else set())
    starts = [selector("train/"), *(selector(f"validation-{name}/") for name in sets)]
    return [f"{start}{name}" for start in starts for name in sorted(names)]


def selectors_text(sets: Iterable[str], terms: Iterable[str], *, token_metrics: bool = False) -> str:
    """The same for a person, those of one section together."""
    return " and ".join(f"{start}{{{', '.join(metrics)}}}" for start, metrics in _sections(sets, terms, token_metrics))


def keeps_the_worst(name: str, *, higher_is_better: bool) -> bool:
    """Whether `higher_is_better` takes for best what everybody else calls worst. `name` is one of `selectors`."""
    return name.endswith("loss") if higher_is_better else name.endswith(("accuracy", MARGIN))


def _sections(sets: Iterable[str], terms: Iterable[str], token_metrics: bool) -> list[tuple[str, tuple[str, ...]]]:
    """How the names of a section begin, and its metrics."""
    metrics = (*of_pairs(terms, token_metrics=token_metrics), *LOGPS, MARGIN)
    return [(selector("train/"), (*metrics, *OF_STEPS)), *((selector(f"validation-{name}/"), metrics) for name in sets)]
