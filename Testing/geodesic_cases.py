"""Geodesics made by hand, without a search: for what comes after one."""

from __future__ import annotations

import numpy as np
import torch

from DiffeoRegLib.flows.momentum import MomentumMetric
from DiffeoRegLib.flows.regional import RegionalMetric
from DiffeoRegLib.geodesic_files import SavedGeodesics
from DiffeoRegLib.methods.geodesic import Geodesic
from DiffeoRegLib.methods.map_grid import Kernels, MapGrid, map_grid
from DiffeoRegLib.space.grid import Grid
from Testing.fake_run import hostile_grid, plane_grid
from Testing.shooting_cases import push, varied_preweights

KERNELS = Kernels((0.14, 0.2, 0.3), (1.0, 4.0, 1.0), 0.12)
"""Weights that are not the same after being brought to sum 1 twice."""
TURN = np.array([[0.98, -0.15, 0, 3.0], [0.16, 0.97, 0.05, -2.0], [0, -0.04, 1.02, 1.0], [0, 0, 0, 1.0]])


def place_of(grid: Grid) -> MapGrid:
    """A map grid for KERNELS."""
    return map_grid(grid, KERNELS)


def whole_kernel(grid: Grid, voxels: float = 2.0, integrator: str = "rk4") -> Geodesic:
    """One kernel for all places; the fastest speed is `voxels` of the map grid."""
    place = place_of(grid)
    shape, spacing = place.grid.shape, place.spacing
    metric = MomentumMetric(shape, spacing, place.sigmas, KERNELS.weights, walls=False, order=4)
    return Geodesic(metric, place, (_momentum(metric, place, voxels),), 6, integrator)


def regional_kernel(grid: Grid, voxels: float = 2.0, *, walls: bool = False) -> Geodesic:
    """Pre-weights that differ from place to place."""
    place = place_of(grid)
    shape, spacing = place.grid.shape, place.spacing
    metric = RegionalMetric(shape, spacing, place.sigmas, place.preweight_sigma, walls=walls)
    plain = MomentumMetric(shape, spacing, place.sigmas, KERNELS.weights)
    preweights = varied_preweights(shape, (0.5,) * len(shape), torch.float32)
    return Geodesic(metric, place, (_momentum(plain, place, voxels), preweights), 7)


def _momentum(metric: MomentumMetric, place: MapGrid, voxels: float) -> torch.Tensor:
    shape = place.grid.shape
    return push(
        lambda m: metric.sources(metric.start(m))[0],
        shape,
        (0.5, 0.45, 0.5)[: len(shape)],
        voxels,
        torch.float32,
    )


def chained(walls: bool = False) -> SavedGeodesics:
    """Two geodesics of different kinds, 3D, oblique, with a linear start."""
    grid = hostile_grid((20, 24, 26))
    links = whole_kernel(grid), regional_kernel(grid, walls=walls)
    return SavedGeodesics(links, grid, grid.padded((2, 1, 0), (0, 1, 3)), TURN, taper_mm=5.0)


def flat() -> SavedGeodesics:
    """One geodesic in 2D."""
    grid = plane_grid((40, 50))
    matrix = np.eye(4)
    matrix[:3, 3] = (1.5, -2.0, 0.0)
    return SavedGeodesics((regional_kernel(grid),), grid, grid, matrix)
