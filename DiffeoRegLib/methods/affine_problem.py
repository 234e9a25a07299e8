"""One level of linear alignment: sampled fixed points, a moving image, the similarity of many candidates."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from DiffeoRegLib.space.grid import Grid, Matrix
from DiffeoRegLib.space.sample import Outside, array_from_tensor, sample, tensor_from_array
from DiffeoRegLib.volumes.intensity import (
    CUT_PERCENT,
    background,
    block_strides,
    intensity_window,
    normalise,
    reduced,
    resample_affine,
    smooth,
)
from DiffeoRegLib.volumes.volume import Volume

BINS = 32
"""Intensity bins per image of the joint histogram."""
LEAST_OVERLAP = 0.5
"""Share of the fixed points inside the moving field of view below which a candidate is penalised."""


@dataclass(frozen=True, eq=False)
class Side:
    """One image as alignment sees it: in [0, 1], with the value that goes on beyond its field of view.

    image: float32 values in [0, 1].  weight: its mask on the image's grid (1 = counts), or None.
    around: the normalised background value, or None where nothing is known outside the field of view.
    """

    image: Volume
    weight: Volume | None
    around: float | None


def make_side(image: Volume, mask: Volume | None, exclude: bool) -> Side:
    """An image scaled to [0, 1] with its mask brought to its grid."""
    weight = None
    if mask is not None:
        marked = Volume((mask.data != 0).to(torch.float32), mask.grid)
        value = resample_affine(marked, image.grid, outside="zeros")[0, 0]
        weight = Volume(1.0 - value if exclude else value, image.grid)
    window = intensity_window(image, None if weight is None else weight.data > 0.5)
    data = normalise(image.data.to(torch.float32, copy=True), window)
    constant = background(image)
    around = None
    if constant is not None and constant.border_percent <= CUT_PERCENT:
        around = min(max((constant.value - window[0]) / (window[1] - window[0]), 0.0), 1.0)
    return Side(Volume(data, image.grid, image.name), weight, around)


@dataclass(frozen=True, eq=False)
class Level:
    """Fixed points with values, and the moving image they are compared with, at one resolution.

    points_mm: (n, d) in the fixed frame; bins: (n, BINS) soft membership of the fixed values;
    values: (n,) fixed values; moving: (1, 1, *spatial), minus its background if it has one;
    moving_index: (d, d+1), voxel position of a point of the moving frame; around, fixed_around: see Side.
    """

    points_mm: Tensor
    values: Tensor
    bins: Tensor
    moving: Tensor
    moving_weight: Tensor | None
    moving_index: Tensor
    around: float | None
    fixed_around: float | None
    spacing: float


def make_level(
    fixed: Side,
    moving: Side,
    world_from_fixed_frame: Matrix,
    world_from_moving_frame: Matrix,
    spacing: float,
    most_points: int,
    seed: int,
) -> Level:
    """Block means of both images at about `spacing` mm; at most `most_points` fixed points, by `seed`."""
    small = reduced(fixed.image, block_strides(fixed.image.grid, spacing))
    index = _chosen(fixed, small, most_points, seed)
    values = small.data[tuple(index.T)]
    dim = small.grid.dim
    world = small.grid.world_from_index(array_from_tensor(index).astype(np.float64))
    inverse = np.linalg.inv(world_from_fixed_frame)
    points = (world @ inverse[:3, :3].T + inverse[:3, 3])[:, :dim]
    other = reduced(moving.image, block_strides(moving.image.grid, spacing))
    data = smooth(other.data[None, None] - (moving.around or 0.0), [0.5] * dim)
    weight = None
    if moving.weight is not None:
        weight = reduced(moving.weight, block_strides(moving.image.grid, spacing)).data[None, None]
    matrix = (other.grid.voxel_from_world @ world_from_moving_frame)[:dim][:, [*range(dim), 3]]
    return Level(
        points_mm=tensor_from_array(points, torch.float32),
        values=values,
        bins=soft_bins(values),
        moving=data,
        moving_weight=weight,
        moving_index=tensor_from_array(matrix, torch.float32),
        around=moving.around,
        fixed_around=fixed.around,
        spacing=spacing,
    )


def _chosen(fixed: Side, small: Volume, most_points: int, seed: int) -> Tensor:
    """Indices (n, d) of the fixed blocks that take part: the object's box or the mask, thinned at random."""
    if fixed.weight is not None:
        strides = [round(a / b) for a, b in zip(small.grid.spacing, fixed.image.grid.spacing, strict=True)]
        keep = reduced(fixed.weight, strides).data > 0.5
        if not bool(keep.any()):
            keep = torch.ones_like(keep)
    else:
        keep = torch.ones(small.data.shape, dtype=torch.bool)
        if fixed.around is not None:
            inside = ((small.data - fixed.around).abs() > 0.04).nonzero()
            if len(inside):
                keep[:] = False
                keep[_box_slices(inside, small.grid)] = True
    index = keep.nonzero()
    if len(index) > most_points:
        generator = torch.Generator().manual_seed(seed)
        index = index[torch.randperm(len(index), generator=generator)[:most_points]]
    return index


