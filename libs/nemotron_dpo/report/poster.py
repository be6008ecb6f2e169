"""A report as one picture: the headline, the answers and the curves, for a slide or a chat."""

from __future__ import annotations

import re
import textwrap
from html import escape

from nemotron_dpo.report import drawing
from nemotron_dpo.report.document import Figure, Page

_COLUMNS, _CELL, _GAP, _EDGE = 3, 350, 28, 36
_MOST = 12


def poster(page: Page) -> bytes:
    """A PNG on white paper, at twice the size of its measures so that it is sharp."""
    width = 2 * _EDGE + _COLUMNS * _CELL + (_COLUMNS - 1) * _GAP
    parts, top = _words(page, width)
    figures = [figure for section in page.sections for figure in section.figures][:_MOST]
    left = float(_EDGE)
    for ink, name in next((section.legend for section in page.sections if section.legend), ()):
        parts.append(f'<rect x="{left}" y="{top - 20}" width="18" height="4" fill="{drawing.INKS[ink][0]}"/>')
        parts.append(_text(name, left + 26, top - 14, 13, drawing.INKS["ink"][0]))
        left += 60 + 8 * len(name)
    top += 20 if left > _EDGE else 0
    for start in range(0, len(figures), _COLUMNS):
        height = 0.0
        for column, figure in enumerate(figures[start : start + _COLUMNS]):
            drawn, own = _cell(figure, _EDGE + column * (_CELL + _GAP), top)
            parts.append(drawn)
            height = max(height, own)
        top += height + 26
    paper = f'<rect width="{width}" height="{top:.0f}" fill="{drawing.INKS["paper"][0]}"/>'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{top:.0f}" viewBox="0 0 {width} {top:.0f}">'
    return drawing.png(f"{head}{paper}{''.join(parts)}</svg>")


def _words(page: Page, width: int) -> tuple[list[str], float]:
    """Title, headline, status and answers, and where they end."""
    ink, muted = drawing.INKS["ink"][0], drawing.INKS["muted"][0]
    parts, top = [_text(page.title, _EDGE, 44.0, 15, muted, "serif", "italic")], 84.0
    for line in textwrap.wrap(page.headline, 72):
        parts.append(_text(line, _EDGE, top, 32, ink, "serif"))
        top += 40
    parts.append(_text(page.status, _EDGE, top - 8, 15, muted))
    top += 34
    lowest = top
    for column, one in enumerate(page.answers[:_COLUMNS]):
        left, down = _EDGE + column * (_CELL + _GAP), top
        parts.append(_text(one.question, left, down, 14, muted))
        mark = {"good": "good", "bad": "bad", "open": "ink"}[one.mark]
        for line in textwrap.wrap(one.answer, 32):
            down += 28
            parts.append(_text(line, left, down, 22, drawing.INKS[mark][0], "serif"))
        down += 4
        checks = [line for check in one.checks if check.mark != "good" for line in textwrap.wrap(check.text, 54)]
        for line in [*textwrap.wrap(one.why, 54), *checks][:9]:
            down += 19
            parts.append(_text(line, left, down, 13, ink))
        lowest = max(lowest, down)
    parts.append(
        f'<line x1="{_EDGE}" x2="{width - _EDGE}" y1="{lowest + 24}" y2="{lowest + 24}" stroke="{drawing.INKS["hair"][0]}"/>'
    )
    return parts, lowest + 60


def _cell(figure: Figure, left: float, top: float) -> tuple[str, float]:
    picture = drawing.svg(figure.spec, dark=False)
    width, height = drawing.size(picture)
    scale = min(1.0, _CELL / width)
    nested = re.sub(r"<svg ", f'<svg x="{left}" y="{top + 10}" ', picture, count=1)
    nested = re.sub(
        r'width="[\d.]+" height="[\d.]+"', f'width="{width * scale:.1f}" height="{height * scale:.1f}"', nested, count=1
    )
    return _text(figure.title, left, top, 15, drawing.INKS["ink"][0], weight="bold") + nested, height * scale + 24


def _text(
    text: str,
    left: float,
    top: float,
    size: int,
    ink: str,
    font: str = "sans-serif",
    style: str = "normal",
    weight: str = "normal",
) -> str:
    attributes = (
        f'x="{left}" y="{top}" font-size="{size}" fill="{ink}" font-family="{font}" font-style="{style}" font-weight="{weight}"'
    )
    return f"<text {attributes}>{escape(text)}</text>"
