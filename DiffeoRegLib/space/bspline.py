"""Cubic B-spline interpolation: values to coefficients, coefficients to values anywhere.

Source: Unser, Aldroubi, Eden, B-spline signal processing, IEEE Trans. Signal Processing 41, 1993.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from typing import Literal

import torch
from torch import Tensor

POINTS_PER_CHUNK = 1 << 18
"""Positions worked on at a time: 4^d taps of each are held for a moment."""


def interpolate_cubic(values: Tensor, position_vox: Tensor, outside: Literal["border", "zeros"]) -> Tensor:
    """Values of the interpolating cubic spline at voxel positions.

    values: (N, C, *spatial); position_vox: (N or 1, d, *out).  Returns (N, C, *out). The image is
    mirrored at its outer voxel centres; `border` and `zeros` act as in `sample`.
    """
    return sample_spline(spline_coefficients(values), position_vox, outside)


def spline_coefficients(values: Tensor) -> Tensor:
    """Coefficients of the cubic spline through the values, (N, C, *spatial) both.

    One solve per axis with the tridiagonal matrix (1/6, 4/6, 1/6), as a product with its inverse: that
    is differentiable, runs on every device and needs 2n operations per voxel.
    """
    for axis in range(2, values.dim()):
        solve = torch.as_tensor(
            _inverse_of_knots(values.shape[axis]), dtype=values.dtype, device=values.device
        )
        values = torch.tensordot(values, solve, dims=([axis], [1])).movedim(-1, axis)
    return values.contiguous()


def sample_spline(
    coefficients: Tensor, position_vox: Tensor, outside: Literal["border", "zeros"] = "border"
) -> Tensor:
    """Values of a spline at voxel positions; shapes as in `interpolate_cubic`."""
    shape = coefficients.shape[2:]
    out = position_vox.shape[2:]
    flat = position_vox.reshape(*position_vox.shape[:2], -1).expand(coefficients.shape[0], -1, -1)
    values = coefficients.reshape(*coefficients.shape[:2], -1)
    parts = [
        _sample_block(values, block, shape, outside) for block in torch.split(flat, POINTS_PER_CHUNK, dim=2)
    ]
    return torch.cat(parts, dim=2).reshape(*coefficients.shape[:2], *out)


def _sample_block(values: Tensor, position: Tensor, shape: Sequence[int], outside: str) -> Tensor:
    """Sum of the 4^d taps; values: (N, C, voxels), position: (N, d, n)."""
    taps = [_taps(position[:, axis], size) for axis, size in enumerate(shape)]
    total = values.new_zeros((*values.shape[:2], position.shape[2]))
    for corner in product(range(4), repeat=len(shape)):
        index = torch.zeros_like(taps[0][0][0])
        weight = torch.ones_like(taps[0][1][0])
        for axis, tap in enumerate(corner):
            index = index * shape[axis] + taps[axis][0][tap]
            weight = weight * taps[axis][1][tap]
        total = total + weight[:, None] * values.gather(2, index[:, None].expand(-1, values.shape[1], -1))
    if outside == "zeros":
        for axis, size in enumerate(shape):
            x = position[:, axis : axis + 1]
            total = total * (1 - torch.relu(-x) - torch.relu(x - (size - 1))).clamp(min=0)
    return total


def _taps(x: Tensor, size: int) -> tuple[list[Tensor], list[Tensor]]:
    """Indices (mirrored into the image) and weights of the four knots around x, each (N, n)."""
    x = x.clamp(0, size - 1)
    base = x.detach().floor()
    t = x - base
    weights = [
        (1 - t) ** 3 / 6,
        (4 - 6 * t**2 + 3 * t**3) / 6,
        (1 + 3 * t + 3 * t**2 - 3 * t**3) / 6,
        t**3 / 6,
    ]
    period = max(2 * size - 2, 1)
    indices = []
    for tap in range(-1, 3):
        index = (base.long() + tap).abs() % period
        indices.append(torch.minimum(index, period - index) if size > 1 else torch.zeros_like(index))
    return indices, weights


@lru_cache(maxsize=16)
def _inverse_of_knots(size: int) -> Tensor:
    """Inverse of the matrix that gives values from coefficients on one axis, float64 (size, size)."""
    matrix = torch.zeros((size, size), dtype=torch.float64)
    for row in range(size):
        for step, weight in ((-1, 1 / 6), (0, 4 / 6), (1, 1 / 6)):
            column = row + step
            mirrored = size - 1 - abs(size - 1 - abs(column)) if size > 1 else 0
            matrix[row, mirrored] += weight
    inverse: Tensor = torch.linalg.inv(matrix)
    return inverse
