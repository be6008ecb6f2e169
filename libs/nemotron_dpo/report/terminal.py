"""A report on the terminal: the same words and tables, curves as bars of characters."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from nemotron_dpo.report.document import Figure, Grid, Page, Section
from nemotron_dpo.report.sparkline import sparkline
from nemotron_dpo.report.visible import number

_WIDTH = 100
_MARKS = {"good": "+", "bad": "-", "open": "?"}
_LONG = 12  # rows of a table that is left to the page
_PAIRS = 5  # of the list, of each kind


def terminal(page: Page) -> str:
    """The text, with nothing in it that a terminal would act on."""
    parts = [*_wrapped(page.headline), page.status, *(line for remark in page.remarks for line in _wrapped(remark, "! ")), ""]
    for one in page.answers:
        parts += [f"{one.question} {one.answer}"]
        parts += [*_wrapped(one.why, "  ")] if one.why else []
        parts += [line for check in one.checks for line in _wrapped(check.text, f"  {_MARKS[check.mark]} ")]
        parts += [f"  {command}" for command in one.commands]
        parts.append("")
    parts += _table(page.figures_first)
    for section in page.sections:
        parts += _section(section)
    return "\n".join(parts).rstrip()


def _section(section: Section) -> Iterator[str]:
    if section.key in ("origin",):
        return
    yield from ("", section.heading.upper())
    yield from _wrapped(section.lead)
    yield from _figures(section.figures)
    for note in section.notes:
        yield from (note.title, *_wrapped(note.text, "  "))
    for grid in section.grids:
        yield from _table(grid) if len(grid.rows) <= _LONG else (f"(a table of {len(grid.rows)} rows: see the page, with -o)",)
    if section.listing:
        yield from _pairs(section)


def _figures(figures: Sequence[Figure]) -> Iterator[str]:
    """Bars beside the names of their curves. No name is cut: those of runs often differ in their ends alone."""
    drawn = [(figure.title, curve.name) for figure in figures for curve in figure.curves]
    title_width = max((len(title) for title, _ in drawn), default=0)
    name_width = max((len(name) for title, name in drawn if name != title), default=0)
    for figure in figures:
        if not figure.curves:
            yield from _wrapped(figure.said)
        label = figure.title
        for curve in figure.curves:
            name = "" if curve.name == figure.title else curve.name
            ends = f"{number(curve.values[0])} -> {number(curve.values[-1])}"
            bars = sparkline(curve.values, log=figure.log)
            yield f"{label:<{title_width}} {name:<{name_width}} {bars:<40} {ends}"
            label = ""


def _pairs(section: Section) -> Iterator[str]:
    assert section.listing is not None
    for kind, called in section.listing.kinds:
        yield called
        for pair in [pair for pair in section.listing.pairs if pair.kind == kind][:_PAIRS]:
            first = "" if pair.first is None else f"{number(pair.first, 2)} -> "
            yield f"  {pair.label:<40} {first}{number(pair.last, 2)}"


def _table(grid: Grid) -> Iterator[str]:
    rows = [*([grid.head] if any(grid.head) else []), *grid.rows]
    if not rows:
        return
    widths = [max(len(row[n]) for row in rows if n < len(row)) for n in range(max(map(len, rows)))]
    for row in rows:
        cells = [
            f"{cell:<{width}}" if n == 0 else f"{cell:>{width}}"
            for n, (cell, width) in enumerate(zip(row, widths, strict=False))
        ]
        yield "  ".join(cells).rstrip()


def _wrapped(text: str, before: str = "") -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent=before, subsequent_indent=" " * len(before), break_on_hyphens=False)
