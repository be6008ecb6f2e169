"""What became of the pairs: their margins, whether these follow length, and which lengths and sources are right."""

from __future__ import annotations

import numpy as np

from nemotron_dpo.report.bootstrap import share_interval
from nemotron_dpo.report.distributions import histograms, scatter, shares
from nemotron_dpo.report.document import Figure, Section
from nemotron_dpo.report.pair_log import PairChanges, Sightings, by_bins, correlation
from nemotron_dpo.report.run_report import Run
from nemotron_dpo.report.visible import number, percent, shortened, visible
from nemotron_dpo.wording import counted

_DRAWN = 800  # points of the scatter
_SOURCES = 10
_SEED = 20


def pairs_section(run: Run) -> Section:
    """Of the validation set where its pairs are on record, else of pairs that were trained on."""
    change, heading = run.change, "What became of the pairs"
    if run.log is None:
        lead = "This run wrote no pairs_log.arrow, as versions before it did not, so single pairs cannot be told apart."
        return Section("pairs", heading, lead)
    if change is None:
        return Section("pairs", heading, run.log.problem or "No pair of this run has a margin.")
    figures = (_margins(change), _length(change), _by_length(change), _by_source(change))
    return Section("pairs", heading, _lead(run, change), tuple(figure for figure in figures if figure is not None))


def where(run: Run, split: str) -> str:
    """What pairs of `split` are called."""
    is_held_out = split == "validation-default" and not run.given.trained_on("default")[0]
    return "trained on" if split == "train" else "held out" if is_held_out else f"of {visible(split)}"


def _lead(run: Run, change: PairChanges) -> str:
    count = counted(len(change.last), "pair", ",")
    if not change.was_seen_twice:
        return f"{count} {where(run, change.split)}, each seen once, so there is a margin for each and no change."
    steps = f"{int(change.first.step.min())} and {int(change.last.step.max())}"
    moved = percent(float((change.last.margin > change.first.margin).mean()))
    return f"{count} {where(run, change.split)}, as they were first and last, between steps {steps}. {moved} of them gained."


def _margins(change: PairChanges) -> Figure | None:
    last, groups = change.last.margin, {}
    caption = "Shares of pairs by margin. Left of 0 the policy prefers the rejected response."
    if change.was_seen_twice and change.first.margin.std() > 0:
        groups["first"] = (change.first.margin, "train")
        caption = f"Grey is the first time, dark the last. {caption}"
    elif change.was_seen_twice:
        caption = f"{caption} At first all were {number(float(change.first.margin[0]), 2)}."
    groups["last"] = (last, "held")
    said = f"Margins: median {number(float(np.median(last)), 2)}, {percent(float((last > 0).mean()))} above 0"
    return histograms("margins", "Margins, first and last" if len(groups) > 1 else "Margins", caption, said, groups)


def _length(change: PairChanges) -> Figure | None:
    last = change.last
    related = correlation(last.margin, last.longer)
    rows = np.arange(len(last))
    if len(rows) > _DRAWN:
        rows = np.sort(np.random.default_rng(_SEED).choice(rows, _DRAWN, replace=False))
    bins = by_bins(last.longer, lambda own: _quartiles(last, own), max(2, min(12, len(last) // 25)))
    middle = [(place, *marks) for _, _, (place, *marks) in bins]  # type: ignore[misc] - by_bins does not know what `use` gives
    drawn = f"; {_DRAWN} of {len(last):,} pairs are drawn" if len(last) > _DRAWN else ""
    told = "" if related is None else f" Correlation {related:.2f}."
    caption = f"The line is the median, the band half of the pairs{drawn}. A slope means that it learns length.{told}"
    points = (last.longer[rows], last.margin[rows])
    said = f"Margin against difference in length.{told}"
    return scatter("length", "Is it learning length?", caption, said, points, middle, "chosen is longer by, tokens")


def _quartiles(seen: Sightings, rows: np.ndarray) -> tuple[float, ...]:
    return (float(np.median(seen.longer[rows])), *(float(v) for v in np.quantile(seen.margin[rows], [0.25, 0.5, 0.75])))


def _by_length(change: PairChanges) -> Figure | None:
    last = change.last
    longest = np.maximum(last.chosen_tokens, last.rejected_tokens)
    bins = by_bins(longest, lambda own: own, 5 if len(last) >= 40 else 3)
    rows = []
    for number_, (low, high, own) in enumerate(bins):
        upper = high if number_ == len(bins) - 1 else high - 1
        rows.append(_share(f"{low:.0f}-{upper:.0f} tokens" if upper > low else f"{low:.0f} tokens", last, np.asarray(own)))
    caption = "By the longer response of a pair, with 95 % intervals and the number of pairs. The rule is chance."
    return shares("by-length", "Accuracy by length", caption, _said("length", rows), rows)


def _by_source(change: PairChanges) -> Figure | None:
    last = change.last
    counts = np.bincount(last.source, minlength=len(last.sources))
    order = [int(code) for code in np.argsort(-counts, kind="stable") if counts[code]]
    if len(order) == 1 and not last.sources[order[0]]:
        return None
    rows = [_share(_name(last.sources[code]), last, np.flatnonzero(last.source == code)) for code in order[:_SOURCES]]
    if len(order) > _SOURCES:
        rest = np.flatnonzero(~np.isin(last.source, order[:_SOURCES]))
        rows.append(_share(f"{len(order) - _SOURCES} others", last, rest))
    caption = "By the file or data set of a pair, the largest first."
    return shares("by-source", "Accuracy by source", caption, _said("source", rows), rows)


def _name(source: str) -> str:
    return shortened(visible(source), 40) or "unnamed"


def _share(name: str, seen: Sightings, rows: np.ndarray) -> tuple[str, float, float, float, int]:
    share = share_interval(int((seen.margin[rows] > 0).sum()), len(rows))
    return name, share.mean, share.low, share.high, len(rows)


def _said(by: str, rows: list[tuple[str, float, float, float, int]]) -> str:
    return f"Accuracy by {by}: " + "; ".join(f"{name} {percent(share)} of {n}" for name, share, _, _, n in rows)
