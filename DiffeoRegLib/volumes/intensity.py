"""Background, robust intensity window, and the anti-aliased reading of a volume on another grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from DiffeoRegLib.space.grid import Grid, Matrix, index_affine
from DiffeoRegLib.space.sample import Mode, Outside, array_from_tensor, sample, tensor_from_array
from DiffeoRegLib.volumes.volume import Volume

SLAB_VOXELS = 2_000_000
"""Voxels whose positions exist at one time while resampling."""

CUT_PERCENT = 0.5
"""More foreground than this on the border of an image: it goes on beyond the field of view, unknown."""


@dataclass(frozen=True)
class Background:
    """The constant value around the object of an image.

    value, tolerance: a voxel further than `tolerance` from `value` is foreground.
    border_percent: share of the border that is foreground; above 0 the field of view cuts the object.
    """

    value: float
    tolerance: float
    border_percent: float


def finite(volume: Volume) -> Volume:
    """The volume in float32, NaN and infinities replaced by its smallest finite value; itself if it is so."""
    data = volume.data
    if data.is_floating_point():
        low, high = data.aminmax()
        if not bool(torch.isfinite(low) & torch.isfinite(high)):
            good = torch.isfinite(data)
            data = torch.where(good, data, data[good].min())
    if data is volume.data and data.dtype == torch.float32:
        return volume
    return Volume(data.to(torch.float32), volume.grid, volume.name)


def reduced(volume: Volume, strides: Sequence[int]) -> Volume:
    """Block means: voxel j of stride s averages voxels s*j ... s*j + s - 1 (a partial block: what it has)."""
    if max(strides) == 1:
        return volume
    pool = functional.avg_pool3d if volume.grid.dim == 3 else functional.avg_pool2d
    kernel = list(strides)
    data = pool(volume.data.to(torch.float32)[None, None], kernel, kernel, ceil_mode=True)[0, 0]
    return Volume(data, volume.grid.coarsened(strides), volume.name)


def smooth(values: Tensor, sigmas_vox: Sequence[float]) -> Tensor:
    """Gaussian smoothing of (N, C, *spatial), one standard deviation (voxels) per axis, border repeated."""
    for axis, sigma in enumerate(sigmas_vox):
        if sigma < 0.05:
            continue
        radius = math.ceil(3 * sigma)
        weights = [math.exp(-0.5 * (k / sigma) ** 2) for k in range(radius + 1)]
        total = weights[0] + 2 * sum(weights[1:])
        size, dim = values.shape[axis + 2], axis + 2
        index = torch.arange(-radius, size + radius, device=values.device).clamp_(0, size - 1)
        padded = values.index_select(dim, index)
        result = padded.narrow(dim, radius, size) * (weights[0] / total)
        for k in range(1, radius + 1):
            for shift in (radius - k, radius + k):
                result.add_(padded.narrow(dim, shift, size), alpha=weights[k] / total)
        values = result
    return values


def antialiased(volume: Volume, voxel_from_target: Matrix) -> Volume:
    """The volume with detail removed that a coarser target grid cannot carry, on an integer-reduced grid.

    voxel_from_target: (d, d+1), voxel positions of `volume` from those of the target grid.
    """
    step = np.linalg.norm(voxel_from_target[:, :-1], axis=1)
    strides = [max(1, math.floor(s + 1e-3)) for s in step]
    small = reduced(volume, strides)
    rest = step / np.array(strides)
    # A box one target voxel wide has variance rest^2 / 12; what is there already (one voxel) counts.
    sigmas = [0.42 * math.sqrt(max(r * r - 1.0, 0.0)) if r > 1.05 else 0.0 for r in rest]
    if max(sigmas) == 0.0:
        return small
    return Volume(smooth(small.data.to(torch.float32)[None, None], sigmas)[0, 0], small.grid, volume.name)


def affine_positions(shape: Sequence[int], matrix: Matrix, start: int, stop: int, like: Tensor) -> Tensor:
    """Positions matrix @ (index, 1) for slices start <= index < stop of axis 0, (1, d, stop-start, ...)."""
    dim = len(shape)
    parts = []
    for row in matrix:
        position = torch.zeros((), dtype=like.dtype, device=like.device)
        for axis in range(dim):
            index = np.arange(start, stop) if axis == 0 else np.arange(shape[axis])
            values = row[axis] * index + (row[dim] if axis == 0 else 0.0)
            view = [1] * dim
            view[axis] = len(index)
            position = position + tensor_from_array(values, like.dtype, like.device).reshape(view)
        parts.append(position)
    return torch.stack(parts)[None]


def resample_affine(
    volume: Volume,
    grid: Grid,
    volume_from_grid: Matrix | None = None,
    *,
    mode: Mode = "linear",
    outside: Outside = "border",
) -> Tensor:
    """Values of a volume at the voxels of a grid, (1, 1, *grid.shape) float32, slab by slab.

    volume_from_grid: RAS mm 4x4 from a point of the grid's world to the volume's world; None = identity.
    A linear reading onto a coarser grid is anti-aliased first; label maps are read with mode "nearest".
    """
    if mode != "nearest":
        volume = antialiased(volume, index_affine(volume.grid, grid, volume_from_grid))
    matrix = index_affine(volume.grid, grid, volume_from_grid)
    values = volume.data.to(torch.float32)[None, None]
    out = values.new_empty((1, 1, *grid.shape))
    thickness = max(1, SLAB_VOXELS // max(1, grid.voxel_count // grid.shape[0]))
    for start in range(0, grid.shape[0], thickness):
        stop = min(start + thickness, grid.shape[0])
        position = affine_positions(grid.shape, matrix, start, stop, values)
        out[:, :, start:stop] = sample(values, position, mode=mode, outside=outside)
    return out


def inside_field_of_view(
    volume: Grid, grid: Grid, volume_from_grid: Matrix | None = None, *, slack_vox: float = 0.5
) -> Tensor:
    """1 where a voxel of `grid` is in the field of view of `volume` (slack past its last centres), else 0."""
    matrix = index_affine(volume, grid, volume_from_grid)
    out = torch.empty((1, 1, *grid.shape))
    thickness = max(1, SLAB_VOXELS // max(1, grid.voxel_count // grid.shape[0]))
    for start in range(0, grid.shape[0], thickness):
        stop = min(start + thickness, grid.shape[0])
        position = affine_positions(grid.shape, matrix, start, stop, out)
        inside = torch.ones(position.shape[2:], dtype=torch.bool)
        for axis, size in enumerate(volume.shape):
            inside &= (position[0, axis] >= -slack_vox) & (position[0, axis] <= size - 1 + slack_vox)
        out[0, 0, start:stop] = inside
    return out


def block_strides(grid: Grid, spacing: float) -> list[int]:
    """Whole strides that bring every axis near `spacing` (mm) and leave at least 8 blocks along it."""
    return [max(1, min(round(spacing / s), n // 8)) for s, n in zip(grid.spacing, grid.shape, strict=True)]


def border_values(data: Tensor) -> Tensor:
    """All values on the outer faces of a volume, flat."""
    faces = [
        data.select(axis, end).flatten() for axis in range(data.dim()) for end in (0, data.shape[axis] - 1)
    ]
    return torch.cat(faces)


def background(volume: Volume) -> Background | None:
    """The image's constant (or flat noise) background, or None where the border shows no such thing.

    At least half of the border must lie within a narrow band of its median.
    """
    values = array_from_tensor(border_values(volume.data).to(torch.float32)).astype(np.float64)
    flat = array_from_tensor(subsampled(volume.data)).astype(np.float64)
    low, high = np.percentile(flat, (0.5, 99.5))
    span = max(high - low, float(np.abs(flat).max()) * 1e-9, 1e-30)
    value = float(np.median(values))
    distance = np.abs(values - value)
    tolerance = float(max(6.0 * np.percentile(distance, 50), 0.04 * span))
    if tolerance > 0.2 * span:
        return None
    return Background(value, tolerance, 100.0 * float(np.mean(distance > tolerance)))


def foreground_points_mm(volume: Volume, spacing: float = 4.0) -> NDArray[np.float64] | None:
    """Centres (n, 3), RAS mm, of the foreground blocks of about `spacing` mm; None without a background."""
    around = background(volume)
    if around is None:
        return None
    small = reduced(volume, block_strides(volume.grid, spacing))
    inside = (small.data - around.value).abs() > 0.5 * around.tolerance
    index = array_from_tensor(inside.nonzero()).astype(np.float64)
    return small.grid.world_from_index(index) if len(index) else None


def subsampled(data: Tensor, most: int = 200_000) -> Tensor:
    """A regular sub-sample of about `most` values, flat float32."""
    step = max(1, math.ceil((data.numel() / most) ** (1 / data.dim())))
    return (
        data[(slice(step // 2, None, step) if min(data.shape) > step else slice(None),) * data.dim()]
        .flatten()
        .float()
    )


def intensity_window(volume: Volume, inside: Tensor | None = None) -> tuple[float, float]:
    """The intensities that become 0 and 1: percentiles 0.5 and 99.5 of the foreground, and the background.

    inside: optional boolean tensor of the volume's shape that restricts the foreground.
    """
    values = subsampled(volume.data)
    around = background(volume)
    object_ = values
    if inside is not None and bool((kept := subsampled(inside) > 0).any()):
        object_ = values[kept]
    elif around is not None:
        object_ = values[(values - around.value).abs() > around.tolerance]
    if object_.numel() < 50:
        object_ = values
    low, high = np.percentile(array_from_tensor(object_).astype(np.float64), (0.5, 99.5))
    if around is not None:
        low, high = min(low, around.value), max(high, around.value)
    if not high > low:
        low, high = float(volume.data.min()), float(volume.data.max())
    return float(low), float(high)


def normalise(values: Tensor, window: tuple[float, float]) -> Tensor:
    """Intensities scaled so that `window` becomes 0..1, clipped; works in place on `values`."""
    low, high = window
    return values.sub_(low).mul_(1.0 / (high - low)).clamp_(0.0, 1.0)
