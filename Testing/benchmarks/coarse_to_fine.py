"""Draw how a SITReg network moves two images towards each other, level by level: run by hand.

    python Testing/benchmarks/coarse_to_fine.py WEIGHTS FIXED MOVING -o levels.png [--axis 1] [--slice 40]

Rows: the images as they are aligned, then after each level that predicts motion, coarse to fine.
Columns: the moving and the fixed image half-way, what still differs, and the grid of the moving image's
half-way map.  Each row is composed of the maps of all coarser levels, as the network itself does.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from DiffeoRegLib.errors import SettingsError
from DiffeoRegLib.networks.sitreg import SITReg
from DiffeoRegLib.networks.sitreg_maps import SITRegMaps
from DiffeoRegLib.networks.weights import read_network
from DiffeoRegLib.space.jacobian import folded_percent
from DiffeoRegLib.space.sample import array_from_tensor, warp
from DiffeoRegLib.training.store import Preparation, Store
from DiffeoRegLib.training.subjects import Subject

LINES = 3
"""Voxels between the lines of the grid."""
HEADINGS = ("moving, half-way", "fixed, half-way", "difference", "grid")


@dataclass(frozen=True, eq=False)
class Stage:
    """Both images half-way after some levels, (1, 1, *shape), and the map that brought the moving one there.

    u_vox: (1, d, *shape), voxels.
    """

    name: str
    moving: Tensor
    fixed: Tensor
    u_vox: Tensor

    @property
    def difference(self) -> float:
        """Root mean square of what the images still differ by."""
        return float((self.moving - self.fixed).square().mean().sqrt())


@torch.no_grad()
def stages(network: SITReg, moving: Tensor, fixed: Tensor) -> list[Stage]:
    """The images (1, 1, *shape) as they are, then after each level, coarse to fine."""
    maps = network(moving, fixed, mode="complete")
    found = [Stage("as aligned", moving, fixed, moving.new_zeros(1, moving.dim() - 2, *moving.shape[2:]))]
    for count, level in enumerate(reversed(network.levels), start=1):
        u_moving, u_fixed = up_to(maps, count).halfway()
        name = f"level {level}: controls {2**level} voxels apart"
        found.append(Stage(name, warp(moving, u_moving), warp(fixed, u_fixed), u_moving))
    return found


def up_to(maps: SITRegMaps, count: int) -> SITRegMaps:
    """The maps as they were after so many levels."""
    return dataclasses.replace(maps, atoms=maps.atoms[:count])


def prepared_pair(
    fixed: Path, moving: Path, shape: Sequence[int], spacing_mm: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Moving and fixed image (1, 1, *shape) as in training, the moving one aligned to the other."""
    store = Store(Preparation(tuple(shape), tuple(spacing_mm), fixed))
    images = [store.load(Subject(path.name, path))["image"][None] for path in (moving, fixed)]
    return images[0], images[1]


def draw(found: Sequence[Stage], path: Path, axis: int, index: int | None) -> None:
    """One row per stage, cut across a tensor axis of a volume; index: None = through the middle."""
    mpl.use("Agg")
    from matplotlib import pyplot

    shape = found[0].moving.shape[2:]
    index = shape[axis] // 2 if index is None else index
    planes = [[_cut(t, axis, index) for t in (s.moving, s.fixed, s.u_vox)] for s in found]
    rows, columns = planes[0][0].shape[-2:]
    width = 2.6
    figure, axes = pyplot.subplots(
        len(found), len(HEADINGS),
        figsize=(width * len(HEADINGS), (width * rows / columns + 0.25) * len(found)),
        layout="constrained", squeeze=False,
    )  # fmt: skip
    for line, (stage, (moving, fixed, u_vox)) in enumerate(zip(found, planes, strict=True)):
        own = list(axes[line])
        own[0].imshow(moving[0], cmap="gray", vmin=0, vmax=1, origin="lower")
        own[1].imshow(fixed[0], cmap="gray", vmin=0, vmax=1, origin="lower")
        own[2].imshow((moving - fixed)[0], cmap="RdBu", vmin=-0.5, vmax=0.5, origin="lower")
        _grid(own[3], u_vox, [a for a in range(len(shape)) if len(shape) == 2 or a != axis])
        own[0].set_ylabel(stage.name, fontsize=8)
        own[2].set_xlabel(f"RMS {stage.difference:.4f}", fontsize=8)
        own[3].set_xlabel(f"{folded_percent(stage.u_vox):g} % folded", fontsize=8)
        for place, heading in zip(own, HEADINGS, strict=True):
            place.set_xticks([])
            place.set_yticks([])
            if line == 0:
                place.set_title(heading, fontsize=9)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _cut(values: Tensor, axis: int, index: int) -> NDArray[np.float32]:
    """(1, C, *shape) to (C, rows, columns)."""
    plane = values[0] if values.dim() == 4 else values[0].select(1 + axis, index)
    array: NDArray[np.float32] = array_from_tensor(plane.contiguous())
    return array


def _grid(place: Any, u_vox: NDArray[np.float32], axes: Sequence[int]) -> None:
    """Every few voxels a line of the grid where the map leads, seen along the axis that was cut."""
    rows, columns = np.meshgrid(*map(np.arange, u_vox.shape[1:]), indexing="ij")
    down, right = rows + u_vox[axes[0]], columns + u_vox[axes[1]]
    for lines in ((right[::LINES].T, down[::LINES].T), (right[:, ::LINES], down[:, ::LINES])):
        place.plot(*lines, color="#20507a", linewidth=0.5)
    place.set_aspect("equal")
    place.set_xlim(-1, columns.shape[1])
    place.set_ylim(-1, columns.shape[0])


def main(words: Sequence[str] | None = None) -> None:
    """Read weights and a pair, draw the picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("weights", type=Path)
    parser.add_argument("fixed", type=Path)
    parser.add_argument("moving", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--axis", type=int, default=0, help="tensor axis to cut across: 0 = S, 1 = A, 2 = R")
    parser.add_argument("--slice", type=int, default=None, help="default: the middle one")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args(words)
    torch.set_num_threads(given.threads)
    network, description = read_network(given.weights)
    if not isinstance(network, SITReg):
        raise SettingsError(f"'{given.weights}' is no SITReg network, whose levels could be shown.")
    data = description["config"]["data"]
    shape = data["options"]["shape"]
    pair = prepared_pair(given.fixed, given.moving, shape, data["spacing_mm"] or [1.0] * len(shape))
    draw(stages(network, *pair), given.output, given.axis, given.slice)


if __name__ == "__main__":
    main()
