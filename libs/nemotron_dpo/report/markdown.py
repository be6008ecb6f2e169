"""A report as Markdown, for an issue or a merge request: curves are bars of characters, so it is one file too."""

from __future__ import annotations

import re
from collections.abc import Iterator

from nemotron_dpo.report.document import Figure, Grid, ListedPair, Page, Section
from nemotron_dpo.report.sparkline import sparkline
from nemotron_dpo.report.visible import number

_MARKS = {"good": "for", "bad": "**against**", "open": "open"}


def markdown(page: Page) -> str:
    """The file. Text of the run can neither format, nor link, nor be HTML."""
    parts = [f"# {_safe(page.headline)}", f"{_safe(page.title)}: {_safe(page.status)}"]
    parts += [f"> {_safe(remark)}" for remark in page.remarks]
    for one in page.answers:
        parts.append(f"**{one.question}** {_safe(one.answer)}. {_safe(one.why)}".rstrip())
        if one.checks:
            parts.append("\n".join(f"- {_MARKS[check.mark]}: {_safe(check.text)}" for check in one.checks))
        parts += [_fenced(command) for command in one.commands]
    parts += [table for table in (_table(page.figures_first),) if table]
    for section in page.sections:
        parts += _section(section)
    return "\n\n".join(parts) + "\n"


def _section(section: Section) -> Iterator[str]:
    yield f"## {section.heading}"
    if section.lead:
        yield _safe(section.lead)
    if section.figures:
        yield _figures(section.figures)
    for note in section.notes:
        yield f"**{_safe(note.title)}.** {_safe(note.text)}"
    for grid in section.grids:
        yield _table(grid)
    if section.listing:
        yield from map(_safe, section.listing.remarks)
        for pair in section.listing.pairs:
            yield _pair(pair)
    for command in section.commands:
        yield _fenced(command)


def _figures(figures: tuple[Figure, ...]) -> str:
    rows = []
    for figure in figures:
        for curve in figure.curves:
            bars = sparkline(curve.values, 30, log=figure.log)
            rows.append((figure.title, curve.name, bars, f"{number(curve.values[0])} to {number(curve.values[-1])}"))
        if not figure.curves:
            rows.append((figure.title, figure.said, "", ""))
    return _table(Grid(("", "curve", "over the steps", "first to last"), tuple(rows)))


def _pair(pair: ListedPair) -> str:
    first = "" if pair.first is None else f"{number(pair.first, 2)} to "
    head = f"- {pair.kind}: {_safe(pair.label)}, margin {first}{number(pair.last, 2)}"
    texts = (("prompt", pair.prompt), ("chosen", pair.chosen), ("rejected", pair.rejected))
    return "\n\n".join([head, *(_fenced(f"{name}: {text}", "  ") for name, text in texts if text is not None)])


def _table(grid: Grid) -> str:
    if not grid.rows:
        return ""
    lines = [grid.head, tuple("---" if n == 0 else "---:" for n in range(len(grid.head))), *grid.rows]
    return "\n".join(
        "| " + " | ".join(cell if cell.startswith("---") else _safe(cell) for cell in line) + " |" for line in lines
    )


def _safe(text: str) -> str:
    """Each character that means something in Markdown or HTML with a backslash, or as what HTML calls it."""
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]{}#|~!@])", r"\\\1", escaped).replace("://", ":\u200b//")


def _fenced(text: str, indent: str = "") -> str:
    """As it is, in a fence that is longer than any in it."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", text)), default=0))
    return "\n".join(f"{indent}{line}" for line in (fence, *text.split("\n"), fence))
