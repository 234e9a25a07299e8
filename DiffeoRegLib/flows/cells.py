"""A multilinear field and its exact derivative at points, and d x d solves: the inside of the inversion.

Everything is component first, (d, n), so that each operation runs along contiguous points.
"""

from __future__ import annotations

import torch
from torch import Tensor


def value_and_slopes(u: Tensor, position_vox: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Value (d, n) and derivatives, d times (d, n), of the multilinear interpolant, border repeated.

    u: (d, *shape); position_vox: (d, n).  Entry [a][c] is d u_c / d x_a: that of the cell that holds the
    position, of the upper one on a face, 0 along an axis past whose border the position lies.
    """
    dim, shape = len(u), tuple(u.shape[1:])
    corner, fractions, inside = _locate(shape, position_vox)
    strides = _strides(shape)
    for axis in range(dim - 1, -1, -1):
        corner = torch.stack([corner, corner + (strides[axis] if shape[axis] > 1 else 0)])
    values = u.reshape(dim, -1).index_select(1, corner.flatten()).view(dim, *[2] * dim, -1)
    # One axis at a time, last first: everything found so far is interpolated, the new slope joins it.
    terms = [values]
    for axis in range(dim, 0, -1):
        low_high = [term.unbind(axis) for term in terms]
        slope = (low_high[0][1] - low_high[0][0]) * inside[axis - 1]
        terms = [torch.lerp(low, high, fractions[axis - 1]) for low, high in low_high] + [slope]
    return terms[0], terms[:0:-1]


def _locate(shape: tuple[int, ...], position_vox: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Flat index (n,) of lowest corners, fractions (d, n) and 1 where not past the border (d, n)."""
    last = position_vox.new_tensor([n - 1 for n in shape])[:, None]
    clamped = torch.minimum(position_vox.clamp(min=0), last)
    low = torch.minimum(clamped.floor(), (last - 1).clamp(min=0))
    inside = (clamped == position_vox).to(position_vox.dtype)
    strides = torch.tensor(_strides(shape), device=position_vox.device)[:, None]
    # A NaN position keeps a NaN fraction, hence a NaN value; only its cell must exist.
    return (low.long().clamp_(min=0) * strides).sum(0), clamped - low, inside


def _strides(shape: tuple[int, ...]) -> list[int]:
    """Steps of the flat index along each axis."""
    strides = [1]
    for n in shape[:0:-1]:
        strides.insert(0, strides[0] * n)
    return strides


def solve(slopes: list[Tensor], right: Tensor, *, transposed: bool = False) -> Tensor:
    """(I + Du)^-1 r per point by cofactors, (I + Du)^-T r with `transposed`.

    slopes: entry [a][c] is d u_c / d x_a, from `value_and_slopes`; right: (d, n).  A singular matrix is
    answered with a large finite step: the damping of the caller decides whether it helps.
    """
    d = len(right)
    entry = [[slopes[a][c] + float(a == c) for a in range(d)] for c in range(d)]
    if transposed:
        entry = [list(column) for column in zip(*entry, strict=True)]
    r = right
    if d == 2:
        (a, b), (c, e) = entry
        determinant = a * e - b * c
        parts = [e * r[0] - b * r[1], a * r[1] - c * r[0]]
    else:
        (a, b, c), (e, f, g), (h, i, j) = entry
        k, m, n = f * j - g * i, g * h - e * j, e * i - f * h
        determinant = a * k + b * m + c * n
        parts = [
            k * r[0] + (c * i - b * j) * r[1] + (b * g - c * f) * r[2],
            m * r[0] + (a * j - c * h) * r[1] + (c * e - a * g) * r[2],
            n * r[0] + (b * h - a * i) * r[1] + (a * f - b * e) * r[2],
        ]
    tiny = 1e-6
    safe = torch.where(determinant.abs() < tiny, tiny, determinant)
    return torch.stack(parts) / safe
