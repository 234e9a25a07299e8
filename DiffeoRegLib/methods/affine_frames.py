"""Where linear alignment is expressed: mm axes through the middle of each image (2D: in its plane)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from DiffeoRegLib.methods.affine_problem import Side
from DiffeoRegLib.space.grid import Grid, Matrix
from DiffeoRegLib.space.sample import array_from_tensor
from DiffeoRegLib.volumes.intensity import block_strides, reduced

MASS_BLOCKS = 56
"""Blocks along the longest extent when a centre of mass is taken."""


@dataclass(frozen=True, eq=False)
class Frames:
    """Where linear maps are expressed: right-angled mm axes through the middle of each image.

    world_from_fixed, world_from_moving: rigid 4x4; for 2D the first two axes lie in the image planes.
    radius_mm: typical distance of the object from the centre; makes all parameters displacements.
    """

    world_from_fixed: Matrix
    world_from_moving: Matrix
    radius_mm: float
    dim: int

    def matrix(self, linear: NDArray[np.float64], shift_mm: NDArray[np.float64]) -> Matrix:
        """RAS mm 4x4 of moving-frame point = linear @ fixed-frame point + shift."""
        middle = np.eye(4)
        middle[: self.dim, : self.dim], middle[: self.dim, 3] = linear, shift_mm
        return np.asarray(self.world_from_moving @ middle @ np.linalg.inv(self.world_from_fixed))

    def parts(self, matrix: Matrix) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Linear part (d, d) and shift (d,) of a RAS mm 4x4 between the frames."""
        middle = np.linalg.inv(self.world_from_moving) @ matrix @ self.world_from_fixed
        return middle[: self.dim, : self.dim], middle[: self.dim, 3]


def make_frames(fixed: Side, moving: Side) -> Frames:
    dim = fixed.image.grid.dim
    axes_fixed = axes_moving = np.eye(3)
    if dim == 2:
        axes_fixed, axes_moving = _plane_axes(fixed.image.grid, moving.image.grid)
    world_fixed, world_moving = np.eye(4), np.eye(4)
    center, radius = mass_center(fixed)
    world_fixed[:3, :3], world_fixed[:3, 3] = axes_fixed, center
    world_moving[:3, :3], world_moving[:3, 3] = axes_moving, moving.image.grid.center_mm
    return Frames(world_fixed, world_moving, radius, dim)


def _plane_axes(fixed: Grid, moving: Grid) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Axes (3, 3; third = normal) in two image planes, alike as far as the planes allow, never mirrored."""
    rows, columns = fixed.world_from_voxel[:3, 0], fixed.world_from_voxel[:3, 1]
    first = rows / np.linalg.norm(rows)
    normal = np.cross(rows, columns)
    normal /= np.linalg.norm(normal)
    axes = np.stack([first, np.cross(normal, first), normal], axis=1)
    other = np.cross(moving.world_from_voxel[:3, 0], moving.world_from_voxel[:3, 1])
    other /= np.linalg.norm(other)
    if other @ normal < 0:
        other = -other
    turn = np.cross(normal, other)
    cosine = float(normal @ other)
    cross = np.array([[0, -turn[2], turn[1]], [turn[2], 0, -turn[0]], [-turn[1], turn[0], 0]])
    rotation = np.eye(3) + cross + cross @ cross / (1.0 + cosine)
    return axes, rotation @ axes


def mass_center(side: Side) -> tuple[NDArray[np.float64], float]:
    """Centre of mass (3,), RAS mm, of an image's object within its mask, and its rms radius, mm."""
    grid = side.image.grid
    strides = block_strides(grid, max(grid.extent_mm) / MASS_BLOCKS)
    small = reduced(side.image, strides)
    mass = small.data if side.around is None else ((small.data - side.around).abs() > 0.08).float()
    if side.weight is not None:
        mass = mass * reduced(side.weight, strides).data
    index = mass.nonzero()
    if not len(index):
        return grid.center_mm, 0.3 * max(grid.extent_mm)
    weight = array_from_tensor(mass[tuple(index.T)]).astype(np.float64)
    points = small.grid.world_from_index(array_from_tensor(index).astype(np.float64))
    center = weight @ points / weight.sum()
    spread = math.sqrt(float(weight @ ((points - center) ** 2).sum(axis=1) / weight.sum()))
    return center, max(spread, max(small.grid.spacing))


def centers_mm(fixed: Side, moving: Side, frames: Frames) -> dict[str, NDArray[np.float64]]:
    """Shifts (d,) in mm, without rotation, that bring centres of mass or of the fields of view together."""
    found = {}
    for name, f, m in (
        ("mass", mass_center(fixed)[0], mass_center(moving)[0]),
        ("geometry", fixed.image.grid.center_mm, moving.image.grid.center_mm),
    ):
        in_fixed = np.linalg.inv(frames.world_from_fixed) @ np.append(f, 1.0)
        in_moving = np.linalg.inv(frames.world_from_moving) @ np.append(m, 1.0)
        found[name] = (in_moving - in_fixed)[: frames.dim]
    return found


def angle_degrees(linear: NDArray[np.float64]) -> float:
    """Angle of the rotation nearest to a linear map, degrees."""
    left, _, right = np.linalg.svd(linear)
    rotation = left @ right
    if len(linear) == 2:
        return abs(math.degrees(math.atan2(rotation[1, 0], rotation[0, 0])))
    return math.degrees(math.acos(min(1.0, max(-1.0, (float(np.trace(rotation)) - 1.0) / 2.0))))
