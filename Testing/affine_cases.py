"""A phantom without symmetry, known linear maps of it, and how far a found one is off."""

from __future__ import annotations

import numpy as np
import torch
from scipy.linalg import expm

from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.volumes.volume import Volume

BLOBS = (  # centre mm, radius mm, brightness: no symmetry that a rotation could hide in
    ((0, 0, 0), (38, 30, 24), 60.0),
    ((18, 8, 6), (9, 9, 9), 60.0),
    ((-16, 12, -4), (7, 10, 7), -40.0),
    ((4, -16, 9), (11, 6, 6), 45.0),
    ((-12, -10, 10), (6, 6, 8), -30.0),
)


def rigid(axis, degrees, shift=(0.0, 0.0, 0.0), center=(0.0, 0.0, 0.0)):
    unit = np.array(axis, float) / np.linalg.norm(axis)
    cross = np.array([[0, -unit[2], unit[1]], [unit[2], 0, -unit[0]], [-unit[1], unit[0], 0]])
    matrix = np.eye(4)
    matrix[:3, :3] = expm(np.radians(degrees) * cross)
    matrix[:3, 3] = np.array(center) + np.array(shift) - matrix[:3, :3] @ np.array(center)
    return matrix


def phantom(grid, object_from_world=None, contrast=1.0, name="phantom"):
    """Smooth blobs; contrast -1 turns the brightness of everything inside around, the background stays 0."""
    index = np.stack(np.meshgrid(*[np.arange(n) for n in grid.shape], indexing="ij"), -1).astype(float)
    points = grid.world_from_index(index)
    if object_from_world is not None:
        points = points @ object_from_world[:3, :3].T + object_from_world[:3, 3]
    total, inside = np.zeros(grid.shape), None
    for center, radius, brightness in BLOBS:
        distance = (((points - np.array(center)) / np.array(radius)) ** 2).sum(axis=-1)
        soft = 1.0 / (1.0 + np.exp(6.0 * (np.minimum(distance, 9.0) - 1.0)))
        inside = soft if inside is None else inside
        total += brightness * soft
    values = total if contrast > 0 else inside * (130.0 - total)
    return Volume(torch.tensor(values, dtype=torch.float32), grid, name)


def centred(shape, spacing, flip=None, center=(0.0, 0.0, 0.0)):
    matrix = np.diag([*spacing, 1.0])
    if flip is not None:
        matrix[flip, flip] *= -1
    grid = Grid(shape, matrix)
    matrix = matrix.copy()
    matrix[:3, 3] = np.array(center) - grid.center_mm
    return Grid(shape, matrix)


FIXED_GRID = centred((50, 44, 38), (2.0, 2.0, 2.0))


def error_mm(found, truth, points):
    difference = found - truth
    return float(np.linalg.norm(points @ difference[:3, :3].T + difference[:3, 3], axis=1).mean())


def corner_error_mm(found, truth, grid):
    """The largest distance between both images of a corner of a grid, mm."""
    difference = found - truth
    corners = grid.corners_mm()
    return float(np.linalg.norm(corners @ difference[:3, :3].T + difference[:3, 3], axis=1).max())
