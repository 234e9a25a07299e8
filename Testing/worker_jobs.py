"""Jobs for the worker: a small pair of images as the panel would send it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from DiffeoRegLib.exchange import Image
from DiffeoRegLib.space.sample import array_from_tensor
from DiffeoRegLib.volumes.volume import Volume
from Testing.scenes import Scene, turned_grid

FIXED = turned_grid((16, 18, 20), (2.0, 1.8, 1.6), 20, (0,))
MOVING = turned_grid((18, 16, 17), (1.8, 2.0, 2.0), -15)
QUICK = {
    "effort": "fast", "init": "identity", "device": "cpu", "levels_mm": [4.0], "iterations": [8],
    "update_sigma": 2.0, "working_spacing_mm": 2.0,
}  # fmt: skip
LONG = {"effort": "accurate", "init": "affine", "device": "cpu"}
"""Some seconds of work."""


def pair() -> tuple[Volume, Volume]:
    """A fixed and a moving image of one patient, on oblique grids of different voxels."""
    scene = Scene(size_mm=3.0)
    return scene.fixed(FIXED), scene.moving(MOVING)


def image(volume: Volume) -> Image:
    """A 3D volume as the panel sends it."""
    return Image(array_from_tensor(volume.data), volume.grid.world_from_voxel, volume.name)


def registration(settings: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """A job that registers `pair`."""
    fixed, moving = pair()
    return {
        "kind": "register", "settings": settings or QUICK, "fixed": image(fixed), "moving": image(moving),
        "initial": None, "masks": None, "guidance": None, "evaluation": None, "pathology": None,
        "regions": None, "stiffness": {}, "storage": "half",
        "outputs": {"moved": True, "velocity": True, "jacobian": True}, **changes,
    }  # fmt: skip


def gone(pid: int) -> bool:
    """Whether a process has ended; one that nobody has asked about its end yet counts as ended."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    status = Path(f"/proc/{pid}/stat")
    return status.is_file() and status.read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "Z"
