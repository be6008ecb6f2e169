"""Which of several runs is best on the pairs that they were all validated on, and how likely that order is chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nemotron_dpo.report.bootstrap import chance_of_worse
from nemotron_dpo.report.run_report import Run, what_pairs
from nemotron_dpo.report.settings_diff import keys_that_differ
from nemotron_dpo.report.visible import number, percent
from nemotron_dpo.wording import counted

_SURE = 0.05
# Settings that leave the loss of a pair what it is; others under dpo. may make it another loss.
_SAME_LOSS = ("dpo.max_", "dpo.val_", "dpo.seed", "dpo.on_divergence", "dpo.num_val_samples_to_print")


@dataclass(frozen=True)
class Verdict:
    """The name of the best run, None where there is none; why, how likely it is chance, and how that was found.

    otherwise: what is said in place of a name.
    """

    best: str | None
    headline: str
    why: str
    chance: str
    how: str
    is_sure: bool = False
    otherwise: str = "Cannot be told"


def best(runs: Sequence[Run], names: Sequence[str]) -> Verdict:
    """By validation loss where all have the same loss, else by accuracy; runs that are equal in it are called so."""
    by_pairs = _on_shared_pairs(runs)
    if by_pairs is None:
        return _by_records(runs, names)
    metric, values_RP = by_pairs
    sign = -1.0 if metric == "loss" else 1.0
    means = sign * values_RP.mean(axis=1)
    order = np.argsort(-means, kind="stable")
    shown = [percent(float(v)) if metric == "accuracy" else number(float(v)) for v in values_RP.mean(axis=1)]
    count = counted(values_RP.shape[1], f"{what_pairs(*runs)} pair", ",")
    first, second = int(order[0]), int(order[1])
    if means[first] == means[second]:
        equal = [name for name, mean in zip(names, means, strict=True) if mean == means[first]]
        return _no_difference(metric, equal, shown[first], count)
    chance = chance_of_worse(sign * (values_RP[first] - values_RP[second]))
    why = f"By {metric} on the {count} that all were validated on: {shown[first]}, against {shown[second]} of {names[second]}."
    if metric == "accuracy":
        why += " Their losses are not of one objective or beta, and cannot be compared."
    how = (
        f"The share of draws of these pairs in which {names[first]} is not better than {names[second]} (bootstrap, "
        "one-sided). It says nothing of another seed or of other data."
    )
    if chance >= _SURE:
        headline = f"{names[first]} is ahead of {names[second]}, but that may be chance."
        return Verdict(names[first], headline, why, f"{percent(chance)}: do not rely on it", how)
    return Verdict(
        names[first],
        f"{names[first]} is best.",
        why,
        "less than 0.1 %" if chance < 0.001 else f"{100 * chance:.1f} %",
        how,
        True,
    )


def _no_difference(metric: str, equal: Sequence[str], shown: str, count: str = "") -> Verdict:
    """Of the best, which are `equal` to the last digit."""
    who = f"{', '.join(equal[:-1])} and {equal[-1]}"
    why = f"By {metric}{f' on the {count} that all were validated on' if count else ''}: {shown} of each."
    how = "There is none to explain. Other pairs, or more of them, may tell the runs apart."
    return Verdict(
        None, f"No difference between {who} is to be seen.", why, "There is no difference", how, otherwise="No difference"
    )


def _on_shared_pairs(runs: Sequence[Run]) -> tuple[str, np.ndarray] | None:
    """The metric, and its values by run and by pair; None where not all have pairs on record, or no pair is shared."""
    finals = [run.final if _is_validated(run) else None for run in runs]
    places: list[dict[bytes, int]] = []
    for final in finals:
        if final is None:
            return None
        places.append({final.ids[pair]: row for row, pair in enumerate(final.pair.tolist())})
    shared = sorted(set.intersection(*(set(one) for one in places)))
    if not shared:
        return None
    rows = [np.array([one[pair] for pair in shared]) for one in places]
    kept = [final.take(own) for final, own in zip(finals, rows, strict=True) if final is not None]
    if _same_loss(runs) and all(np.isfinite(one.loss).all() for one in kept):
        return "loss", np.stack([one.loss.astype(float) for one in kept])
    return "accuracy", np.stack([(one.margin > 0).astype(float) for one in kept])


def _is_validated(run: Run) -> bool:
    """Whether pairs were held out, and looked at again since the first step."""
    made = run.measured.made
    return not made.num_steps or any(one.last_step for one in made.validations)


def _same_loss(runs: Sequence[Run]) -> bool:
    return not any(key.startswith("dpo.") and not key.startswith(_SAME_LOSS) for key in keys_that_differ(runs))


def _by_records(runs: Sequence[Run], names: Sequence[str]) -> Verdict:
    """From the means of the records alone, without a word on chance."""
    metric = "loss" if _same_loss(runs) else "accuracy"
    lasts = [
        next((one.last.get(metric) for one in run.measured.made.validations), None) if _is_validated(run) else None
        for run in runs
    ]
    how = "Chance cannot be told: for that all runs need pairs_log.arrow, with validation pairs that they share."
    if any(value is None for value in lasts):
        why = "Not all of them were validated, and losses of training are of pairs that each of them knows."
        return Verdict(None, f"{len(runs)} runs, side by side.", why, "Cannot be told", how)
    sign = 1.0 if metric == "loss" else -1.0
    order = sorted(range(len(runs)), key=lambda n: sign * (lasts[n] or 0.0))
    first, second = order[:2]
    if lasts[first] == lasts[second]:
        equal = [names[n] for n in order if lasts[n] == lasts[first]]
        return _no_difference(f"validation {metric}", equal, number(lasts[first]))
    why = f"By validation {metric}: {number(lasts[first])}, against {number(lasts[second])} of {names[second]}."
    leader = str(names[first])
    return Verdict(leader, f"{leader} is ahead by validation {metric}.", why, "Cannot be told", how)
