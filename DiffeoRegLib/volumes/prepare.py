"""From two images in patient space to a Pair: one working grid, one resampling, intensities, masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from DiffeoRegLib.errors import NoOverlapError
from DiffeoRegLib.settings import PRESETS, Settings
from DiffeoRegLib.space.grid import Grid, Matrix
from DiffeoRegLib.space.sample import tensor_from_array
from DiffeoRegLib.volumes.checks import check_pair
from DiffeoRegLib.volumes.intensity import (
    CUT_PERCENT,
    background,
    finite,
    inside_field_of_view,
    intensity_window,
    normalise,
    resample_affine,
)
from DiffeoRegLib.volumes.pair import Correspondence, Masks, Pair
from DiffeoRegLib.volumes.pathology import Pathology, healthy_tissue, place_pathology
from DiffeoRegLib.volumes.regions import Regions, place_regions
from DiffeoRegLib.volumes.volume import Volume
from DiffeoRegLib.volumes.working_grid import estimate_memory_bytes, fit_to_memory, working_grid

__all__ = [
    "Correspondence",
    "Masks",
    "Pair",
    "check_pair",
    "estimate_memory_bytes",
    "fit_to_memory",
    "prepare",
    "read_pair",
    "working_grid",
]

LEAST_SHARED = 0.02
"""Share of the smaller image or mask that has to meet the other one."""


def prepare(
    fixed: Volume,
    moving: Volume,
    masks: Masks | None,
    guidance: Correspondence | None,
    settings: Settings,
    moving_from_fixed: Matrix,
    *,
    regions: Regions | None = None,
    pathology: Pathology | None = None,
    device: torch.device | str = "cpu",
    memory_limit_bytes: int | None = None,
    memory_of: Callable[[Grid], int] | None = None,
    check: bool = True,
) -> Pair:
    """Two images as a method wants them: on one grid, in [0, 1], moving read through the initial alignment.

    moving_from_fixed: RAS mm 4x4.  regions: how stiff the moving image is, where.  pathology: of either.
    memory_limit_bytes: None = settings.memory_limit_gb, or no limit.
    memory_of: what the method needs on a working grid, see `fit_to_memory`.
    check: False if `check_pair` has been called already.
    Raises InputError for unusable input, NoOverlapError, MemoryLimitError.
    """
    masks = masks or Masks()
    notes = check_pair(fixed, moving, masks, guidance) if check else []
    fixed, moving = finite(fixed), finite(moving)
    matrix = np.array(moving_from_fixed, dtype=np.float64)
    grid = working_grid(fixed, moving, matrix, settings, masks)
    if memory_limit_bytes is None and settings.memory_limit_gb is not None:
        memory_limit_bytes = int(settings.memory_limit_gb * 1e9)
    if memory_limit_bytes is not None:
        grid, memory_notes = fit_to_memory(grid, memory_limit_bytes, settings, memory_of)
        notes += memory_notes
    notes.append(_grid_note(fixed.grid, grid))
    pair = read_pair(
        fixed, moving, grid, np.eye(4), matrix, masks, guidance, settings,
        pathology=pathology, device=device, notes=notes,
    )  # fmt: skip
    return replace(
        pair,
        regions=None if regions is None else place_regions(regions, grid, matrix, device),
        pathology=None if pathology is None else place_pathology(pathology, grid, np.eye(4), matrix, device),
        memory_bytes=estimate_memory_bytes(grid, settings) if memory_of is None else memory_of(grid),
    )


def read_pair(
    fixed: Volume,
    moving: Volume,
    grid: Grid,
    fixed_from_grid: Matrix,
    moving_from_grid: Matrix,
    masks: Masks,
    guidance: Correspondence | None,
    settings: Settings,
    *,
    pathology: Pathology | None = None,
    device: torch.device | str,
    notes: list[str],
) -> Pair:
    """Both images, free of NaN, and what belongs to them on a grid, each read through its own RAS mm 4x4.

    What is done to one image does not depend on the other: exchanged images give an exchanged Pair.
    pathology: left out where intensities are brought to [0, 1], so that tissue of both images looks alike.
    Raises NoOverlapError.
    """
    sides = ((fixed, fixed_from_grid), (moving, moving_from_grid))
    kept = ((masks.fixed, masks.exclude_fixed), (masks.moving, masks.exclude_moving))
    weights = [
        _weight(image, grid, matrix, mask, exclude)
        for (image, matrix), (mask, exclude) in zip(sides, kept, strict=True)
    ]
    _require_overlap(fixed, moving, grid, (fixed_from_grid, moving_from_grid), weights)
    ill = pathology or Pathology()
    tissue = [healthy_tissue(a, ill.classes, b) for a, b in ((ill.fixed, fixed), (ill.moving, moving))]
    windows = [
        _window(image, settings, mask, exclude, healthy)
        for (image, _), (mask, exclude), healthy in zip(sides, kept, tissue, strict=True)
    ]
    images = [
        _image_on(image, grid, matrix, window, device)
        for (image, matrix), window in zip(sides, windows, strict=True)
    ]
    labels = _labels_on(grid, (fixed_from_grid, moving_from_grid), guidance, device)
    points = _points_on(grid, (fixed_from_grid, moving_from_grid), guidance, device)
    return Pair(
        fixed=images[0],
        moving=images[1],
        grid=grid,
        moving_from_grid=moving_from_grid,
        fixed_mask=None if weights[0] is None else weights[0].to(device),
        moving_mask=None if weights[1] is None else weights[1].to(device),
        fixed_labels=labels[0],
        moving_labels=labels[1],
        fixed_points_vox=points[0],
        moving_points_vox=points[1],
        notes=notes,
        fixed_from_grid=fixed_from_grid,
        moving_window=windows[1],
    )


def _grid_note(fixed: Grid, grid: Grid) -> str:
    shape = " x ".join(str(n) for n in reversed(grid.shape))
    spacing = " x ".join(f"{s:.3g}" for s in reversed(grid.spacing))
    share = 100.0 * np.prod(grid.extent_mm) / np.prod(fixed.extent_mm)
    return f"Working grid: {shape} voxels of {spacing} mm, {share:.0f} % of the fixed field of view."


def _window(
    image: Volume, settings: Settings, mask: Volume | None, exclude: bool, healthy: Tensor | None
) -> tuple[float, float]:
    """The intensities of an image that become 0 and 1; healthy: where its tissue is, with a pathology."""
    window = PRESETS[settings.preset].intensity_window
    if window is not None and _overlaps_window(image, window):
        return window
    inside = healthy
    if mask is not None and mask.grid.same_as(image.grid):
        chosen = (mask.data != 0) != exclude
        inside = chosen if healthy is None else chosen & healthy
    return intensity_window(image, inside)


def _image_on(
    image: Volume,
    grid: Grid,
    image_from_grid: Matrix,
    window: tuple[float, float],
    device: torch.device | str,
) -> Tensor:
    """An image on the working grid, `window` in [0, 1]; beyond its field of view the edge value goes on."""
    on_device = Volume(image.data.to(device), image.grid, image.name)
    return normalise(resample_affine(on_device, grid, image_from_grid), window)


def _overlaps_window(image: Volume, window: tuple[float, float]) -> bool:
    """True if at least a third of the window is used by the image: it is in the units the preset expects."""
    low, high = (float(v) for v in image.data.aminmax())
    return min(high, window[1]) - max(low, window[0]) > (window[1] - window[0]) / 3


def _require_overlap(
    fixed: Volume,
    moving: Volume,
    grid: Grid,
    from_grid: tuple[Matrix, Matrix],
    weights: Sequence[Tensor | None],
) -> None:
    """Raises NoOverlapError when the images never count together on the working grid."""
    seen = inside_field_of_view(fixed.grid, grid, from_grid[0])
    seen *= inside_field_of_view(moving.grid, grid, from_grid[1])
    most = min(grid.voxel_count, *[_voxels_of(image.grid, grid) for image in (fixed, moving)])
    counted = [weight for weight in weights if weight is not None]
    if len(counted) == 2:
        seen *= counted[0] * counted[1]
    elif counted:
        seen *= counted[0]
    most = min([most, *[float(weight.sum()) for weight in counted]])
    if float(seen.sum()) <= LEAST_SHARED * most:
        raise NoOverlapError(
            f"'{fixed.name}' and '{moving.name}' share no space after the initial alignment "
            "(within the masks): choose another initial alignment, or give an initial transform."
        )


def _voxels_of(image: Grid, grid: Grid) -> float:
    """The field of view of an image in voxels of a grid."""
    return float(np.prod(image.extent_mm) / np.prod(grid.spacing))


def _weight(
    image: Volume, grid: Grid, image_from_grid: Matrix, mask: Volume | None, exclude: bool
) -> Tensor | None:
    """Weight of an image on the working grid, or None if it counts everywhere.

    Beyond the field of view nothing is known, unless the image stands on a background that simply goes on.
    """
    weight = None
    around = background(image)
    if around is None or around.border_percent > CUT_PERCENT:
        inside = inside_field_of_view(image.grid, grid, image_from_grid, slack_vox=1.0)
        weight = inside if bool((inside == 0).any()) else None
    if mask is not None:
        marked = Volume((mask.data != 0).to(torch.float32), mask.grid, mask.name)
        value = resample_affine(marked, grid, image_from_grid, outside="zeros")
        value = 1.0 - value if exclude else value
        weight = value if weight is None else weight * value
    return weight


def _labels_on(
    grid: Grid,
    from_grid: tuple[Matrix, Matrix],
    guidance: Correspondence | None,
    device: torch.device | str,
) -> tuple[Tensor | None, Tensor | None]:
    if guidance is None or guidance.fixed_labels is None or guidance.moving_labels is None:
        return None, None
    fixed, moving = (
        resample_affine(labels, grid, matrix, mode="nearest", outside="zeros").round().to(device, torch.int32)
        for labels, matrix in zip((guidance.fixed_labels, guidance.moving_labels), from_grid, strict=True)
    )
    return fixed, moving


def _points_on(
    grid: Grid,
    from_grid: tuple[Matrix, Matrix],
    guidance: Correspondence | None,
    device: torch.device | str,
) -> tuple[Tensor | None, Tensor | None]:
    """Landmarks (1, d, n) in working voxels, where the inverse initial alignment puts them."""
    if guidance is None or guidance.fixed_points_mm is None or guidance.moving_points_mm is None:
        return None, None
    fixed, moving = (
        tensor_from_array(
            np.ascontiguousarray(grid.index_from_world(_back(points, matrix)).T)[None],
            torch.float32,
            device,
        )
        for points, matrix in zip(
            (guidance.fixed_points_mm, guidance.moving_points_mm), from_grid, strict=True
        )
    )
    return fixed, moving


def _back(points_mm: Matrix, image_from_grid: Matrix) -> Matrix:
    """Points (n, 3) of an image in the grid's space, RAS mm."""
    back = np.linalg.inv(image_from_grid)
    return np.asarray(np.asarray(points_mm) @ back[:3, :3].T + back[:3, 3])
