"""A large motion between two patient volumes, from files' geometry to patient points and back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from DiffeoRegLib.flows.exponential import exp
from DiffeoRegLib.methods.base import Motion, Progress
from DiffeoRegLib.methods.discrete import discrete_start
from DiffeoRegLib.settings import Settings
from DiffeoRegLib.space.field import folded_percent, u_mm_from_vox
from DiffeoRegLib.space.filters import gaussian_smooth
from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.space.sample import array_from_tensor, sample, tensor_from_array
from DiffeoRegLib.space.transform import DisplacementTransform
from DiffeoRegLib.volumes.prepare import prepare
from DiffeoRegLib.volumes.volume import Volume

Points = NDArray[np.float64]
CENTRE_MM = np.array([20.0, -35.0, 60.0])
SHIFT_MM = np.array([5.0, -8.0, 28.0])


def oblique(shape: tuple[int, int, int], spacing: tuple[float, float, float], turn: float) -> Grid:
    """A grid around CENTRE_MM with flipped, turned axes."""
    c, s = np.cos(turn), np.sin(turn)
    axes = np.array([[0.0, s, -c], [0.0, c, s], [-1.0, 0.0, 0.0]])  # tensor axes: down, then turned in plane
    matrix = np.eye(4)
    matrix[:3, :3] = axes * np.array(spacing)
    matrix[:3, 3] = CENTRE_MM - matrix[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Grid(shape, matrix)


def moving_from_fixed(points_mm: Points) -> Points:
    """The true map: a shift by up to 30 mm that fades away from the centre."""
    distance = (points_mm - CENTRE_MM) / np.array([55.0, 55.0, 62.0])
    reach = np.exp(-0.5 * (distance**2).sum(-1, keepdims=True) ** 2)
    return points_mm + reach * SHIFT_MM


def scene(points_mm: Points) -> Points:
    """Intensity of the moving anatomy at patient points: a smooth random pattern known everywhere."""
    pattern = torch.rand((1, 1, 64, 64, 64), generator=torch.Generator().manual_seed(1))
    pattern = gaussian_smooth(pattern, 1.6)
    index = (points_mm - CENTRE_MM) / 4.0 + 31.5
    values = sample(pattern, tensor_from_array(index.T[None].astype(np.float32)))
    return array_from_tensor(values)[0, 0].astype(np.float64)


def volume(grid: Grid, through: bool) -> Volume:
    """The moving anatomy on a grid, or what the fixed scanner would see of it."""
    index = np.stack(np.meshgrid(*[np.arange(n) for n in grid.shape], indexing="ij"), -1).reshape(-1, 3)
    points = grid.world_from_index(index.astype(np.float64))
    values = scene(moving_from_fixed(points) if through else points)
    return Volume(tensor_from_array(values.reshape(grid.shape).astype(np.float32)), grid)


@pytest.fixture(scope="module")
def found() -> Motion:
    """The start for two volumes of different spacing, orientation and size."""
    fixed = volume(oblique((40, 52, 50), (4.0, 3.0, 3.2), 0.3), through=True)
    moving = volume(oblique((64, 56, 60), (3.0, 3.5, 3.2), -0.2), through=False)
    settings = Settings(working_spacing_mm=3.0, extras={"search_radius_mm": 36.0})
    pair = prepare(fixed, moving, None, None, settings, np.eye(4))

    def silent(_: Progress) -> None:
        """Nobody listens."""

    return discrete_start(pair, settings, silent)


def patient_transform(motion: Motion, sign: float) -> DisplacementTransform:
    return DisplacementTransform(
        motion.grid, u_mm_from_vox(exp(sign * motion.velocity_vox, "auto"), motion.grid)
    )


def landmarks() -> Points:
    """Fixed patient points, mm, around the centre of the motion."""
    return CENTRE_MM + np.random.default_rng(4).uniform(-35.0, 35.0, (200, 3))


def test_points_of_the_patient_arrive(found: Motion) -> None:
    points = landmarks()
    truth = moving_from_fixed(points)
    before = np.linalg.norm(points - truth, axis=1)
    after = np.linalg.norm(patient_transform(found, 1.0).map_points(points) - truth, axis=1)
    assert before.mean() > 20.0
    assert after.mean() < 3.0
    assert np.percentile(after, 95) < 6.0


def test_the_way_back_is_the_inverse(found: Motion) -> None:
    points = landmarks()
    there = patient_transform(found, 1.0).map_points(points)
    back = patient_transform(found, -1.0).map_points(there)
    assert np.linalg.norm(back - points, axis=1).mean() < 0.3
    assert np.linalg.norm(there - points, axis=1).mean() > 15.0


def test_nothing_folds_in_either_direction(found: Motion) -> None:
    for sign in (1.0, -1.0):
        assert folded_percent(exp(sign * found.velocity_vox, "auto")) == 0
