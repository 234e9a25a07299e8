"""A voxel grid and its place in the patient: the only carrier of geometry in the engine.

World is RAS millimetres. Voxel indices are in tensor axis order, (k, j, i) for a volume, so that a
position in a tensor needs no reordering; see DESIGN, conventions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from DiffeoRegLib.errors import GeometryError

Matrix = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Grid:
    """Shape of a voxel grid and its affine to the patient.

    shape: voxels per tensor axis, d = 2 or 3 entries.
    world_from_voxel: float64 4x4, RAS mm from (k, j, i, 1). A 2D grid indexes (row, column, 0, 1);
    its third column is the slice step (normal times thickness).
    Raises GeometryError for an empty shape or a singular or non-finite matrix.
    """

    shape: tuple[int, ...]
    world_from_voxel: Matrix

    def __post_init__(self) -> None:
        shape = tuple(int(n) for n in self.shape)
        matrix = np.array(self.world_from_voxel, dtype=np.float64)
        if len(shape) not in (2, 3) or min(shape) < 1:
            raise GeometryError(f"A grid needs two or three axes of at least one voxel, not {shape}.")
        if matrix.shape != (4, 4) or not np.isfinite(matrix).all():
            raise GeometryError("The voxel-to-patient matrix must be a finite 4x4 matrix.")
        size = np.linalg.norm(matrix[:3, :3], axis=0)
        if size.min() <= 0 or abs(np.linalg.det(matrix[:3, :3] / np.maximum(size, 1e-300))) < 1e-6:
            raise GeometryError("The voxel-to-patient matrix is singular: two image axes point the same way.")
        matrix.setflags(write=False)
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "world_from_voxel", matrix)

    @property
    def dim(self) -> int:
        """Number of spatial axes, 2 or 3."""
        return len(self.shape)

    @property
    def spacing(self) -> tuple[float, ...]:
        """Length of a voxel step along each tensor axis, mm."""
        return tuple(float(s) for s in np.linalg.norm(self.world_from_voxel[:3, : self.dim], axis=0))

    @property
    def extent_mm(self) -> tuple[float, ...]:
        """Length of the field of view (outer voxel faces) along each tensor axis, mm."""
        return tuple(n * s for n, s in zip(self.shape, self.spacing, strict=True))

    @property
    def voxel_from_world(self) -> Matrix:
        """Inverse of world_from_voxel, float64 4x4."""
        return np.asarray(np.linalg.inv(self.world_from_voxel), dtype=np.float64)

    @property
    def voxel_count(self) -> int:
        """Number of voxels."""
        return int(np.prod(self.shape))

    @property
    def center_mm(self) -> Matrix:
        """Centre of the field of view, RAS mm, (3,)."""
        return self.world_from_index((np.array(self.shape) - 1) / 2)

    def world_from_index(self, index_vox: NDArray[np.float64] | Sequence[float]) -> Matrix:
        """RAS mm positions (..., 3) of voxel positions (..., d)."""
        index = np.asarray(index_vox, dtype=np.float64)
        linear = self.world_from_voxel[:3, : self.dim]
        return np.asarray(index @ linear.T + self.world_from_voxel[:3, 3], dtype=np.float64)

    def index_from_world(self, points_mm: NDArray[np.float64] | Sequence[float]) -> Matrix:
        """Voxel positions (..., d) of RAS mm positions (..., 3); a 2D grid drops the way off its plane."""
        points = np.asarray(points_mm, dtype=np.float64)
        inverse = self.voxel_from_world
        return np.asarray((points @ inverse[:3, :3].T + inverse[:3, 3])[..., : self.dim], dtype=np.float64)

    def corners_mm(self) -> Matrix:
        """Centres of the corner voxels, RAS mm, (2**d, 3)."""
        ends = np.stack(np.meshgrid(*[(0.0, n - 1.0) for n in self.shape], indexing="ij"), -1)
        return self.world_from_index(ends.reshape(-1, self.dim))

    def coarsened(self, strides: Sequence[int]) -> Grid:
        """Grid whose voxel j of stride s sits at s(j + 1/2) - 1/2 of this one, ceil(n/s) long."""
        shape = tuple(-(-n // s) for n, s in zip(self.shape, strides, strict=True))
        return self._moved(shape, strides, [(s - 1) / 2 for s in strides])

    def refined(self, factors: Sequence[int]) -> Grid:
        """Grid with `factors` times as many voxels in the same field of view; undoes an even `coarsened`."""
        shape = tuple(n * f for n, f in zip(self.shape, factors, strict=True))
        return self._moved(shape, [1 / f for f in factors], [(1 / f - 1) / 2 for f in factors])

    def cropped(self, start: Sequence[int], stop: Sequence[int]) -> Grid:
        """Sub-grid of voxels start <= index < stop; negative starts and late stops pad."""
        shape = tuple(b - a for a, b in zip(start, stop, strict=True))
        return self._moved(shape, [1] * self.dim, list(start))

    def padded(self, before: Sequence[int], after: Sequence[int]) -> Grid:
        """Grid with voxels added on both ends of each axis."""
        stop = [n + a for n, a in zip(self.shape, after, strict=True)]
        return self.cropped([-b for b in before], stop)

    def same_as(self, other: Grid, tolerance: float = 1e-4) -> bool:
        """True if both grids have one shape and their corners lie within `tolerance` voxels of each other."""
        if self.shape != other.shape:
            return False
        distance_mm = np.linalg.norm(self.corners_mm() - other.corners_mm(), axis=1).max()
        return bool(distance_mm <= tolerance * min(self.spacing))

    def _moved(self, shape: tuple[int, ...], steps: Sequence[float], start: Sequence[float]) -> Grid:
        """Grid whose voxel j sits at start + steps * j of this one."""
        step = np.eye(4)
        step[range(self.dim), range(self.dim)] = steps
        step[: self.dim, 3] = start
        return Grid(shape, self.world_from_voxel @ step)


def index_affine(target: Grid, source: Grid, target_from_source_world: Matrix | None = None) -> Matrix:
    """Matrix (d, d+1) that maps voxel positions of `source` to voxel positions of `target`.

    target_from_source_world: optional RAS mm 4x4 applied between the two.
    """
    middle = np.eye(4) if target_from_source_world is None else target_from_source_world
    full = target.voxel_from_world @ middle @ source.world_from_voxel
    return np.asarray(full[: target.dim][:, [*range(source.dim), 3]], dtype=np.float64)
