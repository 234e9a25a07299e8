"""A displacement field between its nodes as VTK's cubic grid transform reads it, which is what Slicer shows.

Catmull-Rom splines; the node missing beyond an end is continued by the parabola through the last three,
an axis of two nodes is linear, and outside the nodes the edge value is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from DiffeoRegLib.space.filters import Banded, apply_axes
from DiffeoRegLib.space.grid import Grid, Matrix
from DiffeoRegLib.space.lattice import Lattice
from DiffeoRegLib.space.sample import array_from_tensor, tensor_from_array
from DiffeoRegLib.space.transform import DisplacementTransform

ALIGNED_VOX = 1e-4
"""Two lattices count as parallel when no voxel leaves its row by more than this."""
POINTS_PER_CHUNK = 1 << 17


@dataclass(frozen=True)
class Taps:
    """The nodes around positions on one axis: indices, weights and slopes (d weight / d position), (4, n)."""

    index: Tensor
    weight: Tensor
    slope: Tensor


@dataclass(frozen=True, eq=False)
class CubicField(DisplacementTransform):
    """A displacement field, cubic between nodes, the edge value outside; its outermost layer should be 0."""

    def advance(self, lattice: Lattice) -> Lattice:
        """The positions after this map."""
        rows = self._rows(lattice)
        if rows is not None:
            return lattice.moved(self._along_axes(rows))
        position = lattice.positions_vox(self.grid).to(self.u_mm.device)
        flat = position.reshape(self.grid.dim, -1)
        parts = [
            self._at(block, slope=False)[0].float() for block in torch.split(flat, POINTS_PER_CHUNK, dim=1)
        ]
        return lattice.moved(torch.cat(parts, dim=1).reshape(1, 3, *lattice.shape))

    def displacement_and_gradient(
        self, points_mm: NDArray[np.float64], *, gradient: bool = False
    ) -> tuple[Matrix, Matrix | None]:
        """Displacement (n, 3) mm at points, float64, and optionally its gradient (n, 3, 3), du_a / dx_b."""
        position = tensor_from_array(self.grid.index_from_world(points_mm), torch.float64).T
        value, slopes = self._at(position, slope=gradient)
        displacement = np.asarray(array_from_tensor(value.T), dtype=np.float64)
        if slopes is None:
            return displacement, None
        in_voxels = np.asarray(array_from_tensor(slopes.permute(2, 0, 1)), dtype=np.float64)
        return displacement, np.asarray(in_voxels @ self.grid.voxel_from_world[: self.grid.dim, :3])

    def _at(self, position: Tensor, *, slope: bool) -> tuple[Tensor, Tensor | None]:
        """Values (3, n) at positions (d, n), and d value / d position (3, d, n)."""
        shape = self.grid.shape
        taps = [taps_of(x, size) for x, size in zip(position, shape, strict=True)]
        flat = self.u_mm.reshape(3, -1)
        value = position.new_zeros((3, position.shape[1]))
        slopes = position.new_zeros((3, len(shape), position.shape[1])) if slope else None
        for corner in product(*[(1,) if size == 1 else range(4) for size in shape]):
            index = torch.zeros_like(taps[0].index[0])
            for tap, at, size in zip(taps, corner, shape, strict=True):
                index = index * size + tap.index[at]
            node = flat[:, index].to(position.dtype)
            weights = [tap.weight[at] for tap, at in zip(taps, corner, strict=True)]
            value += node * torch.stack(weights).prod(0)
            if slopes is not None:
                for axis, (tap, at) in enumerate(zip(taps, corner, strict=True)):
                    rest = [tap.slope[at], *weights[:axis], *weights[axis + 1 :]]
                    slopes[:, axis] += node * torch.stack(rest).prod(0)
        return value, slopes

    def _rows(self, lattice: Lattice) -> list[Tensor] | None:
        """Positions along every axis (float64) where the lattice runs along the field's axes, else None."""
        dim = self.grid.dim
        if lattice.residual_mm is not None or len(lattice.shape) != dim:
            return None
        matrix = (self.grid.voxel_from_world @ lattice.world_from_index)[:dim]
        linear, size = matrix[:, :dim], np.array(lattice.shape)
        across = linear - np.diag(np.diag(linear))
        if np.abs(across * (size + lattice.start)).max() > ALIGNED_VOX:
            return None
        start = [lattice.start, *[0] * (dim - 1)]
        return [
            (torch.arange(n, dtype=torch.float64) + first) * linear[axis, axis] + matrix[axis, 3]
            for axis, (n, first) in enumerate(zip(lattice.shape, start, strict=True))
        ]

    def _along_axes(self, rows: list[Tensor]) -> Tensor:
        """Values (1, 3, *spatial) at all crossings of positions per axis, one product per axis."""
        u, matrices = self.u_mm, []
        for axis, (position, size) in enumerate(zip(rows, self.grid.shape, strict=True)):
            low, high = _needed(position, size)
            u = u.narrow(2 + axis, low, high - low)
            matrices.append(Banded.from_dense(cubic_matrix(position, size)[:, low:high].to(u)))
        return apply_axes(u, matrices)


