"""Several runs beside each other: curves over each other, what differs, final figures, which is best and whether by chance."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nemotron_dpo.outcome import margin
from nemotron_dpo.report.compared_curves import curves_section
from nemotron_dpo.report.document import Answer, Check, Grid, Note, Page, Section
from nemotron_dpo.report.evidence import checks
from nemotron_dpo.report.origin_section import origin_section
from nemotron_dpo.report.ranking import Verdict, best
from nemotron_dpo.report.run_report import Run, final_intervals, what_pairs
from nemotron_dpo.report.settings_diff import differing
from nemotron_dpo.report.single import status
from nemotron_dpo.report.visible import number, visible
from nemotron_dpo.wording import counted


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
    sections = (settings, curves_section(runs, names), _reading(runs), *_origins(runs, names))
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
        "Nothing on record" if not against else counted(len(against), "objection", ","),
        "bad" if against else "good",
        checks=against,
    )
    return (
        Answer("Which is best?", verdict.best or verdict.otherwise, "good" if verdict.is_sure else "open", verdict.why),
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
            f"Of the last validation, with 95 % intervals by drawing the {what_pairs(*runs)} pairs again (of the accuracy "
            "Wilson's), where pairs are on record; else of the last steps."
        ),
    )


def _with_interval(value: float | None, one: object) -> str:
    from nemotron_dpo.report.bootstrap import Interval

    return f"{number(value)} ({number(one.low, 3)} to {number(one.high, 3)})" if isinstance(one, Interval) else number(value)


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
