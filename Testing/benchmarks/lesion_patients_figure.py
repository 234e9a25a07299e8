"""Pictures of what `lesion_patients.py` found: one row per patient, the slice with most of the lesion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray

from DiffeoRegLib.space.sample import array_from_tensor
from DiffeoRegLib.volumes.volume import Volume

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SHOWN = (
    ("affine", "deformed"), ("svf", "deformed"), ("svf-left-out", "deformed"), ("vm-cfm", "deformed"),
    ("metaregnet", "deformed"), ("metaregnet-refined", "deformed"), ("metamorphosis", "deformed"),
    ("metamorphosis", "metamorphic"), ("metamorphosis", "healthy"),
)  # fmt: skip
"""Ways, and what of them is drawn."""


def keep_slice(path: Path, fixed: Volume, ill: NDArray[np.bool_], shown: Mapping[str, Volume]) -> None:
    """The axial slice with most of the lesion, of the patient, the lesion and what a run shows."""
    axis = int(np.abs(fixed.grid.world_from_voxel[2, :3]).argmax())
    level = int(ill.sum(tuple(a for a in range(3) if a != axis)).argmax())
    arrays = {"fixed": array_from_tensor(fixed.data), "lesion": ill.astype(np.float32)}
    arrays |= {name: array_from_tensor(volume.data) for name, volume in shown.items()}
    upright = {name: _upright(values.take(level, axis), fixed, axis) for name, values in arrays.items()}
    np.savez_compressed(path, **upright)  # type: ignore[arg-type]


def _upright(plane: NDArray[np.floating], fixed: Volume, axis: int) -> NDArray[np.floating]:
    """Rows towards the front, columns towards the patient's right, to be drawn with the origin below."""
    directions = np.delete(fixed.grid.world_from_voxel[:2, :3], axis, 1)
    if abs(directions[1, 0]) < abs(directions[1, 1]):
        plane, directions = plane.T, directions[:, ::-1]
    return plane[:: -1 if directions[1, 0] < 0 else 1, :: -1 if directions[0, 1] < 0 else 1]


def draw(folder: Path, keys: Sequence[str], path: Path) -> None:
    """Every patient's row; the lesion's outline lies on all images.

    keys: of `lesion_patients.py`, PATIENT WAY.
    """
    names = list(dict.fromkeys(key.split()[0] for key in keys))
    shown = [(way, what) for way, what in SHOWN if f"{names[0]} {way}" in keys]
    columns = 1 + len(shown)
    figure, axes = plt.subplots(len(names), columns, figsize=(2.1 * columns, 2.6 * len(names)), squeeze=False)
    for row, name in zip(axes, names, strict=True):
        for axis in row:
            axis.axis("off")
        for axis, (way, what) in zip(row, (("affine", "fixed"), *shown), strict=True):
            with np.load(folder / f"{name} {way}.npz") as planes:
                values = planes[what]
                axis.imshow(values, cmap="gray", vmin=0, vmax=np.percentile(values, 99.8), origin="lower")
                axis.contour(planes["lesion"], [0.5], colors="tab:red", linewidths=0.6)
            title = name if what == "fixed" else way if what == "deformed" else f"{way}: {what}"
            axis.set_title(title, fontsize=7)
    figure.tight_layout(pad=0.3)
    figure.savefig(path, dpi=80)
    plt.close(figure)
