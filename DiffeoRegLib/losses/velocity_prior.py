"""How far a predicted Gaussian over velocities is from smooth velocities: a Kullback-Leibler divergence.

Source: Dalca et al., Unsupervised learning for fast probabilistic diffeomorphic registration, MICCAI 2018,
equations 2 and 9; Medical Image Analysis 2019.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from DiffeoRegLib.errors import SettingsError, ShapeError, UnknownNameError
from DiffeoRegLib.losses.weighting import at_least_float32

Reduction = Literal["voxel-mean", "sum"]
REDUCTIONS: tuple[Reduction, ...] = ("sum", "voxel-mean")


def graph_laplacian_kl(
    mean: Tensor,
    log_variance: Tensor,
    *,
    smoothness: float = 10.0,
    magnitude: float = 0.0,
    reduction: Reduction = "voxel-mean",
) -> Tensor:
    """KL(N(mean, diag(variance)) || N(0, P^-1)) with the precision P = magnitude I + smoothness L.

    L = D - A is the Laplacian of the grid, D the number of neighbours along the axes. Per component:
        KL = 1/2 [ sum_i (P_ii var_i - ln var_i) + smoothness sum_edges (mean_i - mean_j)^2
                   + magnitude sum_i mean_i^2 - n - ln|P| ],  every edge once.
    Without magnitude the prior is improper and ln|P|, a constant, is left out: the value may be negative.
    mean, log_variance: (N, C, *grid).  Components are summed, the batch averaged; `voxel-mean` divides by the
    number n of voxels, so that the weight does not depend on the size of the image.
    The authors' code takes half the edge term and averages it over the differences of each axis.
    Raises ShapeError for shapes that differ, SettingsError or UnknownNameError for a prior that cannot be.
    """
    if mean.shape != log_variance.shape or mean.dim() not in (4, 5):
        raise ShapeError(
            "Means and log-variances of one shape (N, C, *grid) are needed, "
            f"not {tuple(mean.shape)} and {tuple(log_variance.shape)}."
        )
    if not (0 <= smoothness < math.inf and 0 <= magnitude < math.inf and smoothness + magnitude > 0):
        raise SettingsError(
            f"A prior needs finite precisions of at least 0, not both 0: {smoothness}, {magnitude}."
        )
    if reduction not in REDUCTIONS:
        raise UnknownNameError("reduction", reduction, REDUCTIONS)
    mean, log_variance = at_least_float32(mean), at_least_float32(log_variance)
    grid = tuple(mean.shape[2:])
    diagonal = smoothness * _neighbours(grid, mean) + magnitude
    parts = (diagonal * log_variance.exp() - log_variance - 1).sum()
    for axis in range(2, mean.dim()):
        parts = parts + smoothness * mean.diff(dim=axis).square().sum()
    if magnitude > 0:
        constant = mean.shape[0] * mean.shape[1] * log_determinant(grid, smoothness, magnitude)
        parts = parts + magnitude * mean.square().sum() - constant
    total = 0.5 * parts / mean.shape[0]
    return total / math.prod(grid) if reduction == "voxel-mean" else total


@lru_cache(maxsize=16)
def log_determinant(grid: tuple[int, ...], smoothness: float, magnitude: float) -> float:
    """ln|magnitude I + smoothness L| of a grid, from the cosine modes that diagonalise L."""
    eigenvalues = torch.full((1,) * len(grid), magnitude, dtype=torch.float64)
    for axis, n in enumerate(grid):
        modes = 2 - 2 * torch.cos(math.pi * torch.arange(n, dtype=torch.float64) / n)
        eigenvalues = eigenvalues + smoothness * _along(modes, axis, len(grid))
    return float(eigenvalues.log().sum())


def _neighbours(grid: tuple[int, ...], like: Tensor) -> Tensor:
    """How many neighbours along the axes every voxel has, (*grid)."""
    total = like.new_zeros(grid)
    for axis, n in enumerate(grid):
        along = like.new_full((n,), 2.0)
        along[0] -= 1
        along[-1] -= 1
        total = total + _along(along, axis, len(grid))
    return total


def _along(values: Tensor, axis: int, dim: int) -> Tensor:
    """Numbers of one axis, shaped to be added to a grid."""
    return values.view([-1 if a == axis else 1 for a in range(dim)])
