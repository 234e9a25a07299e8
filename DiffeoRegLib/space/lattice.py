"""Where the voxels of a block are: an affine map of their index, kept exact, plus a remainder.

The affine part stays a float64 matrix while a block of voxels goes through a transform; only what is
not affine is a float32 field. Every voxel keeps its place to about 1e-5 of a voxel, at float32 cost.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from DiffeoRegLib.errors import ShapeError
from DiffeoRegLib.space.grid import Grid, Matrix
from DiffeoRegLib.space.sample import array_from_tensor

CHUNK = 1 << 20
"""Points or voxels worked on at a time: bounds the temporaries to some ten megabytes each."""


@dataclass(frozen=True, eq=False)
class Lattice:
    """World positions of a block of voxels, as an affine map of their index plus a remainder.

    start: first index along tensor axis 0; shape: (*spatial), the block.  Position of the block's voxel
    x, RAS mm: world_from_index @ (x + start, 1) + residual_mm[x]; residual_mm: (1, 3, *shape) or None.
    extend: fields continue with their edge value instead of ending outside their grid.
    """

    shape: tuple[int, ...]
    start: int
    world_from_index: Matrix
    residual_mm: Tensor | None = None
    extend: bool = False

    def positions_vox(self, grid: Grid, dtype: torch.dtype = torch.float32) -> Tensor:
        """The positions in voxels of `grid`, (1, d, *shape)."""
        to_vox = grid.voxel_from_world[: grid.dim]
        out = self.affine_on_index(to_vox @ self.world_from_index, dtype)
        if self.residual_mm is not None:
            linear = torch.as_tensor(to_vox[:, :3].tolist(), dtype=dtype, device=self.residual_mm.device)
            out = out.to(linear.device) + torch.einsum("ac,nc...->na...", linear, self.residual_mm.to(dtype))
        return out

    def points_mm(self) -> Matrix:
        """The positions, float64 RAS mm, (n, 3)."""
        out = self.affine_on_index(self.world_from_index[:3], torch.float64)
        if self.residual_mm is not None:
            out = out + self.residual_mm.double().cpu()
        return np.asarray(array_from_tensor(out.reshape(3, -1)).T, dtype=np.float64)

    def moved(self, extra_mm: Tensor) -> Lattice:
        """The same block, displaced by (1, 3, *shape) mm."""
        total = extra_mm if self.residual_mm is None else self.residual_mm + extra_mm
        return replace(self, residual_mm=total)

    def affine_on_index(self, matrix: Matrix, dtype: torch.dtype) -> Tensor:
        """matrix (rows, 4) on every index: the axes are added in float64, then rounded once."""
        dim = len(self.shape)
        out = torch.as_tensor(matrix[:, 3].tolist(), dtype=torch.float64).reshape(1, -1, *[1] * dim)
        for axis, size in enumerate(self.shape):
            index = torch.arange(size, dtype=torch.float64) + (self.start if axis == 0 else 0)
            column = torch.as_tensor(matrix[:, axis].tolist(), dtype=torch.float64)
            step = column[:, None] * index
            out = out + step.reshape(1, -1, *[size if a == axis else 1 for a in range(dim)])
        return out.to(dtype)


def slabs(grid: Grid, chunk: int = CHUNK, *, extend: bool = False) -> Iterator[Lattice]:
    """A grid cut along axis 0 into blocks of at most about `chunk` voxels."""
    rows = max(1, chunk // max(1, int(np.prod(grid.shape[1:]))))
    for start in range(0, grid.shape[0], rows):
        shape = (min(rows, grid.shape[0] - start), *grid.shape[1:])
        yield Lattice(shape, start, grid.world_from_voxel, extend=extend)


def inside(position_vox: Tensor, shape: Sequence[int]) -> Tensor:
    """Which positions (N, d, *out) ITK counts as inside an image: -1/2 <= x < n - 1/2; bool (N, 1, *out)."""
    within = torch.ones_like(position_vox[:, :1], dtype=torch.bool)
    for axis, size in enumerate(shape):
        x = position_vox[:, axis : axis + 1]
        within &= (x >= -0.5) & (x < size - 0.5)
    return within


def as_points(points_mm: NDArray[np.float64]) -> Matrix:
    """Points as a float64 array (n, 3); raises ShapeError for any other shape."""
    points = np.asarray(points_mm, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] != 3:
        raise ShapeError(f"Points must be an array (n, 3) in RAS mm, got shape {points.shape}.")
    return points


def linear_at_points(values: Tensor, position: Tensor, *, slope: bool) -> tuple[Tensor, Tensor | None]:
    """Linear interpolation at points, float64, edge values repeated.

    values: (C, *shape); position: (d, n) voxels.  Returns (C, n), and d value / d position (C, d, n).
    """
    shape = values.shape[1:]
    dim = len(shape)
    low, weight, moving = [], [], []
    for axis, size in enumerate(shape):
        clamped = position[axis].clamp(0, size - 1)
        base = clamped.floor().clamp(max=max(size - 2, 0)).long()
        low.append(base)
        weight.append(clamped - base)
        moving.append((clamped == position[axis]) & (size > 1))
    flat = values.reshape(values.shape[0], -1)
    total = torch.zeros((values.shape[0], position.shape[1]), dtype=torch.float64)
    slopes = torch.zeros((values.shape[0], dim, position.shape[1]), dtype=torch.float64) if slope else None
    for corner in np.ndindex(*[2] * dim):
        index = torch.zeros_like(low[0])
        factors = []
        for axis, size in enumerate(shape):
            index = index * size + (low[axis] + corner[axis]).clamp(max=size - 1)
            factors.append(weight[axis] if corner[axis] else 1 - weight[axis])
        value = flat[:, index].double()
        total += value * torch.stack(factors).prod(0)
        for axis in range(dim if slopes is not None else 0):
            others = [f for a, f in enumerate(factors) if a != axis]
            rest = torch.stack(others).prod(0) * moving[axis]
            assert slopes is not None
            slopes[:, axis] += value * rest * (1.0 if corner[axis] else -1.0)
    return total, slopes