def _box_slices(index: Tensor, grid: Grid) -> tuple[slice, ...]:
    """The bounding box of voxel indices, widened by a tenth."""
    low, high = index.min(dim=0).values.tolist(), index.max(dim=0).values.tolist()
    wider = [2 + round(0.1 * (b - a)) for a, b in zip(low, high, strict=True)]
    return tuple(
        slice(max(0, a - w), min(n, b + w + 1))
        for a, b, w, n in zip(low, high, wider, grid.shape, strict=True)
    )


def soft_bins(values: Tensor) -> Tensor:
    """Membership (..., BINS) of values in [0, 1]: linear between the two nearest bin centres, sums to 1."""
    centres = torch.arange(BINS, dtype=values.dtype, device=values.device)
    return torch.relu(1.0 - (values[..., None] * (BINS - 1) - centres).abs())


def moved_values(level: Level, linear: Tensor, shift_mm: Tensor) -> tuple[Tensor, Tensor | None]:
    """Moving values (k, n) at the fixed points under k candidates, and their weights (None = all 1).

    linear: (k, d, d); shift_mm: (k, d): moving-frame point = linear @ fixed-frame point + shift.
    """
    dim = level.points_mm.shape[1]
    to_index, offset = level.moving_index[:, :dim], level.moving_index[:, dim]
    matrix = to_index @ linear
    position = matrix @ level.points_mm.T + (shift_mm @ to_index.T + offset)[..., None]
    count, points = position.shape[0], position.shape[2]
    flat = position.permute(1, 0, 2).reshape(1, dim, count * points)
    outside: Outside = "border" if level.around is None else "zeros"
    moved = sample(level.moving, flat, outside=outside).reshape(count, points)
    if level.around is not None:
        moved = moved + level.around
    weight = None
    if level.around is None:
        weight = torch.ones_like(moved)
        for axis, size in enumerate(level.moving.shape[2:]):
            along = position[:, axis]
            weight = weight * (along + 1).clamp(0, 1) * (size - along).clamp(0, 1)
    if level.moving_weight is not None:
        mask = sample(level.moving_weight, flat, outside="zeros").reshape(count, points)
        weight = mask if weight is None else weight * mask
    return moved, weight


def loss(level: Level, linear: Tensor, shift_mm: Tensor, metric: str = "nmi") -> Tensor:
    """Dissimilarity (k,) of k candidates, lower is better; few overlapping points are penalised.

    metric: `nmi` (Studholme et al., Pattern Recognition 1999, soft bins) or `ncc` (correlation).
    """
    moved, weight = moved_values(level, linear, shift_mm)
    value = -_nmi(level, moved, weight) if metric == "nmi" else -_ncc(level, moved, weight)
    if weight is not None:
        missing = torch.relu(LEAST_OVERLAP - weight.mean(dim=1)) / LEAST_OVERLAP
        value = value + missing * missing
    return value


def _nmi(level: Level, moved: Tensor, weight: Tensor | None) -> Tensor:
    """Normalised mutual information minus 1 (0 = independent), (k,)."""
    membership = soft_bins(moved.clamp(0, 1))
    if weight is not None:
        membership = membership * weight[..., None]
    joint = level.bins.T @ membership
    joint = joint / joint.sum(dim=(1, 2), keepdim=True).clamp_min(1e-6)
    both = _entropy(joint.flatten(1))
    return (_entropy(joint.sum(dim=1)) + _entropy(joint.sum(dim=2))) / both.clamp_min(1e-6) - 1.0


def _entropy(p: Tensor) -> Tensor:
    return -(p * torch.log(p.clamp_min(1e-12))).sum(dim=1)


def _ncc(level: Level, moved: Tensor, weight: Tensor | None) -> Tensor:
    """Correlation coefficient, (k,)."""
    w = torch.ones_like(moved) if weight is None else weight
    total = w.sum(dim=1, keepdim=True).clamp_min(1e-6)
    f = level.values - (w * level.values).sum(dim=1, keepdim=True) / total
    m = moved - (w * moved).sum(dim=1, keepdim=True) / total
    cross = (w * f * m).sum(dim=1)
    return cross / ((w * f * f).sum(dim=1) * (w * m * m).sum(dim=1)).clamp_min(1e-12).sqrt()


def rotation_set(dim: int, angles_degrees: tuple[float, ...] = (20.0, 40.0)) -> NDArray[np.float64]:
    """Rotations (k, d, d) around the identity, itself first: each angle about each of 26 directions."""
    rotations = [np.eye(dim)]
    if dim == 2:
        for degrees in (10.0, 20.0, 30.0, 40.0, 50.0):
            for sign in (1, -1):
                a = math.radians(sign * degrees)
                rotations.append(np.array([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]]))
        return np.stack(rotations)
    steps = np.array(
        [(x, y, z) for x in (-1, 0, 1) for y in (-1, 0, 1) for z in (-1, 0, 1) if x or y or z], float
    )
    for axis in steps / np.linalg.norm(steps, axis=1, keepdims=True):
        cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
        for degrees in angles_degrees:
            a = math.radians(degrees)
            rotations.append(np.eye(3) + math.sin(a) * cross + (1 - math.cos(a)) * cross @ cross)
    return np.stack(rotations)
