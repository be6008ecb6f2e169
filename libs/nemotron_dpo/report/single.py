"""The report on one run, chapter by chapter."""

from __future__ import annotations

from pathlib import Path

from nemotron_dpo.errors import UserError
from nemotron_dpo.outcome import margin
from nemotron_dpo.report.answers import answers, headline
from nemotron_dpo.report.bootstrap import Interval
from nemotron_dpo.report.changed_pairs import changed_section
from nemotron_dpo.report.cost_section import cost_section
from nemotron_dpo.report.document import Grid, Page, Section
from nemotron_dpo.report.notes import notes
from nemotron_dpo.report.origin_section import origin_section
from nemotron_dpo.report.pairs_section import pairs_section
from nemotron_dpo.report.run_report import Run, final_intervals, what_pairs
from nemotron_dpo.report.training_section import training_section
from nemotron_dpo.report.visible import number, visible
from nemotron_dpo.wording import counted

_ROWS = (
    ("loss", "loss"),
    ("accuracy", "accuracy"),
    ("rewards_chosen_mean", "chosen reward"),
    ("rewards_rejected_mean", "rejected reward"),
)


def page(run: Run, *, scores: Path | None = None, with_text: bool = True) -> Page:
    """All of it. `scores` are held-out pairs scored by the trained policy, for the change of each token."""
    if scores is not None and run.change is None:
        raise UserError("has no pairs on record whose tokens --scores could colour", source=run.given.folder)
    sections = (
        training_section(run),
        Section("reading", "How to read this", notes=notes(run)),
        pairs_section(run),
        changed_section(run, scores, with_text=with_text),
        cost_section(run),
        origin_section(run),
    )
    kept = tuple(section for section in sections if not section.is_empty or section.key == "pairs")
    return Page(visible(run.given.name), headline(run), status(run), answers(run), first_and_last(run), kept, run.remarks)


def status(run: Run) -> str:
    """How the run stands and what it is, in a line."""
    given, step = run.given, run.measured.last_step
    ended = given.state == "done" and step < (run.steps_planned or 0)  # by its epochs: not "10 of 40" of a run that is whole
    of = f" of {run.steps_planned}" if run.steps_planned and run.steps_planned >= step and not ended else ""
    state = "" if given.state == "unknown" else f"{given.state} after "
    facts = [f"{state}step {step}{of}"]
    objective = given.setting("dpo.preference_loss")
    facts += [visible(objective)] if objective else []
    facts += [f"beta {given.beta:g}"] if given.beta is not None else []
    rate = given.setting("policy.optimizer.lr")
    facts += [f"learning rate {rate:g}"] if isinstance(rate, int | float) else []
    size = given.setting("policy.train_global_batch_size")
    facts += [f"batches of {counted(int(size), 'pair', ',')}"] if isinstance(size, int | float) else []
    return "; ".join(facts)


def first_and_last(run: Run) -> Grid:
    """Training over its first and last tenth, and validation at first, at its best and last, with intervals over its pairs."""
    ends, intervals = run.measured.made.ends, final_intervals(run)
    held = next(
        (one for one in run.measured.made.validations if one.name in ("validation", f"validation {run.measured.validation}")),
        None,
    )
    over = f"first {ends.window}" if ends.window > 1 else "first"
    head = ("", f"training, {over}", "last" if ends.window == 1 else f"last {ends.window}")
    if held is not None:
        head += ("validation, first", f"best (step {held.best_step})", "last", *(("95 % interval",) if intervals else ()))
    rows = []
    for metric, label in (*_ROWS, ("margin", "margin, nats")):
        columns = [ends.first, ends.last] + ([held.first, held.best, held.last] if held else [])
        values = [margin(column) if metric == "margin" else column.get(metric) for column in columns]
        if any(value is not None for value in values):
            ends_of = _ends_of(intervals.get(metric))
            rows.append((label, *(number(value) for value in values), *((ends_of,) if held and intervals else ())))
    return Grid(
        head,
        tuple(rows),
        f"Intervals: 95 %, by drawing the {what_pairs(run)} pairs again (bootstrap); that of the accuracy is Wilson's."
        if intervals and held
        else "",
    )


def _ends_of(one: Interval | None) -> str:
    return f"{number(one.low, 3)} to {number(one.high, 3)}" if one else ""
