"""Dots on a line: how a number is spread over the rows, as SVG whose dots are links."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from statistics import median

WIDTH, LEFT, RIGHT = 1000, 90, 20
LANE, RADIUS, FOOT = 46, 5, 26
ROWS_OF_DOTS = 3
STRIP_STYLE = """
.strip { width:100%; height:auto; display:block; margin:6px 0 14px; }
.strip text { fill:var(--soft); font:13px system-ui, sans-serif; }
.strip .axis { stroke:var(--line); stroke-width:1; }
.strip .median { stroke:var(--ink); stroke-width:2; }
.strip circle { fill:var(--accent); fill-opacity:.65; }
.strip .before circle { fill:var(--soft); fill-opacity:.45; }
.strip a:hover circle, .strip a:focus circle { fill-opacity:1; stroke:var(--ink); stroke-width:1.5; }
td.name, th.name { text-align:left; overflow-wrap:anywhere; }
a { color:var(--accent); }
"""


@dataclass(frozen=True)
class Dot:
    """A value, whose it is, and where it leads."""

    value: float
    name: str
    link: str


def strip(
    title: str, dots: Sequence[Dot], before: Sequence[Dot] = (), whole: tuple[float, float] | None = None
) -> str:
    """A line of dots with its scale; those from before the registration in a lane above.

    whole: ends of the scale; None = round ends around the values.  Where all values are the same there is
    nothing to draw, and dots would hide each other: a sentence says so.
    """
    values = [dot.value for dot in (*dots, *before)]
    if len(values) > 1 and min(values) == max(values):
        return f"<h3>{escape(title)}</h3><p>The same in all {len(dots)} rows: {values[0]:.4g}</p>"
    ticks = [whole[0] + i * (whole[1] - whole[0]) / 5 for i in range(6)] if whole else nice_ticks(values)
    lanes = [("before", before), ("after", dots)] if before else [("", dots)]
    height = LANE * len(lanes) + FOOT
    inner = "".join(_tick(value, ticks, height) for value in ticks)
    for index, (name, content) in enumerate(lanes):
        inner += _lane(name, content, ticks, LANE * index)
    return (
        f"<h3>{escape(title)}</h3>"
        f'<svg class="strip" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">'
        f"{inner}</svg>"
    )


def nice_ticks(values: Sequence[float], most: int = 6) -> list[float]:
    """Round numbers in equal steps, the first not above the least value, the last not below the greatest."""
    low, high = min(values), max(values)
    span = high - low or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / (most - 1)))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor * (most - 1) >= span)
    first = math.floor(low / step)
    last = max(math.ceil(high / step), first + 1)
    return [round(step * count, 12) for count in range(first, last + 1)]


def _x(value: float, ticks: Sequence[float]) -> float:
    share = (value - ticks[0]) / (ticks[-1] - ticks[0])
    return LEFT + share * (WIDTH - LEFT - RIGHT)


def _tick(value: float, ticks: Sequence[float], height: int) -> str:
    x = _x(value, ticks)
    return (
        f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="4" y2="{height - FOOT}"/>'
        f'<text x="{x:.1f}" y="{height - 8}" text-anchor="middle">{value:g}</text>'
    )


def _lane(name: str, dots: Sequence[Dot], ticks: Sequence[float], top: int) -> str:
    middle = top + LANE / 2
    found = f'<text x="0" y="{middle + 4:.1f}">{name}</text>'
    for index, dot in enumerate(sorted(dots, key=lambda one: one.value)):
        # Neighbours stand at different heights, so that they do not hide each other.
        y = middle + (index % ROWS_OF_DOTS - (ROWS_OF_DOTS - 1) / 2) * 2 * RADIUS
        words = escape(f"{dot.name}: {dot.value:.4g}")
        circle = f'<circle cx="{_x(dot.value, ticks):.1f}" cy="{y:.1f}" r="{RADIUS}"/>'
        found += f'<a href="{escape(dot.link)}"><title>{words}</title>{circle}</a>'
    if dots:
        x = _x(median(dot.value for dot in dots), ticks)
        found += f'<line class="median" x1="{x:.1f}" x2="{x:.1f}" y1="{top + 4}" y2="{top + LANE - 4}"/>'
    return f'<g class="{name or "after"}">{found}</g>'
