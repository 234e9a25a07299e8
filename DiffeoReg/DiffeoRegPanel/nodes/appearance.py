"""Volumes of a metamorphosis: what a lesion adds, the moved volume with it, the ill volume without it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from DiffeoRegLib.exchange import Image
from DiffeoRegPanel.nodes.colours import Entry, colour_table, show_between
from DiffeoRegPanel.nodes.volumes import volume_on

CHANGE = "DiffeoReg.AppearanceChange"
"""Attribute of a volume that holds a change of appearance."""
STOPS = ((0.75, 0.95, 1.0), (0.1, 0.45, 0.95), (0.0, 0.0, 0.0), (0.9, 0.2, 0.05), (1.0, 0.95, 0.6))
"""From the strongest loss, light blue, over black, nothing, to the strongest gain, light yellow."""
COUNT = 257  # odd: the one in the middle stands for no change
OUTLIERS_PERCENT = 1.0


def change_on(fixed: Any, image: Image | NDArray[Any], name: str, *, node: Any = None) -> Any:
    """A volume of changes of appearance, in colours around 0: blue = taken away, red to yellow = added.

    The window is as wide on either side, so that no change is black and only dims what lies below it.
    Raises what `volume_on` raises.
    """
    node = volume_on(fixed, image, name, node=node)
    node.SetAttribute(CHANGE, "intensity of the moving volume")
    array = image.array if isinstance(image, Image) else np.asarray(image)
    most = strongest(array)
    show_between(node, -most, most, _colours(node.GetScene()))
    return node


def strongest(change: NDArray[Any]) -> float:
    """How far the changed voxels go either way, but for a few; 1 where nothing changes."""
    sizes = np.abs(change[np.isfinite(change) & (change != 0)])
    return float(np.percentile(sizes, 100 - OUTLIERS_PERCENT)) if sizes.size else 1.0


def _colours(scene: Any) -> Any:
    """The scene's colour table for changes."""
    stops, at = np.array(STOPS), np.linspace(0, len(STOPS) - 1, COUNT)
    colours = np.stack([np.interp(at, range(len(STOPS)), stops[:, part]) for part in range(3)], axis=1)
    shares = np.linspace(-100, 100, COUNT)
    entries: list[Entry] = [(f"{s:+.0f} %", colour) for s, colour in zip(shares, colours, strict=True)]
    return colour_table(scene, "change", "Change of appearance", entries)
