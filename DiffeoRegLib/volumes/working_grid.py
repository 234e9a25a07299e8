"""The grid a pair is registered on: cropped to the objects, sensibly spaced, small enough for the memory."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from DiffeoRegLib.errors import MemoryLimitError
from DiffeoRegLib.settings import PRESETS, Settings
from DiffeoRegLib.space.grid import Grid, Matrix
from DiffeoRegLib.space.sample import array_from_tensor
from DiffeoRegLib.volumes.checks import is_sheared
from DiffeoRegLib.volumes.intensity import foreground_points_mm
from DiffeoRegLib.volumes.pair import Masks
from DiffeoRegLib.volumes.volume import Volume

MARGIN_MM = 10.0
"""Kept around the object: room for similarity windows and for the motion to fade."""
MARGIN_VOXELS = (4, 10)
"""The margin is never fewer and never more working voxels than this."""
FEWEST_VOXELS = 96
"""A preset's spacing (made for people) leaves at least these along the longest axis, if there are any."""
COARSEST_VOXELS = 24
"""fit_to_memory does not coarsen the longest axis below this."""
BYTES_PER_VOXEL_3D = 340
BYTES_PER_VOXEL_2D = 250
"""Peak bytes per working voxel of the instance optimisation, fields and window sums together."""
COARSENED = "The working grid was coarsened"
"""How a sentence begins that says so."""
BASE_BYTES = 400_000_000
"""The process itself: interpreter and libraries."""


def working_grid(
    fixed: Volume, moving: Volume, moving_from_fixed: Matrix, settings: Settings, masks: Masks | None = None
) -> Grid:
    """The grid a pair is registered on: the fixed one, cropped to the objects, at the working spacing.

    Cropped to the fixed mask's box when one is given to include, else to the foreground of both images where
    both stand on a constant background; plus a margin, inside the field of view, plus settings.padding_mm
    beyond it; even numbers of voxels.  A fixed image with sheared axes gets a grid with right angles over it.
    """
    return grid_around(
        fixed.grid, _points_of_interest_mm(fixed, moving, moving_from_fixed, masks or Masks()), settings
    )


def grid_around(field_of_view: Grid, points: NDArray[np.float64] | None, settings: Settings) -> Grid:
    """The grid of a field of view, cropped to the box of points (n, 3) and a margin; see `working_grid`."""
    base = _orthogonal(field_of_view) if is_sheared(field_of_view) else field_of_view
    start, stop = np.zeros(base.dim), np.array(base.shape, dtype=np.float64)
    if points is not None:
        position = base.index_from_world(points)
        start = np.clip(position.min(axis=0), 0, stop - 1)
        stop = np.clip(position.max(axis=0) + 1, start + 1, stop)
    target = _target_spacing(base, stop - start, settings)
    spacing = np.maximum(np.array(base.spacing), target)
    margin = np.clip(np.ceil(MARGIN_MM / spacing), *MARGIN_VOXELS) * spacing / np.array(base.spacing)
    start = np.maximum(np.floor(start - margin), 0)
    stop = np.minimum(np.ceil(stop + margin), np.array(base.shape))
    extra = np.ceil(settings.padding_mm / np.array(base.spacing))
    box = base.cropped((start - extra).astype(int).tolist(), (stop + extra).astype(int).tolist())
    return _even(_at_spacing(box, target))


def _target_spacing(base: Grid, size_vox: NDArray[np.float64], settings: Settings) -> float:
    """Working spacing, mm: the user's, or the preset's unless that leaves too few voxels (small animals)."""
    if settings.working_spacing_mm is not None:
        return settings.working_spacing_mm
    longest = float((size_vox * np.array(base.spacing)).max())
    return min(PRESETS[settings.preset].working_spacing_mm, longest / FEWEST_VOXELS)


def _points_of_interest_mm(
    fixed: Volume, moving: Volume, moving_from_fixed: Matrix, masks: Masks
) -> NDArray[np.float64] | None:
    """Fixed-space points (n, 3), RAS mm, whose box holds everything to register; None = all there is."""
    if masks.fixed is not None and not masks.exclude_fixed:
        index = array_from_tensor((masks.fixed.data != 0).nonzero()).astype(np.float64)
        return masks.fixed.grid.world_from_index(index)
    fixed_points, moving_points = foreground_points_mm(fixed), foreground_points_mm(moving)
    if fixed_points is None or moving_points is None:
        return None
    fixed_from_moving = np.linalg.inv(moving_from_fixed)
    return np.concatenate(
        [fixed_points, moving_points @ fixed_from_moving[:3, :3].T + fixed_from_moving[:3, 3]]
    )


