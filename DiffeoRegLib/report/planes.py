"""Where the pictures of a report are cut: planes through the fixed image, as a radiologist looks at them."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from DiffeoRegLib.space.grid import Grid, Matrix

LONGEST_PIXELS = 320
# Patient axes (R, A, S = 0, 1, 2) down and to the right, both reversed: R on the left, A and S on top.
VIEWS = (("Axial", 1, 0), ("Coronal", 2, 0), ("Sagittal", 2, 1))
LETTERS = (("L", "R"), ("P", "A"), ("I", "S"))


@dataclass(frozen=True, eq=False)
class Plane:
    """A picture's place in the patient.

    points_mm: (rows, columns, 3), RAS.  down, right: unit vectors of the picture's axes, RAS.
    edges: letters at the left, right, top and bottom edge, empty where the picture has no known side.
    """

    name: str
    points_mm: Matrix
    down: Matrix
    right: Matrix
    pixel_mm: float
    edges: tuple[str, str, str, str]


def planes(grid: Grid, centre_mm: NDArray[np.float64]) -> list[Plane]:
    """Axial, coronal and sagittal plane of the grid's own axes through a point; one plane of a 2D grid.

    An oblique volume is shown along its own axes, which are named after the nearest patient axis; pixels are
    square, so anisotropic voxels keep their true proportions.
    """
    if grid.dim == 2:
        return [_only_plane(grid)]
    frame = patient_frame(grid)
    faces = _outer_corners(grid) @ frame.T
    low, high = faces.min(axis=0), faces.max(axis=0)
    pixel = float((high - low).max() / LONGEST_PIXELS)
    found = []
    for name, vertical, horizontal in VIEWS:
        rows = high[vertical] - pixel * (np.arange(round((high - low)[vertical] / pixel) or 1) + 0.5)
        columns = high[horizontal] - pixel * (np.arange(round((high - low)[horizontal] / pixel) or 1) + 0.5)
        place = np.tile(frame @ centre_mm, (len(rows), len(columns), 1))
        place[..., vertical] = rows[:, None]
        place[..., horizontal] = columns[None, :]
        edges = (*LETTERS[horizontal][::-1], *LETTERS[vertical][::-1])
        found.append(Plane(name, place @ frame, -frame[vertical], -frame[horizontal], pixel, edges))
    return found


def patient_frame(grid: Grid) -> Matrix:
    """Three orthonormal rows: the grid's axes, reordered and turned to point nearest to R, A and S."""
    columns = grid.world_from_voxel[:3, :3] / np.linalg.norm(grid.world_from_voxel[:3, :3], axis=0)
    left, _, right = np.linalg.svd(columns)
    axes = (left @ right).T  # the nearest right-angled axes, for a sheared grid
    order = max(itertools.permutations(range(3)), key=lambda p: sum(abs(axes[p[w], w]) for w in range(3)))
    return np.array([axes[order[w]] * (1 if axes[order[w], w] >= 0 else -1) for w in range(3)])


def _outer_corners(grid: Grid) -> Matrix:
    """Corners of the outer voxel faces, RAS mm, (8, 3)."""
    ends = itertools.product(*[(-0.5, n - 0.5) for n in grid.shape])
    return grid.world_from_index(np.array(list(ends)))


def _only_plane(grid: Grid) -> Plane:
    """A 2D image as it is stored: rows run down.

    A picture file has no patient, so no letters: a wrong side mark is worse than none.
    """
    pixel = max(grid.extent_mm) / LONGEST_PIXELS
    axes = [
        (np.arange(round(extent / pixel) or 1) + 0.5) * pixel / step - 0.5
        for extent, step in zip(grid.extent_mm, grid.spacing, strict=True)
    ]
    index = np.stack(np.meshgrid(*axes, indexing="ij"), -1)
    down, right = (grid.world_from_voxel[:3, a] / grid.spacing[a] for a in (0, 1))
    return Plane("Image", grid.world_from_index(index), down, right, pixel, ("", "", "", ""))
