"""A report as one HTML file: pictures, style and script are in it, and nothing is fetched."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from nemotron_dpo import __version__
from nemotron_dpo.report import drawing
from nemotron_dpo.report.document import Figure, ListedPair, Page, ScoredToken, shade_of
from nemotron_dpo.report.visible import number

_HERE = Path(__file__).parent


def html(page: Page) -> str:
    """The file. All that comes from the run is escaped: jinja does it for every value that is not marked as ours."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(_HERE)
    environment = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    environment.globals |= {"drawn": _drawn, "shade": _shade, "number": number, "searched": _searched, "signed": _signed}
    template = environment.get_template("page.html.jinja")
    files = {name: (_HERE / f"page.{name}").read_text(encoding="utf-8") for name in ("css", "js")}
    return template.render(page=page, light=_inks(0), dark=_inks(1), version=__version__, **files)


def _inks(which: int) -> str:
    return "".join(f"--{name}:{values[which]};" for name, values in drawing.INKS.items())


def _drawn(figure: Figure) -> dict[str, str]:
    """The picture, whose texts are ours or made visible before, and what the script needs to say which value is pointed at."""
    from markupsafe import Markup

    picture = drawing.svg(figure.spec)
    picture = re.sub(
        r"<svg ([^>]*?)width=\"[\d.]+\" height=\"[\d.]+\"", r'<svg \1aria-hidden="true" focusable="false"', picture, count=1
    )
    return {"svg": Markup(picture), "data": _data(figure, picture), "width": f"{drawing.size(picture)[0]:.0f}"}


def _data(figure: Figure, picture: str) -> str:
    """As JSON for an attribute: the plot's place in the picture, the values at its edges, and the curves; "" without curves."""
    if figure.bounds is None or not figure.curves:
        return ""
    left, top = drawing.plot_corner(picture)
    said: dict[str, Any] = {
        "box": [left, top, figure.spec["width"], figure.spec["height"]],
        "edges": [_short(value) for value in figure.bounds],
        "log": figure.log,
        "curves": [
            {"name": c.name, "ink": c.ink, "x": [_short(x) for x in c.steps], "y": [_short(y) for y in c.values]}
            for c in figure.curves
        ],
    }
    return json.dumps(said, separators=(",", ":"))


def _short(value: float) -> float | int:
    short = float(f"{value:.6g}")
    return int(short) if short.is_integer() and abs(short) < 1e9 else short


def _shade(token: ScoredToken) -> str:
    """The class of a token's colour: `u1` to `u4` where it became more probable, `d1` to `d4` where less, else none."""
    level = shade_of(token)
    return f"{'u' if token.change > 0 else 'd'}{level}" if level else ""


def _signed(value: float) -> str:
    return f"{'+' if value > 0 else ''}{number(value, 2)}"


def _searched(pair: ListedPair) -> str:
    """What the filter looks into besides the texts."""
    return f"{pair.label} {pair.facts}".lower()
