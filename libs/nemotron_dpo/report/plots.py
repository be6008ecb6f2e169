"""Pictures as Vega-Lite: small multiples of one size, so that a page has as many columns as the screen has room for.

Colours are names of inks (see `drawing`), which light, dark and print give different values. Edges of the plots are set here,
so that a page knows which value a reader points at.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nemotron_dpo.report.document import Curve, Figure

WIDTH, HEIGHT = 300, 160
_POINTS = 700  # of a curve that is drawn: as many as can be told apart, twice


def lines(
    key: str,
    title: str,
    caption: str,
    said: str,
    curves: Sequence[Curve],
    *,
    rules: Mapping[str, float] | None = None,
    log: bool = False,
    form: str | None = None,
    floor: float | None = None,
    ceiling: float | None = None,
) -> Figure | None:
    """Curves over the steps, with `rules` as lines across; None where nothing finite was measured."""
    drawn = [kept for curve in curves if (kept := _finite(curve, log=log)).values]
    if not drawn:
        return None
    rules = {name: at for name, at in (rules or {}).items() if not log or at > 0}
    bounds = _bounds(drawn, list(rules.values()), log=log, floor=floor, ceiling=ceiling)
    layers = [_rule(name, at) for name, at in rules.items()]
    layers += [layer for curve in drawn for layer in _curve(curve)]
    scale = {"domain": list(bounds[2:]), "nice": False, "zero": False, **({"type": "log"} if log else {})}
    axes = {
        "x": across(bounds[:2], "step"),
        "y": {"field": "y", "type": "quantitative", "scale": scale, "axis": upward(form, log=log)},
    }
    spec = {"width": WIDTH, "height": HEIGHT, "encoding": axes, "layer": layers}
    return Figure(key, title, caption, spec, said, tuple(c for c in drawn if not c.faint), bounds, log)


def smooth(curve: Curve, ink: str) -> list[Curve]:
    """`curve` as a faint line and, over it, its running mean; a short one as it is."""
    values = np.asarray(curve.values, dtype=float)
    if len(values) < 60:
        return [curve]
    width = len(values) // 25
    good = np.isfinite(values)
    weights = np.convolve(good.astype(float), np.ones(width), "same")
    mean = np.convolve(np.where(good, values, 0.0), np.ones(width), "same") / np.maximum(weights, 1)
    faint = Curve(curve.name, curve.steps, curve.values, ink, faint=True)
    return [faint, Curve(curve.name, curve.steps, np.where(weights > 0, mean, np.nan).tolist(), ink)]


def _finite(curve: Curve, *, log: bool) -> Curve:
    """The points that can be drawn, at most _POINTS of them: of more, means of neighbours."""
    steps, values = (
        np.asarray(curve.steps, dtype=float),
        np.asarray([np.nan if v is None else v for v in curve.values], dtype=float),
    )
    good = np.isfinite(values) & ((values > 0) if log else True)
    steps, values = steps[good], values[good]
    if len(values) > _POINTS:
        parts = np.array_split(np.arange(len(values)), _POINTS)
        steps, values = (np.array([column[part].mean() for part in parts]) for column in (steps, values))
    return Curve(curve.name, steps.tolist(), values.tolist(), curve.ink, curve.dots, curve.faint)


def _bounds(
    curves: Sequence[Curve], rules: list[float], *, log: bool, floor: float | None, ceiling: float | None
) -> tuple[float, float, float, float]:
    steps = [step for curve in curves for step in curve.steps]
    values = [value for curve in curves for value in curve.values] + rules
    left, right = min(steps), max(steps)
    if log:
        low, high = min(values) / 1.2, max(values) * 1.2
    else:
        low, high = padded(min(values), max(values))
        low, high = low if floor is None else max(low, floor), high if ceiling is None else min(high, ceiling)
    return (left - 0.5, right + 0.5, low, high) if left == right else (left, right, low, high)


def padded(low: float, high: float) -> tuple[float, float]:
    room = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    return low - room, high + room


def _curve(curve: Curve) -> list[dict[str, Any]]:
    rows = [{"x": rounded(x), "y": rounded(y)} for x, y in zip(curve.steps, curve.values, strict=True)]
    width = 0.8 if curve.faint else 2.0
    mark = {
        "type": "line",
        "color": curve.ink,
        "strokeWidth": width,
        "opacity": 0.3 if curve.faint else 1,
        "strokeCap": "round",
        "strokeJoin": "round",
    }
    layers: list[dict[str, Any]] = [{"data": {"values": rows}, "mark": mark}]
    if (curve.dots and len(rows) <= 40) or len(rows) == 1:
        point = {
            "type": "point",
            "filled": True,
            "color": curve.ink,
            "opacity": 1,
            "size": 34,
            "stroke": "paper",
            "strokeWidth": 1.2,
        }
        layers.append({"data": {"values": rows}, "mark": point})
    return layers


def _rule(name: str, at: float) -> dict[str, Any]:
    mark = {"type": "rule", "color": "ink", "strokeDash": [2, 3], "strokeWidth": 0.8, "opacity": 0.7}
    text = {"type": "text", "align": "right", "dx": WIDTH - 2, "dy": -5, "color": "muted", "fontSize": 10, "text": name}
    here = {
        "data": {"values": [{"y": rounded(at)}]},
        "encoding": {"x": {"value": 0}, "y": {"field": "y", "type": "quantitative"}},
    }
    return {**here, "layer": [{"mark": mark, "encoding": {"x2": {"value": WIDTH}}}, {"mark": text}]}


ACROSS: dict[str, Any] = {"tickCount": 5, "grid": False, "ticks": True, "tickSize": 3, "domain": True}


def across(edges: tuple[float, float], title: str) -> dict[str, Any]:
    axis = {**ACROSS, "title": title, **({"format": "~s"} if max(map(abs, edges)) >= 10_000 else {})}
    if title == "step":
        axis["tickMinStep"] = 1
    return {"field": "x", "type": "quantitative", "scale": {"domain": list(edges), "nice": False, "zero": False}, "axis": axis}


def upward(form: str | None, *, log: bool = False) -> dict[str, Any]:
    return {
        "title": None,
        **(_format(form)),
        "tickCount": 3 if log else 4,
        "domain": False,
        "ticks": False,
        "grid": True,
        "labelPadding": 6,
    }


def _format(form: str | None) -> dict[str, str]:
    """How values are written; 0 has no exponent."""
    if form is None:
        return {}
    return {"labelExpr": f"datum.value == 0 ? '0' : format(datum.value, '{form}')"} if "e" in form else {"format": form}


def rounded(value: float) -> float | None:
    """Five digits: more cannot be seen, and a page is a third shorter."""
    return float(f"{value:.5g}") if math.isfinite(value) else None
