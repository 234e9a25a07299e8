"""From two images in patient space to a Pair: one working grid, one resampling, intensities, masks."""

from __future__ import annotations

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
    device: torch.device | str = "cpu",
    memory_limit_bytes: int | None = None,
    check: bool = True,
) -> Pair:
    """Two images as a method wants them: on one grid, in [0, 1], moving read through the initial alignment.

    moving_from_fixed: RAS mm 4x4.  memory_limit_bytes: None = settings.memory_limit_gb, or no limit.
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
        grid, memory_notes = fit_to_memory(grid, memory_limit_bytes, settings)
        notes += memory_notes
    notes.append(_grid_note(fixed.grid, grid))
    fixed_mask, moving_mask = _weights(fixed, moving, grid, matrix, masks)
    labels = _labels_on(grid, matrix, guidance, device)
    points = _points_on(grid, matrix, guidance, device)
    return Pair(
        fixed=_image_on(fixed, grid, None, settings, masks.fixed, masks.exclude_fixed, device),
        moving=_image_on(moving, grid, matrix, settings, masks.moving, masks.exclude_moving, device),
        grid=grid,
        moving_from_fixed=matrix,
        fixed_mask=None if fixed_mask is None else fixed_mask.to(device),
        moving_mask=None if moving_mask is None else moving_mask.to(device),
        fixed_labels=labels[0],
        moving_labels=labels[1],
        fixed_points_vox=points[0],
        moving_points_vox=points[1],
        notes=notes,
    )


def _grid_note(fixed: Grid, grid: Grid) -> str:
    shape = " x ".join(str(n) for n in reversed(grid.shape))
    spacing = " x ".join(f"{s:.3g}" for s in reversed(grid.spacing))
    share = 100.0 * np.prod(grid.extent_mm) / np.prod(fixed.extent_mm)
    return f"Working grid: {shape} voxels of {spacing} mm, {share:.0f} % of the fixed field of view."


def _image_on(
    image: Volume,
    grid: Grid,
    image_from_grid: Matrix | None,
    settings: Settings,
    mask: Volume | None,
    exclude: bool,
    device: torch.device | str,
) -> Tensor:
    """An image on the working grid in [0, 1]; beyond its field of view the edge value goes on."""
    window = PRESETS[settings.preset].intensity_window
    if window is None or not _overlaps_window(image, window):
        inside = None
        if mask is not None and mask.grid.same_as(image.grid):
            inside = (mask.data != 0) != exclude
        window = intensity_window(image, inside)
    on_device = Volume(image.data.to(device), image.grid, image.name)
    return normalise(resample_affine(on_device, grid, image_from_grid), window)


def _overlaps_window(image: Volume, window: tuple[float, float]) -> bool:
    """True if at least a third of the window is used by the image: it is in the units the preset expects."""
    low, high = (float(v) for v in image.data.aminmax())
    return min(high, window[1]) - max(low, window[0]) > (window[1] - window[0]) / 3


def _weights(
    fixed: Volume, moving: Volume, grid: Grid, moving_from_fixed: Matrix, masks: Masks
) -> tuple[Tensor | None, Tensor | None]:
    """Where each image counts on the working grid; raises NoOverlapError when they never do together."""
    fixed_mask = _weight(fixed, grid, None, masks.fixed, masks.exclude_fixed)
    moving_mask = _weight(moving, grid, moving_from_fixed, masks.moving, masks.exclude_moving)
    seen = inside_field_of_view(moving.grid, grid, moving_from_fixed)
    most = min(grid.voxel_count, float(np.prod(moving.grid.extent_mm) / np.prod(grid.spacing)))
    for mask in (fixed_mask, moving_mask):
        if mask is not None:
            seen, most = seen * mask, min(most, float(mask.sum()))
    if float(seen.sum()) <= LEAST_SHARED * most:
        raise NoOverlapError(
            f"'{fixed.name}' and '{moving.name}' share no space after the initial alignment "
            "(within the masks): choose another initial alignment, or give an initial transform."
        )
    return fixed_mask, moving_mask


def _weight(
    image: Volume, grid: Grid, image_from_grid: Matrix | None, mask: Volume | None, exclude: bool
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
    grid: Grid, moving_from_fixed: Matrix, guidance: Correspondence | None, device: torch.device | str
) -> tuple[Tensor | None, Tensor | None]:
    if guidance is None or guidance.fixed_labels is None or guidance.moving_labels is None:
        return None, None
    both = ((guidance.fixed_labels, None), (guidance.moving_labels, moving_from_fixed))
    fixed, moving = (
        resample_affine(labels, grid, matrix, mode="nearest", outside="zeros").round().to(device, torch.int32)
        for labels, matrix in both
    )
    return fixed, moving


def _points_on(
    grid: Grid, moving_from_fixed: Matrix, guidance: Correspondence | None, device: torch.device | str
) -> tuple[Tensor | None, Tensor | None]:
    """Landmarks (1, d, n) in working voxels; moving ones where the inverse initial alignment puts them."""
    if guidance is None or guidance.fixed_points_mm is None or guidance.moving_points_mm is None:
        return None, None
    back = np.linalg.inv(moving_from_fixed)
    moved_mm = np.asarray(guidance.moving_points_mm) @ back[:3, :3].T + back[:3, 3]
    fixed, moving = (
        tensor_from_array(np.ascontiguousarray(grid.index_from_world(points).T)[None], torch.float32, device)
        for points in (np.asarray(guidance.fixed_points_mm), moved_mm)
    )
    return fixed, moving
