"""Charts as inline SVG text: lines, bars and stacked bars, nothing but the standard library. Owns drawing; knows nothing of what is drawn."""

from __future__ import annotations

import dataclasses
import html
import math
from collections.abc import Sequence

WIDTH, HEIGHT = 720, 260
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 12, 40
COLORS = ("#2563eb", "#d97706", "#059669", "#9333ea", "#dc2626", "#0891b2", "#65a30d", "#64748b")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """One curve: x and y of equal length."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bar:
    """One bar with an optional spread (drawn as a whisker to both sides) and a text behind it."""

    name: str
    value: float
    spread: float = 0.0
    text: str = ""


def line_chart(lines: Sequence[Line], *, x_label: str, y_label: str, marks: Sequence[tuple[float, str]] = (), from_zero: bool = True) -> str:
    """Curves over a common x; `marks` are vertical lines with a word."""
    xs = [value for line in lines for value in line.x] or [0.0, 1.0]
    ys = [value for line in lines for value in line.y] or [0.0, 1.0]
    low_x, high_x = min(xs), max(max(xs), min(xs) + 1e-9)
    ticks = _ticks(0.0 if from_zero else min(ys), max(ys))
    low_y, high_y = ticks[0], ticks[-1]

    def place(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (x - low_x) / (high_x - low_x) * (WIDTH - LEFT - RIGHT)
        return across, HEIGHT - BOTTOM - (y - low_y) / (high_y - low_y) * (HEIGHT - TOP - BOTTOM)

    parts = [_grid_line(place(low_x, tick)[1], _number(tick)) for tick in ticks]
    for tick in _ticks(low_x, high_x):
        if low_x <= tick <= high_x:
            parts.append(_text(place(tick, low_y)[0], HEIGHT - BOTTOM + 16, _number(tick), "middle"))
    for index, line in enumerate(lines):
        points = " ".join("{:.1f},{:.1f}".format(*place(x, y)) for x, y in zip(line.x, line.y, strict=True))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{_color(index)}" stroke-width="1.6"/>')
    for at, word in marks:
        across = place(at, low_y)[0]
        parts.append(f'<line x1="{across:.1f}" x2="{across:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" stroke="#dc2626" stroke-dasharray="4 3"/>')
        parts.append(_text(across + 4, TOP + 10, word, "start", "#dc2626"))
    parts += [_text((LEFT + WIDTH) / 2, HEIGHT - 6, x_label, "middle"), _vertical(y_label)]
    return _svg(parts, HEIGHT) + _legend([line.name for line in lines])


def bar_chart(groups: Sequence[tuple[str, Sequence[Bar]]], *, low: float = 0.0) -> str:
    """Horizontal bars in named groups; bars of one name share a colour. `low` is where bars begin."""
    bars = [bar for _, group in groups for bar in group]
    names = list(dict.fromkeys(bar.name for bar in bars))
    high = max((bar.value + bar.spread for bar in bars), default=1.0)
    left, thick, parts, top = 150, 15, [], 6.0
    scale = (WIDTH - left - 150) / max(high - low, 1e-12)
    for title, group in groups:
        parts.append(_text(left - 8, top + thick * len(group) / 2 + 4, title, "end"))
        for bar in group:
            length = max((bar.value - low) * scale, 0)
            parts.append(f'<rect x="{left}" y="{top:.1f}" width="{length:.1f}" height="{thick - 3}" fill="{_color(names.index(bar.name))}"/>')
            if bar.spread:
                middle, around = top + (thick - 3) / 2, bar.spread * scale
                ends = f'x1="{left + length - around:.1f}" x2="{left + length + around:.1f}"'
                parts.append(f'<line {ends} y1="{middle:.1f}" y2="{middle:.1f}" stroke="#111" stroke-width="2"/>')
            parts.append(_text(left + length + bar.spread * scale + 6, top + 10, bar.text or _number(bar.value), "start"))
            top += thick
        top += 6
    return _svg(parts, int(top)) + (_legend(names) if len(names) > 1 else "")


def stacked_bar(shares: Sequence[tuple[str, float]]) -> str:
    """One bar of parts that add up to the whole, each with its share in the legend."""
    total = sum(value for _, value in shares) or 1.0
    parts, left = [], 0.0
    for index, (_, value) in enumerate(shares):
        width = value / total * WIDTH
        parts.append(f'<rect x="{left:.1f}" y="4" width="{width:.1f}" height="28" fill="{_color(index)}"/>')
        left += width
    return _svg(parts, 36) + _legend([f"{name} {value / total:.1%}" for name, value in shares])


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers that enclose [low, high]."""
    span = max(high - low, abs(high) * 1e-6, 1e-9)
    step = 10 ** math.floor(math.log10(span / 4))
    step *= next(factor for factor in (1, 2, 2.5, 5, 10) if span / (step * factor) <= 5)
    first = math.floor(low / step)
    return [index * step for index in range(first, math.ceil(high / step) + 1)]


def _number(value: float) -> str:
    if abs(value) >= 1e6:
        return f"{value / 1e6:g}M"
    return f"{value / 1e3:g}k" if abs(value) >= 1e4 else f"{value:.4g}"


def _color(index: int) -> str:
    return COLORS[index % len(COLORS)]


def _text(x: float, y: float, text: str, anchor: str, color: str = "#374151") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{color}">{html.escape(text)}</text>'


def _vertical(text: str) -> str:
    middle = (TOP + HEIGHT - BOTTOM) / 2
    return f'<text transform="translate(12 {middle:.0f}) rotate(-90)" text-anchor="middle" fill="#374151">{html.escape(text)}</text>'


def _grid_line(y: float, text: str) -> str:
    return f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e5e7eb"/>' + _text(LEFT - 6, y + 4, text, "end")


def _svg(parts: Sequence[str], height: int) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img">{"".join(parts)}</svg>'


def _legend(names: Sequence[str]) -> str:
    if not names:
        return ""
    items = "".join(f'<span><i style="background:{_color(index)}"></i>{html.escape(name)}</span>' for index, name in enumerate(names))
    return f'<p class="legend">{items}</p>'
