"""The curves of several runs over each other."""

from __future__ import annotations

from collections.abc import Sequence

from nemotron_dpo.report.document import Curve, Figure, Section
from nemotron_dpo.report.drawing import NUM_RUN_INKS
from nemotron_dpo.report.measured import Series
from nemotron_dpo.report.plots import lines, smooth
from nemotron_dpo.report.run_report import Run, what_pairs
from nemotron_dpo.report.training_section import said_of


def curves_section(runs: Sequence[Run], names: Sequence[str]) -> Section:
    """Validation and training of all `runs`, each in an ink of its own."""
    named = list(enumerate(zip(runs, names, strict=True)))
    figures: list[Figure | None] = []
    for metric, title, form in _HELD:
        curves = [curve for n, (run, name) in named if (curve := _held(run, name, n, metric)) is not None]
        caption = f"Of {what_pairs(*runs)} pairs."
        figures.append(lines(f"validation-{metric}", title, caption, said_of(title, curves), curves, form=form))
    for metric, title, caption, form in _TRAINED:
        curves = [curve for n, (run, name) in named for curve in _train(run, name, n, metric)]
        log = metric == "grad_norm"
        figures.append(lines(f"train-{metric}", title, caption, said_of(title, curves), curves, log=log, form=form))
    more = f" Colours repeat after {NUM_RUN_INKS} runs." if len(runs) > NUM_RUN_INKS else ""
    how = f"Point at a plot, or tab to it and use the arrow keys, to read values by run.{more}"
    shown, legend = tuple(figure for figure in figures if figure is not None), tuple((_ink(n), name) for n, (_, name) in named)
    return Section("training", "Curves over each other", figures=shown, legend=legend, on_page=how)


_HELD = (("loss", "Validation loss", None), ("accuracy", "Validation accuracy", ".0%"))
_TRAINED = (
    ("loss", "Training loss", "Running means.", None),
    ("margin", "Training margin", "Chosen less rejected reward, nats a pair, without beta.", None),
    ("rewards_chosen_mean", "Chosen reward", "Log-ratio of the chosen responses to the reference, nats.", None),
    ("grad_norm", "Gradient norm", "Before clipping; the scale is logarithmic.", None),
    ("lr", "Learning rate", "As the schedule gave it.", ".1~e"),
)


def _ink(number_: int) -> str:
    return f"run{number_ % NUM_RUN_INKS}"


def _held(run: Run, name: str, number_: int, metric: str) -> Curve | None:
    series = run.measured.sets.get(run.measured.validation or "", {}).get(metric)
    return Curve(name, series.steps, series.values, _ink(number_), dots=True) if series else None


def _train(run: Run, name: str, number_: int, metric: str) -> list[Curve]:
    train = run.measured.train
    series = train.get(metric)
    if metric == "margin" and "rewards_chosen_mean" in train and "rewards_rejected_mean" in train:
        one, other = train["rewards_chosen_mean"], train["rewards_rejected_mean"]
        values = tuple(a - b for a, b in zip(one.values, other.values, strict=False))
        series = Series(one.steps, values)
    return smooth(Curve(name, series.steps, series.values, _ink(number_)), _ink(number_))[-1:] if series else []
