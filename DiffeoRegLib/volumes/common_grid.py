"""The box a network is trained in and run in, where it has always the same size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.volumes.intensity import foreground_points_mm
from DiffeoRegLib.volumes.volume import Volume


def common_grid(reference: Volume, shape: Sequence[int], spacing_mm: Sequence[float]) -> Grid:
    """The working grid over a reference image: centred on its object, or on its field of view without one.

    In 3D the tensor axes point to S, A and R; a 2D grid keeps the reference's own axes.
    """
    points = foreground_points_mm(reference)
    # Percentiles: a marker or a speck beside the object does not count.
    box = None if points is None else np.percentile(points, (0.5, 99.5), axis=0)
    center = reference.grid.center_mm if box is None else box.mean(axis=0)
    matrix = np.eye(4)
    if len(shape) == 3:
        matrix[:3, :3] = np.eye(3)[:, ::-1] * np.asarray(spacing_mm)
    else:
        own = reference.grid.world_from_voxel[:3, :3]
        matrix[:3, :3] = own / np.linalg.norm(own, axis=0) * [*spacing_mm, np.linalg.norm(own[:, 2])]
    half = (np.asarray(shape) - 1) / 2
    matrix[:3, 3] = center - matrix[:3, : len(shape)] @ half
    return Grid(tuple(shape), matrix)
