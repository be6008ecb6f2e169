"""How training went: curves over the steps, with validation on top of training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import log

from nemotron_dpo.report.document import Curve, Figure, Section
from nemotron_dpo.report.measured import Series
from nemotron_dpo.report.plots import lines, smooth
from nemotron_dpo.report.run_report import Run
from nemotron_dpo.report.visible import number, visible

_HELD_INKS = ("held", "run1", "run2", "run3")


def training_section(run: Run) -> Section:
    """Loss, accuracy, margin, rewards, KL and drift from the reference, gradient norm and learning rate."""
    makers = (_loss, _accuracy, _margin, _rewards, _divergence, _distance, _gradient, _rate)
    figures = tuple(figure for make in makers if (figure := make(run)) is not None)
    inks = "Grey is training, with its running mean; dark, with dots, is validation. " if run.measured.sets else ""
    return Section(
        "training",
        "How training went",
        "" if run.measured.sets else "Nothing was held out, so all curves are of training.",
        figures,
        on_page=f"{inks}Point at a plot, or tab to it and use the arrow keys, to read values.",
    )


def both(run: Run, metric: str) -> list[Curve]:
    """The curve of `metric` in training, and over it that of each validation set."""
    curves = smooth(_curve("training", run.measured.train[metric], "train"), "train") if metric in run.measured.train else []
    for ink, (name, values) in zip(_HELD_INKS, sorted(run.measured.sets.items()), strict=False):
        if metric in values:
            label = "validation" if name == "default" else f"validation {visible(name)}"
            curves.append(_curve(label, values[metric], ink, dots=True))
    return curves


def said_of(title: str, curves: list[Curve]) -> str:
    """The figure in words, for who does not see it."""
    parts = [f"{c.name} from {number(c.values[0])} to {number(c.values[-1])}" for c in curves if not c.faint and len(c.values)]
    steps = [step for c in curves for step in c.steps]
    return f"{title}, steps {min(steps):g} to {max(steps):g}: {'; '.join(parts)}" if steps else title


def _curve(name: str, series: Series, ink: str, *, dots: bool = False) -> Curve:
    return Curve(name, series.steps, series.values, ink, dots)


def _loss(run: Run) -> Figure | None:
    curves = both(run, "loss")
    starts = [curve.values[0] for curve in curves]
    rules = {"ln 2": log(2)} if starts and abs(starts[0] - log(2)) < 0.02 else {}
    told = "ln 2 is the loss of a policy that is still the reference." if rules else "The mean over the pairs of a step."
    return lines("loss", "Loss", told, said_of("Loss", curves), curves, rules=rules)


def _accuracy(run: Run) -> Figure | None:
    curves = [curve for curve in both(run, "accuracy") if any(curve.values)]
    caption = "Share of pairs whose chosen response has the greater reward. A coin has one half."
    return lines(
        "accuracy",
        "Accuracy",
        caption,
        said_of("Accuracy", curves),
        curves,
        rules={"chance": 0.5},
        form=".0%",
        floor=-0.02,
        ceiling=1.03,
    )


def _margin(run: Run) -> Figure | None:
    gaps = [
        Curve(one.name, one.steps, [a - b for a, b in zip(one.values, other.values, strict=True)], one.ink, one.dots, one.faint)
        for one, other in zip(both(run, "rewards_chosen_mean"), both(run, "rewards_rejected_mean"), strict=False)
        if len(one.values) == len(other.values)
    ]
    gaps = gaps if any(any(curve.values) for curve in gaps) else []
    return lines("margin", "Margin", "Chosen reward less rejected reward, in nats a pair.", said_of("Margin", gaps), gaps)


def _rewards(run: Run) -> Figure | None:
    curves = [curve for side in ("chosen", "rejected") for curve in _one_side(run, f"rewards_{side}_mean", side)]
    caption = "Blue is chosen, orange rejected; thin lines are training. Log-ratios to the reference, without beta."
    return lines("rewards", "Rewards of both sides", caption, said_of("Rewards", curves), curves, rules={"reference": 0.0})


def _one_side(run: Run, metric: str, side: str) -> Iterator[Curve]:
    """The metric of one side: validation with dots over a thin line of training, or training alone."""
    held = run.measured.sets.get(run.measured.validation or "", {}).get(metric)
    if (trained := run.measured.train.get(metric)) is not None and any(trained.values):
        smoothed = smooth(_curve(f"{side}, training" if held else side, trained, side), side)
        thin = (Curve(c.name, c.steps, c.values, c.ink, faint=True) for c in smoothed[-1:])
        yield from thin if held else smoothed
    if held is not None and any(held.values):
        yield _curve(side, held, side, dots=True)


def _divergence(run: Run) -> Figure | None:
    curves = [curve for side in ("chosen", "rejected") for curve in _one_side(run, f"kl_{side}", side)]
    caption = "Estimated KL divergence from the reference, in nats a token; thin lines are training."
    return lines("kl", "KL from the reference", caption, said_of("KL", curves), curves)


def _distance(run: Run) -> Figure | None:
    """The mean log-ratio a token, as it was measured, else from the mean reward and the mean length of a response."""
    curves = [curve for side in ("chosen", "rejected") for curve in _one_side(run, f"log_ratio_{side}_per_token", side)]
    measured = "kl_chosen" in run.measured.train
    if not curves:
        held = run.measured.sets.get(run.measured.validation or "", {})
        curves = [c for side in ("chosen", "rejected") for c in _per_token(held or run.measured.train, side, bool(held))]
    caption = "How much more (above 0) or less probable a token of the responses is than under the reference, in nats."
    caption += "" if measured else " No KL divergence was measured."
    return lines("drift", "Drift from the reference", caption, said_of("Drift", curves), curves, rules={"reference": 0.0})


def _per_token(values: Mapping[str, Series], side: str, dots: bool) -> Iterator[Curve]:
    means = values.get(f"log_ratio_{side}_mean") or values.get(f"rewards_{side}_mean")
    tokens, sequences = values.get("global_valid_toks"), values.get("global_valid_seqs")
    if means is None or tokens is None or sequences is None or not any(means.values):
        return
    if len({len(means.values), len(tokens.values), len(sequences.values)}) == 1:
        each = [
            mean * count / max(total, 1)
            for mean, total, count in zip(means.values, tokens.values, sequences.values, strict=True)
        ]
        yield from smooth(Curve(side, means.steps, each, side, dots), side)


def _gradient(run: Run) -> Figure | None:
    norm = run.measured.train.get("grad_norm")
    curves = smooth(_curve("gradient norm", norm, "train"), "train") if norm else []
    limit = run.given.setting("policy.max_grad_norm")
    rules = {f"clipped at {limit:g}": float(limit)} if isinstance(limit, int | float) and limit > 0 else {}
    caption = "Before clipping; the scale is logarithmic. A jump of ten times is worth a look at the pairs of that step."
    return lines("gradient", "Gradient norm", caption, said_of("Gradient norm", curves), curves, rules=rules, log=True)


def _rate(run: Run) -> Figure | None:
    rate = run.measured.train.get("lr")
    curves = [_curve("learning rate", rate, "train")] if rate else []
    return lines(
        "rate", "Learning rate", "As the schedule gave it.", said_of("Learning rate", curves), curves, form=".1~e", floor=0.0
    )
