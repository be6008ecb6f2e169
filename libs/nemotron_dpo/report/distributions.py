"""Pictures of many pairs at once: histograms, clouds of points and shares with their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from nemotron_dpo.report.document import Figure
from nemotron_dpo.report.plots import ACROSS, HEIGHT, WIDTH, across, padded, rounded, upward

_BARS = 28
_DASHED = {"type": "rule", "color": "ink", "strokeDash": [2, 3]}


def histograms(key: str, title: str, caption: str, said: str, groups: Mapping[str, tuple[np.ndarray, str]]) -> Figure | None:
    """The distributions of several groups (values, ink) over each other, by shares of their pairs; a rule is at 0."""
    values = np.concatenate([own for own, _ in groups.values()]) if groups else np.array([])
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    edges = _edges(values)
    layers, top = [], 0.0
    for own, ink in groups.values():
        counts, _ = np.histogram(np.clip(own, edges[0], edges[-1]), edges)
        shares_of = counts / max(counts.sum(), 1)
        top = max(top, float(shares_of.max()))
        layers.append(_bars(edges, shares_of, ink))
    layers.append({"data": {"values": [{"x": 0}]}, "mark": _DASHED, "encoding": {"y": {"value": 0}}})
    scale = {"domain": [0, top * 1.08 or 1], "nice": False}
    axes = {
        "x": across((float(edges[0]), float(edges[-1])), "margin, nats"),
        "y": {"field": "y", "type": "quantitative", "scale": scale, "axis": upward(".0%")},
    }
    return Figure(key, title, caption, {"width": WIDTH, "height": HEIGHT, "encoding": axes, "layer": layers}, said)


def scatter(
    key: str,
    title: str,
    caption: str,
    said: str,
    points: tuple[np.ndarray, np.ndarray],
    middle: Sequence[tuple[float, float, float, float]],
    name: str,
) -> Figure | None:
    """Points, and over them the `middle` by bins of the horizontal: (place, lower quartile, median, upper quartile)."""
    xs, ys = (column.astype(float) for column in points)
    if not len(xs):
        return None
    x_edges = padded(float(xs.min()), float(xs.max()))
    y_edges = padded(*(float(edge) for edge in np.quantile(ys, [0.002, 0.998])))
    drawn = [{"x": rounded(x), "y": rounded(y)} for x, y in zip(xs, np.clip(ys, *y_edges), strict=True)]
    mark = {"type": "point", "color": "muted", "opacity": 0.35, "size": 9, "filled": True}
    zero = {"x": {"value": 0}, "x2": {"value": WIDTH}}
    layers: list[dict[str, Any]] = [
        {"data": {"values": drawn}, "mark": mark},
        {"data": {"values": [{"y": 0}]}, "mark": _DASHED, "encoding": zero},
        *_middle(middle),
    ]
    scale = {"domain": list(y_edges), "nice": False, "zero": False}
    axes = {
        "x": across(x_edges, name),
        "y": {"field": "y", "type": "quantitative", "scale": scale, "axis": upward(None)},
    }
    return Figure(key, title, caption, {"width": WIDTH, "height": HEIGHT, "encoding": axes, "layer": layers}, said)


def shares(
    key: str, title: str, caption: str, said: str, rows: Sequence[tuple[str, float, float, float, int]]
) -> Figure | None:
    """A dot with its interval for each row (name, share, low, high, pairs); a rule is at one half."""
    if not rows:
        return None
    data = [
        {"name": f"{name} ({count:,})", "x": rounded(share), "low": rounded(low), "high": rounded(high)}
        for name, share, low, high, count in rows
    ]
    axis = {**ACROSS, "title": "share of pairs right", "format": ".0%"}
    x = {"field": "x", "type": "quantitative", "scale": {"domain": [0, 1]}, "axis": axis}
    names = {"title": None, "labelLimit": 140, "labelFontSize": 10, "domain": False, "ticks": False, "grid": True}
    y = {"field": "name", "type": "nominal", "sort": [row["name"] for row in data], "axis": names}
    half = {"x": x, "y": {"value": 0}, "y2": {"value": {"expr": "height"}}}
    interval = {"x": {**x, "field": "low"}, "x2": {"field": "high"}, "y": y}
    dot = {"type": "point", "color": "held", "filled": True, "size": 60, "opacity": 1}
    layers: list[dict[str, Any]] = [
        {"data": {"values": [{"x": 0.5}]}, "mark": _DASHED, "encoding": half},
        {"data": {"values": data}, "mark": {"type": "rule", "color": "held", "strokeWidth": 2}, "encoding": interval},
        {"data": {"values": data}, "mark": dot, "encoding": {"x": x, "y": y}},
    ]
    room = {"left": 14, "right": 10, "top": 6, "bottom": 5}
    return Figure(key, title, caption, {"width": 185, "height": {"step": 24}, "padding": room, "layer": layers}, said)


def _edges(values: np.ndarray) -> np.ndarray:
    """Of the bars: from where nearly all values begin to where they end, and 0 is between."""
    low, high = (float(edge) for edge in np.quantile(values, [0.005, 0.995]))
    low, high = min(low, 0.0), max(high, 0.0)
    return np.linspace(low, high, _BARS + 1) if high > low else np.linspace(low - 1, high + 1, _BARS + 1)


def _bars(edges: np.ndarray, heights: np.ndarray, ink: str) -> dict[str, Any]:
    rows = [
        {"x": rounded(left), "x2": rounded(right), "y": rounded(height)}
        for (left, right), height in zip(pairwise(edges), heights, strict=True)
    ]
    mark = {"type": "bar", "color": ink, "opacity": 0.55, "binSpacing": 0}
    return {"data": {"values": rows}, "mark": mark, "encoding": {"x2": {"field": "x2"}, "y2": {"datum": 0}}}


def _middle(middle: Sequence[tuple[float, float, float, float]]) -> list[dict[str, Any]]:
    """A band between the quartiles, and the median."""
    if len(middle) < 2:
        return []
    rows = [{"x": rounded(x), "low": rounded(a), "y": rounded(b), "high": rounded(c)} for x, a, b, c in middle]
    between = {"y": {"field": "low", "type": "quantitative"}, "y2": {"field": "high"}}
    return [
        {"data": {"values": rows}, "mark": {"type": "area", "color": "held", "opacity": 0.18}, "encoding": between},
        {"data": {"values": rows}, "mark": {"type": "line", "color": "held", "strokeWidth": 2}},
    ]
