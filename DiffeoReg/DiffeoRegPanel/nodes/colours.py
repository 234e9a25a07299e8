"""Colour tables of our own, one of each kind in a scene."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

COLOURS = "DiffeoReg.Colours"
"""Attribute of our tables: of what kind they are."""
Entry = tuple[str, Sequence[float]]
"""Name of a colour, and its red, green and blue, 0 to 1."""


def colour_table(scene: Any, kind: str, name: str, entries: Sequence[Entry]) -> Any:
    """The scene's table of a kind; made where it is missing."""
    for index in range(scene.GetNumberOfNodesByClass("vtkMRMLColorTableNode")):
        table = scene.GetNthNodeByClass(index, "vtkMRMLColorTableNode")
        if table.GetAttribute(COLOURS) == kind:
            return table
    table = scene.AddNewNodeByClass("vtkMRMLColorTableNode", name)
    table.SetTypeToUser()
    table.SetAttribute(COLOURS, kind)
    table.SetNumberOfColors(len(entries))
    for index, (title, colour) in enumerate(entries):
        table.SetColor(index, title, *[float(part) for part in colour], 1.0)
    return table


def ramp(stops: Sequence[Sequence[float]], count: int = 256) -> list[Entry]:
    """Colours that go evenly from one stop to the next."""
    at = np.linspace(0, len(stops) - 1, count)
    parts = [np.interp(at, range(len(stops)), part) for part in np.transpose(stops)]
    colours = zip(*parts, strict=True)
    return [(f"{100 * n / (count - 1):.0f} %", colour) for n, colour in enumerate(colours)]


def show_between(node: Any, lowest: float, highest: float, table: Any) -> None:
    """Show a volume that has a display node in the colours of a table, from one value to another."""
    display = node.GetDisplayNode()
    display.AutoWindowLevelOff()
    display.SetWindowLevelMinMax(lowest, highest)
    display.SetAndObserveColorNodeID(table.GetID())
