"""Vega-Lite drawn to SVG and PNG, when a report is written and without a browser.

Why Vega-Lite through vl-convert, of the libraries there are: a page needs no script to show its pictures, so it opens at once,
prints sharp, and shows in viewers that run no scripts; one description gives the page and the PNG; it is one wheel that needs
no other, where plotly brings 4 MB a page, bokeh needs pandas, and matplotlib's SVG has neither names nor themes. A page takes
its colours from CSS variables, so light, dark and print are the same drawing.
"""

from __future__ import annotations

import re
import resource
from collections.abc import Mapping
from typing import Any

from nemotron_dpo.errors import UserError

# An ink's value on white paper and on a dark screen. Blue and vermilion are told apart by all kinds of eyes.
INKS = {
    "paper": ("#fcfbf8", "#15171a"),
    "ink": ("#23262b", "#e8e6e1"),
    "muted": ("#63676f", "#a3a7ae"),
    "hair": ("#e3e0d8", "#2c3036"),
    "train": ("#8b9098", "#858b94"),
    "held": ("#23262b", "#f1efe9"),
    "chosen": ("#1f5fa8", "#6fb1ff"),
    "rejected": ("#bd4a12", "#ff9a5c"),
    "good": ("#25703d", "#7ccf95"),
    "bad": ("#b3261e", "#ff8f86"),
    "run0": ("#1f5fa8", "#6fb1ff"),
    "run1": ("#bd4a12", "#ff9a5c"),
    "run2": ("#25703d", "#7ccf95"),
    "run3": ("#7b3fa0", "#cf9df0"),
    "run4": ("#8a6a00", "#e3c04d"),
    "run5": ("#0f7a80", "#5fd0d6"),
    "run6": ("#a8316f", "#ff8fc3"),
    "run7": ("#54606e", "#b3bfcc"),
}
NUM_RUN_INKS = sum(name.startswith("run") for name in INKS)
_CONFIG = {
    "background": None,
    "padding": {"left": 4, "right": 6, "top": 6, "bottom": 5},
    "font": "system-ui, sans-serif",
    "view": {"stroke": None},
    "axis": {
        "labelColor": "muted", "titleColor": "muted", "gridColor": "hair", "domainColor": "muted", "tickColor": "muted",
        "labelFontSize": 11, "titleFontSize": 11, "titleFontWeight": "normal", "labelFlush": False,
    },
}  # fmt: skip
_ADDRESSES = 72 << 30  # V8, on which the library runs, ends the process where it cannot have them
_REPORT = "the report"
_OUT_OF = re.compile(r"canceled|receiver is gone|Os \{|poisoned")  # so the library ends where the machine gives it nothing more
_WITHOUT = "raise the limits (ulimit -v, ulimit -n), or take -o report.md or --terminal, which have no drawings"
_COLOURS = ("color", "stroke", "fill", "labelColor", "titleColor", "gridColor", "domainColor", "tickColor")


def svg(spec: Mapping[str, Any], *, dark: bool | None = None) -> str:
    """`spec` as SVG. Its colours are the CSS variables of a page, or, for a picture alone, those of light or `dark`."""
    library = _library()
    whole = {"$schema": "https://vega.github.io/schema/vega-lite/v6.json", **spec, "config": _CONFIG}
    try:
        drawn = library.vegalite_to_svg(_inked(whole, dark))
    except BaseException as error:  # a panic of Rust is one
        if not _OUT_OF.search(str(error)):
            raise
        raise UserError("cannot be drawn: no files are left to open, or no threads", source=_REPORT, remedy=_WITHOUT) from None
    return drawn if dark is not None else re.sub(r' xmlns:xlink="[^"]*"| version="1.1"', "", drawn)


def png(picture: str, scale: float = 2.0) -> bytes:
    """The SVG `picture` as PNG."""
    return _library().svg_to_png(picture, scale=scale)


def plot_corner(picture: str) -> tuple[float, float]:
    """Where in `picture`, an SVG of this module, the plot has its upper left corner."""
    found = re.search(r'stroke-miterlimit="10" transform="translate\(([\d.]+),([\d.]+)\)"', picture)
    return (float(found[1]), float(found[2])) if found else (0.0, 0.0)


def size(picture: str) -> tuple[float, float]:
    """The width and the height of `picture`."""
    found = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', picture)
    return (float(found[1]), float(found[2])) if found else (0.0, 0.0)


def _inked(value: Any, dark: bool | None, key: str = "") -> Any:
    if isinstance(value, Mapping):
        return {name: _inked(one, dark, name) for name, one in value.items()}
    if isinstance(value, list):
        return [_inked(one, dark) for one in value]
    if key in _COLOURS and value in INKS:
        return f"var(--{value})" if dark is None else INKS[value][dark]
    return value


def _library() -> Any:
    addresses, _ = resource.getrlimit(resource.RLIMIT_AS)
    if addresses not in (resource.RLIM_INFINITY, -1) and addresses < _ADDRESSES:
        limit, needed = addresses >> 30, _ADDRESSES >> 30
        what = f"cannot be drawn: ulimit -v is {limit} GiB, and the library reserves {needed} GiB of addresses"
        raise UserError(what, source=_REPORT, remedy=_WITHOUT)
    try:
        import vl_convert
    except ImportError as error:
        raise UserError(
            f"cannot be loaded ({error})", source="vl-convert-python", remedy="pip install vl-convert-python"
        ) from None
    return vl_convert
