"""Separable linear filters as banded matrix products along each axis: Gaussian, box sums, linear resizing.

On a CPU a small dense product per band beats running sums, shifted additions and 1-D convolutions
(`Testing/benchmarks/filters.py` measures all four), and the transposed matrix is the exact adjoint.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor

from DiffeoRegLib.errors import SettingsError, ShapeError

Boundary = Literal["replicate", "zero", "renormalise"]

ROWS_PER_BLOCK = 32  # rows of one dense block; measured best of 16..128 on AVX-512, flat around it
TRUNCATE_SIGMAS = 4.0
WIDEST = 100
"""Axes: a Gaussian of more is the mean of both borders all the same."""


@dataclass(frozen=True, eq=False)
class Banded:
    """A matrix (rows, columns) whose nonzeros lie near a diagonal, cut into dense blocks of rows.

    blocks: (first row, stop row, first column, stop column, dense values) that cover every row once.
    """

    rows: int
    columns: int
    blocks: tuple[tuple[int, int, int, int, Tensor], ...]
    adjoint_blocks: tuple[tuple[int, int, int, int, Tensor], ...]

    @classmethod
    def from_dense(cls, matrix: Tensor) -> Banded:
        """Blocks of a dense (rows, columns) matrix; columns outside the band are dropped, exactly."""
        return cls(matrix.shape[0], matrix.shape[1], _cut(matrix), _cut(matrix.T))

    def adjoint(self) -> Banded:
        """The transposed matrix."""
        return Banded(self.columns, self.rows, self.adjoint_blocks, self.blocks)


def _cut(matrix: Tensor) -> tuple[tuple[int, int, int, int, Tensor], ...]:
    """Dense row blocks of a matrix, each restricted to the columns it uses."""
    blocks = []
    for first in range(0, matrix.shape[0], ROWS_PER_BLOCK):
        stop = min(first + ROWS_PER_BLOCK, matrix.shape[0])
        used = matrix[first:stop].abs().amax(0).nonzero().flatten()
        low, high = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, 1)
        blocks.append((first, stop, low, high, matrix[first:stop, low:high].contiguous()))
    return tuple(blocks)


def apply_banded(x: Tensor, matrix: Banded, axis: int) -> Tensor:
    """Matrix product along one axis of a tensor.

    x: any shape with x.shape[axis] == matrix.columns.  Returns the same shape with matrix.rows there.
    Differentiable in x any number of times.  Raises ShapeError when the lengths differ.
    """
    axis = axis % x.dim()
    if x.shape[axis] != matrix.columns:
        raise ShapeError(f"Axis {axis} of {tuple(x.shape)} should have {matrix.columns} entries.")
    if torch.is_grad_enabled() and x.requires_grad:
        return _BandedProduct.apply(x, matrix, axis)  # type: ignore[no-any-return, no-untyped-call]
    return _product(x, matrix, axis)


class _BandedProduct(torch.autograd.Function):
    """Saves nothing but the matrix: the gradient of M x is M^T g."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: Banded, axis: int) -> Tensor:
        ctx.matrix, ctx.axis = matrix, axis
        return _product(x, matrix, axis)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return apply_banded(grads[0], ctx.matrix.adjoint(), ctx.axis), None, None


def _product(x: Tensor, matrix: Banded, axis: int) -> Tensor:
    """apply_banded without autograd."""
    x = x.contiguous()
    out = x.new_empty((*x.shape[:axis], matrix.rows, *x.shape[axis + 1 :]))
    inner = math.prod(x.shape[axis + 1 :])
    if inner == 1:
        source, target = x.view(-1, matrix.columns), out.view(-1, matrix.rows)
        for first, stop, low, high, block in matrix.blocks:
            target[:, first:stop] = source[:, low:high] @ block.T
        return out
    source, target = x.view(-1, matrix.columns, inner), out.view(-1, matrix.rows, inner)
    for first, stop, low, high, block in matrix.blocks:
        target[:, first:stop] = torch.bmm(block.expand(len(source), -1, -1), source[:, low:high])
    return out


def apply_axes(x: Tensor, matrices: Sequence[Banded | None]) -> Tensor:
    """One banded product per spatial axis of (N, C, *spatial); None leaves an axis alone."""
    if len(matrices) != x.dim() - 2:
        raise ShapeError(f"{len(matrices)} axis filters do not fit a tensor of shape {tuple(x.shape)}.")
    order = range(len(matrices))
    if _growth(matrices) > 1:
        order = range(len(matrices) - 1, -1, -1)  # enlarging: work on the small array for as long as possible
    for axis in order:
        matrix = matrices[axis]
        if matrix is not None:
            x = apply_banded(x, matrix, 2 + axis)
    return x


def _growth(matrices: Sequence[Banded | None]) -> float:
    """Output voxels per input voxel."""
    return math.prod(m.rows / m.columns for m in matrices if m is not None)


