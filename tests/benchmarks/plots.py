"""Measurements as small SVG files: CPU seconds on the left, peak memory on the right, both axes logarithmic."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 360, 260, 60, 46, 44
COLOURS = ("#1f5fa8", "#c2571a", "#2f7d4f", "#7a3e9d")
Row = Mapping[str, float]


def page(x_name: str, series: Mapping[str, Sequence[Row]]) -> str:
    """One SVG of two plots over `x_name`; each row has x, cpu (seconds) and peak (bytes)."""
    time = _plot(x_name, "CPU seconds", {name: [(row["x"], row["cpu"]) for row in rows] for name, rows in series.items()})
    memory = _plot(x_name, "peak MB", {name: [(row["x"], row["peak"] / 1e6) for row in rows] for name, rows in series.items()})
    size, font = f'width="{2 * WIDTH}" height="{HEIGHT}"', 'font-family="sans-serif" font-size="11"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} {font}>'
    back = f'<rect width="{2 * WIDTH}" height="{HEIGHT}" fill="white"/>'
    return "\n".join([head, back, *time, f'<g transform="translate({WIDTH} 0)">', *memory, "</g>", "</svg>", ""])


def _plot(x_name: str, y_name: str, series: Mapping[str, Sequence[tuple[float, float]]]) -> list[str]:
    xs = [x for points in series.values() for x, _ in points]
    ys = [y for points in series.values() for _, y in points]
    low, high = 10 ** math.floor(math.log10(min(ys))), 10 ** math.ceil(math.log10(max(ys) * 1.001))
    across, up = _scale(min(xs), max(xs), LEFT, WIDTH - 20), _scale(low, high, HEIGHT - BOTTOM, TOP)
    lines = [_text(WIDTH / 2, HEIGHT - 10, x_name, "middle"), _text(LEFT, 14, y_name, "start")]
    for value in [10**n for n in range(round(math.log10(low)), round(math.log10(high)) + 1)]:
        lines.append(f'<path d="M{LEFT} {up(value):.1f}H{WIDTH - 20}" stroke="#ddd"/>')
        lines.append(_text(LEFT - 6, up(value) + 4, f"{value:g}", "end"))
    lines += [_text(across(x), HEIGHT - BOTTOM + 16, _short(x), "middle") for x in sorted(set(xs))]
    for n, (name, points) in enumerate(series.items()):
        path = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in points)
        lines.append(f'<polyline points="{path}" fill="none" stroke="{COLOURS[n]}" stroke-width="2"/>')
        lines += [f'<circle cx="{across(x):.1f}" cy="{up(y):.1f}" r="3" fill="{COLOURS[n]}"/>' for x, y in points]
        lines.append(_text(LEFT + 130 * n, 32, name, "start", COLOURS[n]))
    return lines


def _scale(low: float, high: float, start: float, stop: float):
    span = math.log10(high / low) or 1.0
    return lambda value: start + (stop - start) * math.log10(value / low) / span


def _short(number: float) -> str:
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:g}"


def _text(x: float, y: float, text: str, anchor: str, colour: str = "#333") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{text}</text>'