def taps_of(x: Tensor, size: int) -> Taps:
    """The four nodes around positions (n,) on an axis of `size` nodes."""
    clamped = x.clamp(0, size - 1)
    base = clamped.floor().clamp(max=max(size - 2, 0))
    t = clamped - base
    weight, slope = _linear(t) if size < 3 else _cubic(t, base == 0, base == size - 2)
    index = torch.stack([(base.long() + step).clamp(0, size - 1) for step in range(-1, 3)])
    return Taps(index, weight, slope * ((clamped == x) & (size > 1)))


def cubic_matrix(position: Tensor, size: int) -> Tensor:
    """Dense float64 (n, size): row i reads an axis of `size` nodes at position i."""
    taps = taps_of(position, size)
    out = torch.zeros((len(position), size), dtype=torch.float64)
    out.scatter_add_(1, taps.index.T, taps.weight.T)
    return out


def as_volume(field: CubicField, axis: int | None) -> CubicField:
    """The field of a single slice on a 3D grid; axis: the one of a single voxel, None for a field in 3D."""
    if axis is None or field.grid.dim == 3:
        return field
    return CubicField(thick_grid(field.grid, axis), field.u_mm.unsqueeze(2 + axis))


def thick_grid(grid: Grid, axis: int) -> Grid:
    """A 2D grid as the 3D grid that has one voxel along `axis`."""
    columns = [0, 1]
    columns.insert(axis, 2)
    shape = list(grid.shape)
    shape.insert(axis, 1)
    return Grid(tuple(shape), grid.world_from_voxel[:, [*columns, 3]])


def _needed(position: Tensor, size: int) -> tuple[int, int]:
    """First and one past the last node that positions on an axis read."""
    index = taps_of(position[[0, -1]], size).index
    return int(index.min()), int(index.max()) + 1


def _linear(t: Tensor) -> tuple[Tensor, Tensor]:
    zero, one = torch.zeros_like(t), torch.ones_like(t)
    return torch.stack([zero, 1 - t, t, zero]), torch.stack([zero, -one, one, zero])


def _cubic(t: Tensor, first: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
    """Weights and slopes of Catmull-Rom, `first` and `last` marking the cells that lack a neighbour."""
    weight = torch.stack(
        [
            ((2 - t) * t - 1) * t / 2,
            ((3 * t - 5) * t * t + 2) / 2,
            ((4 - 3 * t) * t + 1) * t / 2,
            (t - 1) * t * t / 2,
        ]
    )
    slope = torch.stack(
        [
            ((4 - 3 * t) * t - 1) / 2,
            (9 * t - 10) * t / 2,
            ((8 - 9 * t) * t + 1) / 2,
            (3 * t - 2) * t / 2,
        ]
    )
    return _without_ghosts(weight, first, last), _without_ghosts(slope, first, last)


def _without_ghosts(weight: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """Weights that give the share of a missing outer node to the three that continue to it."""
    rows = list(weight)
    for ghost, nodes in _missing(first, last):
        share = torch.where(ghost[1], rows[ghost[0]], 0)
        for node, factor in zip(nodes, (3, -3, 1), strict=True):
            rows[node] = rows[node] + factor * share
        rows[ghost[0]] = rows[ghost[0]] - share
    return torch.stack(rows)


def _missing(first: Tensor, last: Tensor) -> Iterator[tuple[tuple[int, Tensor], tuple[int, int, int]]]:
    """The tap that is missing, where, and the three that stand in for it, nearest first."""
    yield (0, first), (1, 2, 3)
    yield (3, last), (2, 1, 0)