def _kernel_matrix(n: int, weights: list[float], boundary: Boundary, tail: float = 0.0) -> Tensor:
    """Dense (n, n) float64 matrix of a centred odd kernel under a border rule.

    tail: what the kernel has on either side of its weights, which then reach across the whole axis.
    """
    radius = len(weights) // 2
    matrix = torch.zeros(n, n + 2 * radius, dtype=torch.float64)
    for offset, weight in enumerate(weights):
        matrix.diagonal(offset).fill_(weight)
    inside = matrix[:, radius : radius + n].clone()
    if boundary == "replicate":
        inside[:, 0] += matrix[:, :radius].sum(1) + tail
        inside[:, -1] += matrix[:, radius + n :].sum(1) + tail
    elif boundary == "renormalise":
        inside /= inside.sum(1, keepdim=True)
    elif boundary != "zero":
        raise SettingsError(f"The border rule is replicate, zero or renormalise, not '{boundary}'.")
    return inside


@lru_cache(maxsize=256)
def _gaussian_matrix(
    n: int, sigma_vox: float, boundary: Boundary, dtype: torch.dtype, device: torch.device
) -> Banded | None:
    """Sampled Gaussian of unit sum, cut at four sigmas; None where it would be the identity."""
    if not math.isfinite(sigma_vox) or sigma_vox < 0:
        raise SettingsError(f"A Gaussian needs a width of zero or more voxels, not {sigma_vox}.")
    sigma_vox = min(sigma_vox, WIDEST * n)
    radius = int(TRUNCATE_SIGMAS * sigma_vox + 0.5)
    if radius == 0:
        return None
    half = [math.exp(-0.5 * (k / sigma_vox) ** 2) for k in range(radius + 1)]
    total = 2 * sum(half[1:]) + half[0]
    near = [w / total for w in half[:n]]  # those beyond meet nothing but the border
    dense = _kernel_matrix(n, [*near[:0:-1], *near], boundary, sum(half[n:]) / total)
    return Banded.from_dense(dense.to(device=device, dtype=dtype))


@lru_cache(maxsize=256)
def _box_matrix(
    n: int, radius: int, boundary: Boundary, dtype: torch.dtype, device: torch.device
) -> Banded | None:
    """Ones in a band of 2 radius + 1; None where it would be the identity."""
    if radius < 0:
        raise SettingsError(f"A box needs a radius of zero or more voxels, not {radius}.")
    if radius == 0:
        return None
    near = min(radius, n - 1)  # the rest of the window is outside
    dense = _kernel_matrix(n, [1.0] * (2 * near + 1), boundary, float(radius - near))
    return Banded.from_dense(dense.to(device=device, dtype=dtype))


def _per_axis(value: float | Sequence[float], dim: int, what: str) -> list[float]:
    """One number per axis from a number or a sequence."""
    values = [float(value)] * dim if isinstance(value, int | float) else [float(v) for v in value]
    if len(values) != dim:
        raise ShapeError(f"{what} needs one number or {dim}, got {len(values)}.")
    return values


def gaussian_smooth(
    x: Tensor, sigma_vox: float | Sequence[float], boundary: Boundary = "replicate"
) -> Tensor:
    """Separable Gaussian smoothing.

    x: (N, C, *spatial).  sigma_vox: one width or one per tensor axis, voxels; 0 leaves the axis alone.
    boundary: `replicate` repeats the border voxel, `renormalise` averages what is inside (both keep
    constants); `zero` is self-adjoint and darkens the border.
    Raises ShapeError for a wrong number of widths, SettingsError for a negative one.
    """
    sigmas = _per_axis(sigma_vox, x.dim() - 2, "A Gaussian")
    return apply_axes(
        x,
        [
            _gaussian_matrix(n, s, boundary, x.dtype, x.device)
            for n, s in zip(x.shape[2:], sigmas, strict=True)
        ],
    )


def box_sum(x: Tensor, radius_vox: int | Sequence[int], boundary: Boundary = "zero") -> Tensor:
    """Sum over a box of 2 radius + 1 voxels around every voxel.

    x: (N, C, *spatial).  radius_vox: one radius or one per tensor axis.
    boundary: `zero` counts what is inside (self-adjoint), `replicate` repeats the border voxel,
    `renormalise` divides by the number of voxels inside: the local mean.
    Raises ShapeError for a wrong number of radii, SettingsError for a negative one.
    """
    radii = _per_axis(radius_vox, x.dim() - 2, "A box")
    return apply_axes(
        x,
        [
            _box_matrix(n, int(r), boundary, x.dtype, x.device)
            for n, r in zip(x.shape[2:], radii, strict=True)
        ],
    )


def box_mean(x: Tensor, radius_vox: int | Sequence[int]) -> Tensor:
    """Mean over the part of a box of 2 radius + 1 voxels that lies inside; see `box_sum`."""
    return box_sum(x, radius_vox, "renormalise")


@lru_cache(maxsize=256)
def linear_resize_matrix(
    rows: int, columns: int, step: float, start: float, dtype: torch.dtype, device: torch.device
) -> Banded:
    """Linear interpolation along one axis: row i reads position start + step i, borders repeated."""
    position = (start + step * torch.arange(rows, dtype=torch.float64)).clamp(0, columns - 1)
    low = position.floor().clamp(max=max(columns - 2, 0)).long()
    fraction = position - low
    dense = torch.zeros(rows, columns, dtype=torch.float64)
    index = torch.arange(rows)
    dense[index, low] = 1 - fraction
    dense[index, (low + 1).clamp(max=columns - 1)] += fraction
    return Banded.from_dense(dense.to(device=device, dtype=dtype))
