"""Transforms in the patient: they map fixed points to moving points, RAS millimetres.

Two ways through each of them: `map_points` takes any points, in float64; `advance` carries a whole
block of voxels (space/lattice.py), which is what resampling uses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from DiffeoRegLib.errors import GeometryError, ShapeError
from DiffeoRegLib.space.grid import Grid, Matrix
from DiffeoRegLib.space.lattice import CHUNK, Lattice, as_points, inside, linear_at_points, slabs
from DiffeoRegLib.space.sample import array_from_tensor, sample, tensor_from_array


@runtime_checkable
class Transform(Protocol):
    """A map of the patient space: a point of the fixed image to the point of the moving image under it."""

    def map_points(self, points_mm: NDArray[np.float64]) -> Matrix:
        """Moving RAS mm points (n, 3) of fixed RAS mm points (n, 3)."""
        ...

    def inverse(self) -> Transform:
        """The map in the other direction."""
        ...

    def advance(self, lattice: Lattice) -> Lattice:
        """The positions after this map."""
        ...


@dataclass(frozen=True, eq=False)
class AffineTransform:
    """A linear map plus a shift.

    moving_from_fixed: float64 4x4, RAS mm.
    Raises GeometryError for a matrix that is not a finite, invertible affine map.
    """

    moving_from_fixed: Matrix

    def __post_init__(self) -> None:
        matrix = np.array(self.moving_from_fixed, dtype=np.float64)
        if (
            matrix.shape != (4, 4)
            or not np.isfinite(matrix).all()
            or not np.allclose(matrix[3], [0, 0, 0, 1])
        ):
            raise GeometryError("An affine transform needs a finite 4x4 matrix whose last row is 0 0 0 1.")
        if abs(np.linalg.det(matrix[:3, :3])) < 1e-9:
            raise GeometryError("The affine transform is singular: it flattens the image and has no inverse.")
        matrix.setflags(write=False)
        object.__setattr__(self, "moving_from_fixed", matrix)

    def map_points(self, points_mm: NDArray[np.float64]) -> Matrix:
        """Moving RAS mm points (n, 3) of fixed RAS mm points (n, 3)."""
        points = as_points(points_mm)
        return np.asarray(points @ self.moving_from_fixed[:3, :3].T + self.moving_from_fixed[:3, 3])

    def inverse(self) -> AffineTransform:
        """The inverse matrix."""
        return AffineTransform(np.asarray(np.linalg.inv(self.moving_from_fixed), dtype=np.float64))

    def advance(self, lattice: Lattice) -> Lattice:
        """The positions after this map."""
        residual = lattice.residual_mm
        if residual is not None:
            linear = torch.as_tensor(self.moving_from_fixed[:3, :3].tolist(), dtype=residual.dtype)
            residual = torch.einsum("ac,nc...->na...", linear.to(residual.device), residual)
        matrix = self.moving_from_fixed @ lattice.world_from_index
        return replace(lattice, world_from_index=matrix, residual_mm=residual)


@dataclass(frozen=True, eq=False)
class DisplacementTransform:
    """A displacement field: x goes to x + u(x), linear between voxels.

    u_mm: (1, 3, *grid.shape), RAS mm components.  Outside the grid u = 0, by ITK's rule: inside is
    -1/2 <= index < size - 1/2 on every axis, and the outer half voxel repeats the edge value. A 2D grid
    ignores the distance of a point from its plane.
    Raises ShapeError when field and grid disagree.
    """

    grid: Grid
    u_mm: Tensor

    def __post_init__(self) -> None:
        if tuple(self.u_mm.shape) != (1, 3, *self.grid.shape):
            raise ShapeError(f"Field {tuple(self.u_mm.shape)} does not fit grid {self.grid.shape}.")

    def map_points(self, points_mm: NDArray[np.float64]) -> Matrix:
        """Moving RAS mm points (n, 3) of fixed RAS mm points (n, 3)."""
        points = as_points(points_mm)
        out = points.copy()
        for at in range(0, len(points), CHUNK):
            block = slice(at, at + CHUNK)
            out[block] += self.displacement_and_gradient(points[block])[0]
        return out

    def inverse(self) -> Transform:
        """The inverse, solved point by point when it is used."""
        return InverseTransform(self)

    def advance(self, lattice: Lattice) -> Lattice:
        """The positions after this map."""
        position = lattice.positions_vox(self.grid, self.u_mm.dtype).to(self.u_mm.device)
        u = sample(self.u_mm, position, outside="border")
        if not lattice.extend:
            u = u * inside(position, self.grid.shape)
        return lattice.moved(u)

    def displacement_and_gradient(
        self, points_mm: NDArray[np.float64], *, gradient: bool = False
    ) -> tuple[Matrix, Matrix | None]:
        """Displacement (n, 3) mm at points, float64, and optionally its gradient (n, 3, 3), du_a / dx_b.

        The gradient is that of the linear interpolant, zero where the displacement is constant.
        """
        dim = self.grid.dim
        position = tensor_from_array(self.grid.index_from_world(points_mm), torch.float64).T
        within = inside(position[None], self.grid.shape)[0].double()
        value, slope = linear_at_points(self.u_mm[0].cpu(), position, slope=gradient)
        value = value * within
        if slope is None:
            return _array(value.T), None
        world = (slope * within).permute(2, 0, 1)
        inverse = self.grid.voxel_from_world[:dim, :3]
        return _array(value.T), np.asarray(_array(world) @ inverse)


@dataclass(frozen=True, eq=False)
class CompositeTransform:
    """Transforms one after the other; parts[0] acts first on the fixed point."""

    parts: tuple[Transform, ...]

    def __init__(self, parts: Sequence[Transform]) -> None:
        object.__setattr__(self, "parts", tuple(parts))

    def map_points(self, points_mm: NDArray[np.float64]) -> Matrix:
        """Moving RAS mm points (n, 3) of fixed RAS mm points (n, 3)."""
        points = as_points(points_mm).copy()
        for part in self.parts:
            points = part.map_points(points)
        return points

    def inverse(self) -> CompositeTransform:
        """The inverses of the parts in reverse order."""
        return CompositeTransform([part.inverse() for part in reversed(self.parts)])

    def advance(self, lattice: Lattice) -> Lattice:
        """The positions after this map."""
        for part in self.parts:
            lattice = part.advance(lattice)
        return lattice


@dataclass(frozen=True, eq=False)
class InverseTransform:
    """The inverse of a displacement field, found for each point by a damped Newton iteration.

    Where the field folds or ends abruptly there may be no solution; the point closest to one is given
    then, and `residual_mm` says how far off it is.
    """

    forward: DisplacementTransform
    tolerance_mm: float = 1e-6
    iterations: int = 60

    def map_points(self, points_mm: NDArray[np.float64]) -> Matrix:
        """Fixed RAS mm points (n, 3) of moving RAS mm points (n, 3)."""
        points = as_points(points_mm)
        blocks = [self._solve(points[at : at + CHUNK]) for at in range(0, len(points), CHUNK)]
        return np.concatenate(blocks) if blocks else points.copy()

    def residual_mm(self, points_mm: NDArray[np.float64]) -> Matrix:
        """|T(T^-1(y)) - y| for every point y, mm, (n,)."""
        points = as_points(points_mm)
        error = self.forward.map_points(self.map_points(points)) - points
        return np.asarray(np.linalg.norm(error, axis=1))

    def inverse(self) -> DisplacementTransform:
        """The forward field itself."""
        return self.forward

    def advance(self, lattice: Lattice) -> Lattice:
        """The positions after this map."""
        points = lattice.points_mm()
        moved = tensor_from_array((self.map_points(points) - points).T, torch.float32)
        return lattice.moved(moved.reshape(1, 3, *lattice.shape))

    def _solve(self, target: Matrix) -> Matrix:
        """x with x + u(x) = target: Newton's step, halved for each point whose error it does not reduce."""
        x = target.copy()
        error, gradient = self._error(x, target)
        norm = np.linalg.norm(error, axis=1)
        scale = np.ones(len(x))
        for _ in range(self.iterations):
            todo = np.flatnonzero((norm > self.tolerance_mm) & (scale > 1e-4))
            if not len(todo):
                break
            step = _newton_step(gradient[todo], error[todo])
            trial = x[todo] + scale[todo, None] * step
            error_t, gradient_t = self._error(trial, target[todo])
            norm_t = np.linalg.norm(error_t, axis=1)
            better = norm_t < norm[todo]
            won = todo[better]
            x[won], error[won], gradient[won] = trial[better], error_t[better], gradient_t[better]
            norm[won] = norm_t[better]
            scale[won] = np.minimum(1.0, 2 * scale[won])
            scale[todo[~better]] /= 2
        return x

    def _error(self, x: Matrix, target: Matrix) -> tuple[Matrix, Matrix]:
        """target - x - u(x) and the gradient of u."""
        u, gradient = self.forward.displacement_and_gradient(x, gradient=True)
        assert gradient is not None
        return target - x - u, gradient


def displacement_on(transform: Transform, grid: Grid, *, extend: bool = False) -> Tensor:
    """T(x) - x at every voxel of a grid, float32, (1, 3, *grid.shape), RAS mm.

    extend: fields inside the transform continue with their edge value outside their grids.
    """
    out = torch.empty((1, 3, *grid.shape))
    for block in slabs(grid, extend=extend):
        moved = transform.advance(block)
        change = replace(moved, world_from_index=moved.world_from_index - grid.world_from_voxel)
        values = change.affine_on_index(change.world_from_index[:3], torch.float64)
        if moved.residual_mm is not None:
            values = values + moved.residual_mm.cpu()
        out[:, :, block.start : block.start + block.shape[0]] = values.float()
    return out


def _array(tensor: Tensor) -> Matrix:
    return np.asarray(array_from_tensor(tensor), dtype=np.float64)


def _newton_step(gradient: Matrix, error: Matrix) -> Matrix:
    """(I + grad u)^-1 error; the plain error (a fixed-point step) where the matrix is near folding."""
    matrix = gradient + np.eye(3)
    good = np.linalg.det(matrix) > 0.05
    step = error.copy()
    step[good] = np.linalg.solve(matrix[good], error[good][..., None])[..., 0]
    return step
