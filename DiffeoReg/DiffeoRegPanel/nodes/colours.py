"""Colour tables of our own, one of each kind in a scene."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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


def show_between(node: Any, lowest: float, highest: float, table: Any) -> None:
    """Show a volume that has a display node in the colours of a table, from one value to another."""
    display = node.GetDisplayNode()
    display.AutoWindowLevelOff()
    display.SetWindowLevelMinMax(lowest, highest)
    display.SetAndObserveColorNodeID(table.GetID())
