"""Draw the module's icon: a straight grid and an outline in it, bent until the outline is another one.

Run from anywhere: `python tools/make_icon.py [FILE]`; the default is the icon that ships.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

ICON = Path(__file__).resolve().parents[1] / "DiffeoReg" / "Resources" / "Icons" / "DiffeoReg.png"
PIXELS = 128
FINER = 8  # drawn so many times larger, then made smaller: smooth edges
HALF = 1.12  # half the width of what is shown
BLUE, ORANGE, WHITE, GRID = "#1f5a96", "#f08c1e", "#ffffff", "#c7d6e5"

Array = NDArray[np.float64]


def bend(x: Array, y: Array) -> tuple[Array, Array]:
    """A smooth map without folds of the square [-1, 1]^2."""
    along = 0.22 * np.sin(2.6 * x + 0.5) * np.exp(-0.8 * y**2)
    across = 0.13 * np.sin(2.6 * y - 0.3) * np.exp(-0.8 * x**2)
    return x + across, y + along


def circle(radius: float, first: float = 0.0, last: float = 1.0) -> tuple[Array, Array]:
    """Points on a circle around the middle, from one fraction of the turn to another."""
    angle = 2 * np.pi * np.linspace(first, last, 200)
    return radius * np.cos(angle), radius * np.sin(angle)


def line(canvas: Image.Image, points: tuple[Array, Array], colour: str, width: float) -> None:
    """Draw a line with round joints; width in pixels of the finished icon."""
    size = canvas.width
    across, down = ((1 + sign * c / HALF) * size / 2 for sign, c in zip((1, -1), points, strict=True))
    draw = ImageDraw.Draw(canvas)
    radius = width * FINER / 2
    corners = list(zip(across.tolist(), down.tolist(), strict=True))
    draw.line(corners, fill=colour, width=round(2 * radius))
    for x, y in corners:
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)


def draw(file: Path) -> None:
    """Write the icon as PNG, 128 x 128 pixels, transparent around the disc."""
    size = PIXELS * FINER
    canvas = Image.new("RGB", (size, size), BLUE)
    along = np.linspace(-1.3, 1.3, 200)
    for place in np.linspace(-1.2, 1.2, 7):
        still = np.full_like(along, place)
        line(canvas, bend(along, still), GRID, 1.6)
        line(canvas, bend(still, along), GRID, 1.6)
    for dash in np.arange(0, 1, 1 / 18):
        line(canvas, circle(0.64, dash, dash + 1 / 36), WHITE, 3.0)
    line(canvas, bend(*circle(0.64)), ORANGE, 7.0)
    disc = Image.new("L", (size, size), 0)
    ImageDraw.Draw(disc).ellipse((FINER, FINER, size - FINER, size - FINER), fill=255)
    canvas.putalpha(disc)
    file.parent.mkdir(parents=True, exist_ok=True)
    canvas.resize((PIXELS, PIXELS), Image.Resampling.LANCZOS).save(file, optimize=True)


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else ICON)