def _orthogonal(grid: Grid) -> Grid:
    """A grid with right angles, the same spacing and the nearest axes that covers a sheared one."""
    spacing = np.linalg.norm(grid.world_from_voxel[:3, :3], axis=0)
    left, _, right = np.linalg.svd(grid.world_from_voxel[:3, :3] / spacing)
    matrix = np.eye(4)
    matrix[:3, :3] = (left @ right) * spacing
    matrix[:3, 3] = grid.world_from_voxel[:3, 3]
    frame = Grid(grid.shape, matrix)
    corners = frame.index_from_world(grid.corners_mm())
    start, stop = np.floor(corners.min(axis=0) + 1e-6), np.ceil(corners.max(axis=0) - 1e-6) + 1
    return frame.cropped(start.astype(int).tolist(), stop.astype(int).tolist())


def _at_spacing(grid: Grid, target: float) -> Grid:
    """The grid with axes finer than `target` (mm) brought to it, by a whole stride where near enough."""
    factors, shape = [], []
    for n, spacing in zip(grid.shape, grid.spacing, strict=True):
        ratio = target / spacing
        if ratio < 1.2:
            ratio = 1.0
        elif abs(ratio - round(ratio)) < 0.15 * ratio and round(ratio) > 1:
            ratio = float(round(ratio))
        shape.append(max(2, int(np.ceil(n / ratio - 1e-6))))
        factors.append(ratio)
    if max(factors) == 1.0:
        return grid
    step = np.eye(4)
    for axis, (n, m, ratio) in enumerate(zip(grid.shape, shape, factors, strict=True)):
        step[axis, axis] = ratio
        step[axis, 3] = (n - 1) / 2 - ratio * (m - 1) / 2  # any surplus is shared by both ends
    return Grid(tuple(shape), grid.world_from_voxel @ step)


def _even(grid: Grid) -> Grid:
    return grid.padded([0] * grid.dim, [n % 2 for n in grid.shape])


def estimate_memory_bytes(grid: Grid, settings: Settings | None = None) -> int:
    """Peak memory of a run on this working grid, bytes, without the input images."""
    per_voxel = BYTES_PER_VOXEL_3D if grid.dim == 3 else BYTES_PER_VOXEL_2D
    if settings is not None and (settings.similarity or PRESETS[settings.preset].similarity) == "mind":
        per_voxel += 2 * 12 * 4  # twelve feature channels of both images
    return BASE_BYTES + per_voxel * grid.voxel_count


def fit_to_memory(
    grid: Grid,
    limit_bytes: int,
    settings: Settings | None = None,
    memory_of: Callable[[Grid], int] | None = None,
) -> tuple[Grid, list[str]]:
    """The grid, coarsened along its finest axes until the estimate fits the limit, and a sentence if it was.

    memory_of: the estimate of a method with needs of its own, bytes; None = `estimate_memory_bytes`.
    Raises MemoryLimitError when even the coarsest sensible grid does not fit.
    """
    estimate = memory_of or (lambda grid: estimate_memory_bytes(grid, settings))
    needed = estimate(grid)
    if needed <= limit_bytes:
        return grid, []
    longest = max(grid.extent_mm)
    target, coarser = min(grid.spacing), grid
    while estimate(coarser) > limit_bytes:
        target *= 1.1
        if longest / target < COARSEST_VOXELS:
            raise MemoryLimitError(
                f"The registration needs about {needed / 1e9:.2g} GB and only "
                f"{limit_bytes / 1e9:.2g} GB may be used; "
                "even a very coarse working grid does not fit. Free memory or crop the images."
            )
        coarser = _even(_at_spacing(grid, target))
    spacing = " x ".join(f"{s:.3g}" for s in reversed(coarser.spacing))
    return coarser, [
        f"{COARSENED} to {spacing} mm: at full size the run needs about "
        f"{needed / 1e9:.2g} GB and {limit_bytes / 1e9:.2g} GB may be used."
    ]
