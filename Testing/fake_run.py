"""A small registration whose answer is known, in place of a real one: for what comes after a registration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from DiffeoRegLib.device import choose_device
from DiffeoRegLib.methods.appearance import Appearance
from DiffeoRegLib.methods.base import Motion
from DiffeoRegLib.report.measure import measure
from DiffeoRegLib.settings import Settings
from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.space.transform import (
    AffineTransform,
    CompositeTransform,
    DisplacementTransform,
    InverseTransform,
    Transform,
    displacement_on,
)
from DiffeoRegLib.volumes.pair import Correspondence
from DiffeoRegLib.volumes.resample import warp_labels, warp_volume
from DiffeoRegLib.volumes.volume import Volume


@dataclass
class FakeResult:
    """The fields of pipeline.Result that outputs and command use."""

    transform: Transform
    inverse: Transform
    moved: Volume
    moved_labels: Volume | None
    initial: Transform
    report: dict[str, Any]
    motion: Motion | None = None
    sigma: tuple[Volume, Volume] | None = None
    working: Grid | None = None
    appearance: Appearance | None = None


def hostile_grid(shape: tuple[int, ...] = (18, 22, 26)) -> Grid:
    """Anisotropic, off-centre, flipped and oblique."""
    turn, tilt = np.deg2rad(17), np.deg2rad(-11)
    about_s = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    about_r = np.array([[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]])
    # Tensor axes k, j, i run to S, P (flipped) and L (flipped).
    axes = about_s @ about_r @ np.array([[0, 0, -1.0], [0, -1.0, 0], [1.0, 0, 0]])
    world = np.eye(4)
    world[:3, :3] = axes * np.array([2.5, 1.5, 1.0])
    world[:3, 3] = (30.0, -12.0, 55.0)
    return Grid(shape, world)


def plane_grid(shape: tuple[int, int] = (40, 50)) -> Grid:
    """A 2D grid with pixels of 1 x 2 mm."""
    return Grid(shape, np.array([[0, 2.0, 0, 5], [1.0, 0, 0, -7], [0, 0, 1.0, 3], [0, 0, 0, 1]]))


def blobs(grid: Grid, name: str) -> Volume:
    """A smooth random image, the same for the same grid."""
    points = _points(grid)
    generator = np.random.default_rng(3)
    values = np.zeros(len(points))
    for _ in range(12):
        centre = points[generator.integers(len(points))]
        distance = ((points - centre) ** 2).sum(1)
        values += generator.uniform(20, 100) * np.exp(-distance / (2 * generator.uniform(2, 6) ** 2))
    return Volume(torch.tensor(values.reshape(grid.shape), dtype=torch.float32), grid, name)


def labels_of(image: Volume) -> Volume:
    """Two labels: bright and brighter."""
    low, high = (float(torch.quantile(image.data, q)) for q in (0.6, 0.85))
    data = (image.data > low).int() + (image.data > high).int()
    return Volume(data.to(torch.int32), image.grid, f"{image.name}_seg", is_labels=True)


def known_motion(grid: Grid, size_mm: float = 1.5) -> tuple[DisplacementTransform, AffineTransform]:
    """A smooth displacement that is zero at the border, and a small affine map about the centre."""
    bump = torch.ones(grid.shape)
    for axis, n in enumerate(grid.shape):
        shape = [n if a == axis else 1 for a in range(grid.dim)]
        bump = bump * torch.sin(torch.linspace(0, torch.pi, n)).reshape(shape) ** 2
    direction = torch.as_tensor(grid.world_from_voxel[:3, : grid.dim].sum(1) / grid.dim)
    u_mm = size_mm * bump[None, None] * (direction / direction.norm()).float().view(1, 3, *[1] * grid.dim)
    matrix = np.eye(4)
    matrix[0, 1] = 0.04
    centre = grid.center_mm
    matrix[:3, 3] = centre - matrix[:3, :3] @ centre + grid.world_from_voxel[:3, grid.dim - 1] * 0.8
    return DisplacementTransform(grid, u_mm), AffineTransform(matrix)


def transforms(
    grid: Grid, size_mm: float = 1.5
) -> tuple[CompositeTransform, CompositeTransform, AffineTransform]:
    """Transform, its inverse, and the first alignment."""
    field, affine = known_motion(grid, size_mm)
    back = DisplacementTransform(grid, displacement_on(InverseTransform(field), grid))
    return CompositeTransform([field, affine]), CompositeTransform([affine.inverse(), back]), affine


def pair_of(fixed: Volume, transform: Transform) -> Volume:
    """The moving image in which the transform finds the fixed one again, on a grid three voxels larger."""
    grid = fixed.grid.padded([3] * fixed.grid.dim, [3] * fixed.grid.dim)
    if fixed.is_labels:
        return Volume(warp_labels(fixed, transform.inverse(), grid).data, grid, "moving_seg", is_labels=True)
    return Volume(warp_volume(fixed, transform.inverse(), grid).data, grid, "moving")


def fake_result(
    fixed: Volume, moving: Volume, evaluation: Correspondence | None = None, settings: Settings | None = None
) -> FakeResult:
    """What a registration that finds `known_motion` exactly would give."""
    transform, inverse, initial = transforms(fixed.grid)
    report = measure(
        fixed=fixed,
        moving=moving,
        transform=transform,
        inverse=inverse,
        settings=settings or Settings(),
        initial=initial,
        evaluation=evaluation,
        device=choose_device("cpu"),
        seconds={"initial alignment": 1.0, "refine": 2.0},
        notes=["A remark of the run."],
        citations=["Someone A. A paper. 2006.", "Someone A. A paper. 2006."],
    )
    moved = warp_volume(moving, transform, fixed.grid)
    return FakeResult(transform, inverse, moved, None, initial, report)


def evaluated_run(
    grid: Grid, evaluated: bool = True
) -> tuple[Volume, Volume, Correspondence | None, FakeResult]:
    """Fixed, moving, what to evaluate, and the result of the registration that is known."""
    fixed = blobs(grid, "fixed <one>")
    transform, _, _ = transforms(grid)
    moving, evaluation = pair_of(fixed, transform), None
    if evaluated:
        labels = labels_of(fixed)
        points = grid.world_from_index(np.array([[5.0, 6, 7], [9, 10, 11], [12, 8, 15]]))
        evaluation = Correspondence(
            labels, pair_of(labels, transform), points, transform.map_points(points) + np.array([0, 3, 4])
        )
    return fixed, moving, evaluation, fake_result(fixed, moving, evaluation)


def folded_transform(grid: Grid) -> DisplacementTransform:
    u_mm = torch.zeros(1, 3, *grid.shape)
    step = torch.tensor(grid.world_from_voxel[:3, 0].tolist())
    u_mm[0, :, 4, 5, 6] = 1.5 * step  # this voxel overtakes its neighbour along the first axis
    return DisplacementTransform(grid, u_mm)


def _points(grid: Grid) -> Any:
    index = np.stack(np.meshgrid(*[np.arange(n, dtype=float) for n in grid.shape], indexing="ij"), -1)
    return grid.world_from_index(index.reshape(-1, grid.dim))
