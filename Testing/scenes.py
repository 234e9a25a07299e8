"""Patients known at every point: what scanners of any geometry see of them, and where each point moves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from DiffeoRegLib.space.filters import gaussian_smooth
from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.space.sample import array_from_tensor, sample, tensor_from_array
from DiffeoRegLib.space.transform import AffineTransform, Transform
from DiffeoRegLib.volumes.pair import Pair
from DiffeoRegLib.volumes.volume import Volume

Points = NDArray[np.float64]
CENTRE_MM = np.array([12.0, -20.0, 35.0])


def turned_grid(
    shape: tuple[int, ...],
    spacing: tuple[float, ...],
    degrees: float = 0.0,
    flip: tuple[int, ...] = (),
    centre_mm: Points = CENTRE_MM,
) -> Grid:
    """A grid around a point: axes S, A, R, turned by `degrees` about (1, 2, 3), the `flip` ones reversed.

    2D: axes A, R, turned about S.
    """
    unit = np.array([1.0, 2.0, 3.0]) / np.sqrt(14) if len(shape) == 3 else np.array([0.0, 0.0, 1.0])
    cross = np.array([[0, -unit[2], unit[1]], [unit[2], 0, -unit[0]], [-unit[1], unit[0], 0]])
    angle = np.deg2rad(degrees)
    turn = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    axes = turn @ np.eye(3)[:, ::-1]
    if len(shape) == 2:
        axes = turn @ np.array([[0.0, 1, 0], [1, 0, 0], [0, 0, 1]])
    steps = np.ones(3)
    steps[: len(shape)] = spacing
    for axis in flip:
        steps[axis] *= -1
    matrix = np.eye(4)
    matrix[:3, :3] = axes * steps
    middle = np.zeros(3)
    middle[: len(shape)] = (np.array(shape) - 1) / 2
    matrix[:3, 3] = centre_mm - matrix[:3, :3] @ middle
    return Grid(shape, matrix)


def points_of(grid: Grid) -> Points:
    """All voxel centres, RAS mm, (n, 3)."""
    index = np.stack(np.meshgrid(*[np.arange(float(n)) for n in grid.shape], indexing="ij"), -1)
    return grid.world_from_index(index.reshape(-1, grid.dim))


@dataclass(frozen=True, eq=False)
class Scene:
    """A body of `radius_mm` with texture on an empty background, and a map from fixed to moving points.

    size_mm: of the smooth displacement, which ends at 1.6 radii. affine: applied after it.
    flat: 2D, in a plane.
    endless: texture everywhere, no background.
    """

    radius_mm: float = 13.0
    size_mm: float = 2.0
    affine: AffineTransform = field(default_factory=lambda: AffineTransform(np.eye(4)))
    flat: bool = False
    endless: bool = False

    def anatomy(self, points_mm: Points, inverted: bool = False) -> Points:
        """Intensity at points (n, 3) of the patient before the affine map: 0 outside, 40 .. 200 inside.

        inverted: as another kind of scanner sees it, dark inside where bright.
        """
        noise = torch.rand(1, 1, 40, 40, 40, generator=torch.Generator().manual_seed(2))
        texture = gaussian_smooth(noise, 1.5)
        texture = (texture - texture.amin()) / (texture.amax() - texture.amin())
        index = (points_mm - CENTRE_MM) / 1.5 + 19.5
        values = array_from_tensor(sample(texture, tensor_from_array(index.T[None], torch.float32)))[0, 0]
        offset = (points_mm - CENTRE_MM) * np.array([1.0, 1.15, 0.9 if not self.flat else 0.0])
        inside = 1 / (1 + np.exp(1.2 * (np.linalg.norm(offset, axis=1) - self.radius_mm)))
        inside = 1.0 if self.endless else inside
        return np.asarray((200 - 160 * values if inverted else 40 + 160 * values) * inside)

    def moving_from_fixed(self, points_mm: Points) -> Points:
        """The true map."""
        return self.affine.map_points(self.displaced(points_mm))

    def displaced(self, points_mm: Points) -> Points:
        """The true map without its affine part."""
        away = (points_mm - CENTRE_MM) / self.radius_mm
        reach = np.clip(1 - (away**2).sum(1, keepdims=True) / 2.56, 0, 1) ** 2
        wave = np.stack(
            [np.cos(2.0 * away[:, 1]), -np.cos(1.5 * away[:, 0]), 0.8 * np.cos(2.0 * away[:, 0] + 1)], 1
        )
        if self.flat:
            wave[:, 2] = 0
        return np.asarray(points_mm + self.size_mm * reach * wave)

    def moving(self, grid: Grid, inverted: bool = False) -> Volume:
        """The moving patient as a scanner with this grid sees it."""
        return _seen(
            self.anatomy(self.affine.inverse().map_points(points_of(grid)), inverted), grid, "moving"
        )

    def fixed(self, grid: Grid) -> Volume:
        """The same patient before it moved."""
        return _seen(self.anatomy(self.displaced(points_of(grid))), grid, "fixed")

    def landmarks(self, count: int = 40) -> tuple[Points, Points]:
        """Corresponding points inside the body, (n, 3) RAS mm each."""
        random = np.random.default_rng(4)
        away = random.normal(size=(count, 3))
        away *= random.uniform(0, 0.75, (count, 1)) ** (1 / 3) / np.linalg.norm(away, axis=1, keepdims=True)
        if self.flat:
            away[:, 2] = 0
        fixed = CENTRE_MM + self.radius_mm * away
        return fixed, self.moving_from_fixed(fixed)

    def labels(self, image: Volume) -> Volume:
        """Label 1: the body; label 5: its brighter parts."""
        data = (image.data > 25).int() + 4 * (image.data > 120).int()
        return Volume(data.to(torch.int32), image.grid, f"{image.name}_seg", is_labels=True)


def _seen(values: Points, grid: Grid, name: str) -> Volume:
    return Volume(tensor_from_array(values.reshape(grid.shape), torch.float32), grid, name)


def distances_mm(transform: Transform, fixed: Points, moving: Points) -> Points:
    """Landmark errors of a transform."""
    return np.asarray(np.linalg.norm(transform.map_points(fixed) - moving, axis=1))


def texture(shape: Sequence[int], seed: int = 0, sigma: float = 2.0) -> Tensor:
    """A smooth random image in [0, 1], (1, 1, *shape)."""
    image = gaussian_smooth(torch.rand(1, 1, *shape, generator=torch.Generator().manual_seed(seed)), sigma)
    return (image - image.amin()) / (image.amax() - image.amin())


def smooth_velocity(shape: Sequence[int], size: float = 2.0, seed: int = 5) -> Tensor:
    """A smooth random velocity (1, d, *shape) of `size` voxels, at rest on the border."""
    noise = torch.randn(1, len(shape), *shape, generator=torch.Generator().manual_seed(seed))
    velocity = gaussian_smooth(noise, 4.0)
    for axis, n in enumerate(shape):
        rim = torch.sin(torch.linspace(0, torch.pi, n)).clamp(min=0).sqrt()
        velocity = velocity * rim.view([-1 if a == axis else 1 for a in range(len(shape))])
    return velocity * (size / velocity.abs().amax())


def pair_of(fixed: Tensor, moving: Tensor, spacing: Sequence[float] | None = None, **others: Tensor) -> Pair:
    """Two images (1, 1, *shape) as a prepared pair."""
    shape = tuple(fixed.shape[2:])
    matrix = np.diag([*(spacing or [1.0] * len(shape)), *[1.0] * (4 - len(shape))])
    return Pair(fixed, moving, Grid(shape, matrix), np.eye(4), **others)
