"""Volumes that show how far a regulariser reaches at every place: narrow = soft, wide = stiff."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from DiffeoRegLib.exchange import Image
from DiffeoRegPanel.nodes.colours import colour_table, ramp, show_between
from DiffeoRegPanel.nodes.volumes import volume_on

REGULARISER = "DiffeoReg.Regulariser"
STOPS = ((1.0, 1.0, 0.8), (0.55, 0.82, 0.73), (0.16, 0.55, 0.74), (0.14, 0.2, 0.5), (0.05, 0.03, 0.2))
"""From narrow, light, to wide, dark."""


def regulariser_on(volume: Any, image: Image, name: str, widest_mm: float, *, node: Any = None) -> Any:
    """A volume of widths, mm, on the voxels of `volume`, shown from 0 to the widest.

    node: filled instead of a new one.  Raises what `volume_on` raises.
    """
    node = volume_on(volume, image, name, node=node)
    node.SetAttribute(REGULARISER, "mm")
    table = colour_table(node.GetScene(), "width", "Regulariser width", ramp(STOPS))
    show_between(node, 0.0, widest_mm, table)
    return node


def widest_of(images: Sequence[Image]) -> float:
    """The largest width in some images, mm: the end of the window that suits all of them."""
    return max(float(image.array.max()) for image in images)
