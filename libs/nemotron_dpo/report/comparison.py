"""Several runs beside each other: curves over each other, what differs, final figures, which is best and whether by chance."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nemotron_dpo.outcome import margin
from nemotron_dpo.report.document import Answer, Check, Curve, Figure, Grid, Note, Page, Section
from nemotron_dpo.report.drawing import NUM_RUN_INKS
from nemotron_dpo.report.evidence import checks
from nemotron_dpo.report.measured import Series
from nemotron_dpo.report.origin_section import origin_section
from nemotron_dpo.report.plots import lines, smooth
from nemotron_dpo.report.ranking import Verdict, best
from nemotron_dpo.report.run_report import Run, final_intervals
from nemotron_dpo.report.settings_diff import differing
from nemotron_dpo.report.single import status
from nemotron_dpo.report.training_section import said_of
from nemotron_dpo.report.visible import counted, number, visible


def page(runs: Sequence[Run]) -> Page:
    """The comparison of `runs`, in the order in which they were given."""
    names = run_names(runs)
    verdict = best(runs, names)
    grid = differing(runs, names)
    settings = (
        Section("settings", "What differs", "Settings that are the same in all runs are left out.", grids=(grid,))
        if grid
        else Section(
            "settings",
            "What differs",
            notes=(Note("No setting differs", "As far as their settings are on record, these runs are of one configuration."),),
        )
    )
    sections = (settings, _curves(runs, names), _reading(runs), *_origins(runs, names))
    remarks = tuple(f"{name}: {remark}" for name, run in zip(names, runs, strict=True) for remark in run.remarks)
    kept = tuple(section for section in sections if not section.is_empty)
    return Page(
        f"{len(runs)} runs compared",
        verdict.headline,
        "; ".join(names),
        _answers(runs, names, verdict),
        _final(runs, names),
        kept,
        remarks,
    )


def run_names(runs: Sequence[Run]) -> list[str]:
    """Short names that tell them apart: the ends of their paths."""
    paths = [(run.given.job or run.given.folder.resolve()).parts for run in runs]
    shared = next((n for n, level in enumerate(zip(*paths, strict=False)) if len(set(level)) > 1), len(paths[0]))
    names = ["/".join(parts[shared:]) or parts[-1] for parts in paths]
    tails = [Path(name).name if len({Path(other).name for other in names}) == len(names) else name for name in names]
    return [visible(name) if tails.count(name) == 1 else f"{visible(name)} ({n + 1})" for n, name in enumerate(tails)]


def _answers(runs: Sequence[Run], names: Sequence[str], verdict: Verdict) -> tuple[Answer, ...]:
    against = tuple(
        Check(check.mark, f"{name}: {check.text}")
        for name, run in zip(names, runs, strict=True)
        for check in checks(run)
        if check.mark == "bad"
    )
    safe = Answer(
        "What speaks against them?",
        "Nothing on record" if not against else counted(len(against), "objection"),
        "bad" if against else "good",
        checks=against,
    )
    return (
        Answer("Which is best?", verdict.best or "Cannot be told", "good" if verdict.is_sure else "open", verdict.why),
        Answer("How likely is that chance?", verdict.chance, "good" if verdict.is_sure else "open", verdict.how),
        safe,
    )


def _final(runs: Sequence[Run], names: Sequence[str]) -> Grid:
    """Figures of the last validation, or of the last steps where nothing was held out."""
    rows = []
    for name, run in zip(names, runs, strict=True):
        made, held, found = run.measured.made, run.measured.validation, final_intervals(run)
        one = next((one for one in made.validations if one.name in ("validation", f"validation {held}")), None)
        last = one.last if one else made.ends.last
        values = {"loss": last.get("loss"), "accuracy": last.get("accuracy"), "margin": margin(last)}
        cells = [_with_interval(values[key], found.get(key)) for key in ("loss", "accuracy", "margin")]
        best_step = f"{one.best_step}" if one else "-"
        rows.append((name, status(run).partition(";")[0], *cells, best_step, number(made.pairs_per_second, 2)))
    head = ("run", "", "loss", "accuracy", "margin, nats", "best step", "pairs/s")
    return Grid(
        head,
        tuple(rows),
        (
            "Of the last validation, with 95 % intervals by drawing the held-out pairs again, where pairs are on "
            "record; else of the last steps."
        ),
    )


def _with_interval(value: float | None, one: object) -> str:
    from nemotron_dpo.report.bootstrap import Interval

    return f"{number(value)} ({number(one.low, 3)} to {number(one.high, 3)})" if isinstance(one, Interval) else number(value)


def _curves(runs: Sequence[Run], names: Sequence[str]) -> Section:
    figures: list[Figure | None] = []
    for metric, title in (("loss", "Validation loss"), ("accuracy", "Validation accuracy")):
        curves = [_held(run, name, n, metric) for n, (run, name) in enumerate(zip(runs, names, strict=True))]
        drawn = [curve for curve in curves if curve is not None]
        figures.append(
            lines(
                f"validation-{metric}",
                title,
                "Of the held-out pairs.",
                said_of(title, drawn),
                drawn,
                form=".0%" if metric == "accuracy" else None,
            )
        )
    for metric, title in (
        ("loss", "Training loss"),
        ("margin", "Training margin"),
        ("rewards_chosen_mean", "Chosen reward"),
        ("grad_norm", "Gradient norm"),
        ("lr", "Learning rate"),
    ):
        curves = [
            curve for n, (run, name) in enumerate(zip(runs, names, strict=True)) for curve in _train(run, name, n, metric)
        ]
        log = metric == "grad_norm"
        figures.append(
            lines(
                f"train-{metric}",
                title,
                _CAPTIONS.get(metric, "Running means."),
                said_of(title, curves),
                curves,
                log=log,
                form=".1~e" if metric == "lr" else None,
            )
        )
    more = f" Colours repeat after {NUM_RUN_INKS} runs." if len(runs) > NUM_RUN_INKS else ""
    lead = f"Point at a plot, or tab to it and use the arrow keys, to read values by run.{more}"
    return Section(
        "training",
        "Curves over each other",
        lead,
        tuple(figure for figure in figures if figure is not None),
        legend=tuple((_ink(n), name) for n, name in enumerate(names)),
    )


_CAPTIONS = {
    "margin": "Chosen less rejected reward, nats a pair, without beta.",
    "rewards_chosen_mean": "Log-ratio of the chosen responses to the reference, nats.",
}


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


def _reading(runs: Sequence[Run]) -> Section:
    betas = {run.given.beta for run in runs}
    notes = []
    if len(betas) > 1:
        text = (
            "A loss with another beta is another loss: at the same margins the greater beta has the smaller one. "
            "Compare accuracy, and margins, which are without beta here."
        )
        notes.append(Note("Losses of different betas do not compare", text))
    return Section("reading", "How to read this", notes=tuple(notes))


def _origins(runs: Sequence[Run], names: Sequence[str]) -> list[Section]:
    sections = []
    for n, (run, name) in enumerate(zip(runs, names, strict=True)):
        own = origin_section(run)
        sections.append(
            Section(
                f"origin-{n}",
                name,
                status(run),
                grids=own.grids[:-1] if len(own.grids) > 2 else own.grids,
                commands=own.commands,
            )
        )
    return sections
