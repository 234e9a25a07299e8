"""Displacement fields: composition, units, moving between grids, Jacobian determinants.

A field `u_vox` is (N, d, *spatial), d = 2 or 3; component a moves along tensor axis a, in voxels of its
own grid.  The map is x -> x + u(x); between voxels u is multilinear, outside it repeats its border.
Every rule of resizing is here: levels are cell-centred, so coarse voxel j of stride s sits at
s(j + 1/2) - 1/2 of the fine grid.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from DiffeoRegLib.errors import GeometryError, ShapeError
from DiffeoRegLib.space.filters import apply_axes, linear_resize_matrix
from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.space.jacobian import (
    corner_determinants,
    folded_percent,
    jacobian_determinant,
    log_jacobian,
    minimum_cell_bound,
    minimum_corner_determinant,
    require_field,
    sd_log_jacobian,
)
from DiffeoRegLib.space.sample import warp

__all__ = [
    "change_grid",
    "compose",
    "corner_determinants",
    "downsample_field",
    "downsample_image",
    "folded_percent",
    "jacobian_determinant",
    "log_jacobian",
    "minimum_cell_bound",
    "minimum_corner_determinant",
    "require_field",
    "rescale_field",
    "sd_log_jacobian",
    "u_mm_from_vox",
    "u_vox_from_mm",
    "upsample_field",
    "upsample_image",
]


def compose(u_outer_vox: Tensor, u_inner_vox: Tensor) -> Tensor:
    """Displacement of x -> outer(inner(x)): u_inner(x) + u_outer(x + u_inner(x)).

    Both (N or 1, d, *spatial) on one voxel grid, voxels.  Raises ShapeError for shapes that do not fit.
    """
    require_field(u_outer_vox)
    require_field(u_inner_vox)
    if u_outer_vox.shape[1:] != u_inner_vox.shape[1:]:
        raise ShapeError(
            "Fields on different grids cannot be composed: "
            f"{tuple(u_outer_vox.shape)} and {tuple(u_inner_vox.shape)}."
        )
    outer = u_outer_vox.expand(max(len(u_outer_vox), len(u_inner_vox)), *u_outer_vox.shape[1:])
    moved = warp(outer, u_inner_vox)
    if torch.is_grad_enabled() and moved.requires_grad:
        return moved + u_inner_vox
    return moved.add_(u_inner_vox)


def _components(values: Sequence[float], like: Tensor) -> Tensor:
    """One factor per component, shaped to multiply a field."""
    return like.new_tensor(list(values)).view(1, -1, *[1] * (like.dim() - 2))


def rescale_field(u_vox: Tensor, from_strides: Sequence[float], to_strides: Sequence[float]) -> Tensor:
    """The same vectors counted in voxels of another stride: u * from / to, per component."""
    return u_vox * _components([a / b for a, b in zip(from_strides, to_strides, strict=True)], u_vox)


def upsample_image(image: Tensor, strides: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Linear, cell-centred enlargement: fine voxel i reads coarse (i + 1/2)/s - 1/2, border repeated.

    image: (N, C, *coarse).  Returns (N, C, *shape); what overhangs `shape` is cropped.
    Raises ShapeError unless the coarse grid is the one `shape` has at these strides.
    """
    expected = tuple(-(-n // s) for n, s in zip(shape, strides, strict=True))
    if tuple(image.shape[2:]) != expected:
        raise ShapeError(
            f"A grid of {tuple(shape)} has {expected} voxels at strides {tuple(strides)}, "
            f"not {tuple(image.shape[2:])}."
        )
    matrices = [
        None if s == 1 else linear_resize_matrix(n, m, 1 / s, 0.5 / s - 0.5, image.dtype, image.device)
        for n, m, s in zip(shape, expected, strides, strict=True)
    ]
    return apply_axes(image, matrices)


def upsample_field(u_vox: Tensor, strides: Sequence[int], shape: Sequence[int]) -> Tensor:
    """`upsample_image` of a field, its vectors in voxels of the fine grid (component a times s_a)."""
    require_field(u_vox)
    return upsample_image(rescale_field(u_vox, strides, [1.0] * len(strides)), strides, shape)


def downsample_image(image: Tensor, strides: Sequence[int]) -> Tensor:
    """Block means, cell-centred; an incomplete last block is filled by repeating the border.

    image: (N, C, *shape).  Returns (N, C, *ceil(shape / strides)).
    Raises ShapeError for a wrong number of strides.
    """
    shape = image.shape[2:]
    if len(strides) != len(shape) or len(shape) not in (2, 3):
        raise ShapeError(f"{len(strides)} strides do not fit a tensor of shape {tuple(image.shape)}.")
    missing = [-n % s for n, s in zip(shape, strides, strict=True)]
    if any(missing):
        sides = [side for m in reversed(missing) for side in (0, m)]
        image = functional.pad(image, sides, mode="replicate")
    pool = functional.avg_pool2d if len(shape) == 2 else functional.avg_pool3d
    return pool(image, tuple(strides))


def downsample_field(u_vox: Tensor, strides: Sequence[int]) -> Tensor:
    """`downsample_image` of a field, its vectors in voxels of the coarse grid (component a over s_a)."""
    require_field(u_vox)
    return rescale_field(downsample_image(u_vox, strides), [1.0] * len(strides), strides)


def change_grid(u_vox: Tensor, from_grid: Grid, to_grid: Grid) -> Tensor:
    """A field read at the voxels of another grid with the same axes, in voxels of that grid.

    u_vox: (N, d, *from_grid.shape).  Returns (N, d, *to_grid.shape); linear, border repeated outside.
    Raises GeometryError when the axes of the grids differ in direction, ShapeError for a field of
    another grid.
    """
    require_field(u_vox)
    if tuple(u_vox.shape[2:]) != from_grid.shape:
        raise ShapeError(f"The field {tuple(u_vox.shape)} is not one of the grid {from_grid.shape}.")
    step, start = _aligned(from_grid, to_grid)
    matrices = [
        linear_resize_matrix(rows, columns, a, b, u_vox.dtype, u_vox.device)
        for rows, columns, a, b in zip(to_grid.shape, from_grid.shape, step, start, strict=True)
    ]
    return apply_axes(rescale_field(u_vox, [1.0] * len(step), step), matrices)


def _aligned(from_grid: Grid, to_grid: Grid) -> tuple[list[float], list[float]]:
    """Per axis: from-voxels per to-voxel and the position of the first voxel of `to_grid`."""
    dim = from_grid.dim
    if to_grid.dim != dim:
        raise GeometryError(f"A {dim}D field cannot be read on a {to_grid.dim}D grid.")
    matrix = from_grid.voxel_from_world @ to_grid.world_from_voxel
    linear = matrix[:dim, :dim]
    steps = linear.diagonal()
    across = abs(linear - np.diag(steps))
    if steps.min() <= 0 or across.max() > 1e-4 * steps.max():
        raise GeometryError("The two grids have different axis directions; resample through world positions.")
    start = matrix[:dim, 3]
    if dim == 2 and abs(matrix[2, 3]) > 0.5:
        raise GeometryError("The two slices lie in different planes.")
    return [float(v) for v in steps], [float(v) for v in start]


def u_mm_from_vox(u_vox: Tensor, grid: Grid) -> Tensor:
    """World vectors of a voxel field: (N, d, *shape) voxels -> (N, 3, *shape) RAS mm."""
    dim = require_field(u_vox)
    matrix = torch.tensor(grid.world_from_voxel[:3, :dim].tolist(), dtype=u_vox.dtype, device=u_vox.device)
    return torch.einsum("ab,nb...->na...", matrix, u_vox)


def u_vox_from_mm(u_mm: Tensor, grid: Grid) -> Tensor:
    """Voxel field of world vectors: (N, 3, *shape) RAS mm -> (N, d, *shape) voxels.

    A 2D grid drops what leaves its plane.  Raises ShapeError unless there are three components on the
    shape of the grid.
    """
    if u_mm.shape[1] != 3 or tuple(u_mm.shape[2:]) != grid.shape:
        raise ShapeError(
            f"World vectors on a grid of {grid.shape} are (N, 3, *shape), not {tuple(u_mm.shape)}."
        )
    matrix = torch.tensor(
        grid.voxel_from_world[: grid.dim, :3].tolist(), dtype=u_mm.dtype, device=u_mm.device
    )
    return torch.einsum("ab,nb...->na...", matrix, u_mm)
