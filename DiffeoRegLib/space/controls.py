"""Cubic B-spline control points: a field of few bounded numbers that provably cannot fold.

Control j of stride s sits at voxel s(j + 1/2) - 1/2, cell-centred like every level; beyond the border the
outermost control repeats. Between voxels the field is multilinear, so what matters is the field's
differences from voxel to voxel, not the spline's derivative.
Source: Honkamaa and Marttinen, SITReg, MELBA 2024, section 3.4 and appendix (the bound for sampled splines).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import combinations_with_replacement, product

import torch
from torch import Tensor

from DiffeoRegLib.errors import SettingsError, ShapeError
from DiffeoRegLib.space.filters import Banded, apply_axes

MARGIN = 0.99
"""Share of the largest safe control value that is used, so that rounding cannot reach a fold."""
TAPS = range(-1, 4)
PLACES_PER_CHUNK = 1 << 15


def upsample_controls(controls: Tensor, strides: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Values of the spline with these coefficients at all voxels.

    controls: (N, C, *ceil(shape / strides)).  Returns (N, C, *shape), in the unit of the controls.
    Raises ShapeError when the controls do not belong to `shape` at these strides.
    """
    expected = tuple(-(-n // s) for n, s in zip(shape, strides, strict=True))
    if tuple(controls.shape[2:]) != expected:
        raise ShapeError(
            f"A grid of {tuple(shape)} has {expected} controls at strides {tuple(strides)}, "
            f"not {tuple(controls.shape[2:])}."
        )
    return apply_axes(
        controls,
        [_spline_matrix(s, n, controls.dtype, controls.device) for s, n in zip(strides, shape, strict=True)],
    )


def largest_control(strides: Sequence[int], margin: float = MARGIN) -> tuple[float, ...]:
    """The largest control value of each component, in steps of the controls, that keeps x + u(x) injective.

    margin / K with K of equation 9: |controls| <= this makes u a contraction in the maximum norm, so all
    corner determinants of every cell are positive (at least 1 - margin) and v <- -u(x + v) converges.
    strides: control spacing over voxel spacing per axis, whole numbers of at least 1.
    Raises SettingsError for other strides or not 2 or 3 of them.
    """
    given = tuple(int(s) for s in strides)
    if len(given) not in (2, 3) or any(s < 1 or s != t for s, t in zip(given, strides, strict=True)):
        raise SettingsError(f"Control strides must be 2 or 3 whole numbers from 1 up, not {tuple(strides)}.")
    return tuple(margin / bound for bound in _bounds(given))


@lru_cache(maxsize=64)
def _spline_matrix(stride: int, size: int, dtype: torch.dtype, device: torch.device) -> Banded:
    """Rows: voxels; columns: controls; the border control is repeated."""
    count = -(-size // stride)
    matrix = torch.zeros((size, count), dtype=torch.float64)
    place = (torch.arange(size, dtype=torch.float64) + 0.5) / stride - 0.5
    base = place.floor().long()
    for tap in range(-1, 3):
        column = base + tap
        weight = cubic_basis(place - column)
        matrix[torch.arange(size), column.clamp(0, count - 1)] += weight
    return Banded.from_dense(matrix.to(dtype).to(device))


def cubic_basis(t: Tensor) -> Tensor:
    """The centred cubic B-spline."""
    near = 2 / 3 - t.square() + t.abs() ** 3 / 2
    far = (2 - t.abs()).clamp(min=0) ** 3 / 6
    return torch.where(t.abs() < 1, near, far)


@lru_cache(maxsize=64)
def _bounds(strides: tuple[int, ...]) -> tuple[float, ...]:
    """K of every component: the largest row sum of |Du| that controls within [-1, 1] can make."""
    same = len(set(strides)) == 1
    tables = [_tables(s) for s in strides]
    places = list(
        combinations_with_replacement(range(strides[0]), len(strides))
        if same  # all axes alike: the order of the places does not matter
        else product(*[range(s) for s in strides])
    )
    largest = 0.0
    for at in range(0, len(places), PLACES_PER_CHUNK):
        index = torch.tensor(places[at : at + PLACES_PER_CHUNK])
        largest = max(largest, float(_row_sums(tables, index).max()))
    return tuple(s * largest for s in strides)


def _tables(stride: int) -> tuple[Tensor, Tensor]:
    """B and its forward difference over one voxel for all places and taps of one axis, (places, taps)."""
    place = ((torch.arange(stride, dtype=torch.float64) + 0.5) / stride - 0.5) % 1.0
    taps = torch.tensor(list(TAPS), dtype=torch.float64)
    here = cubic_basis(place[:, None] - taps)
    return here, cubic_basis(place[:, None] + 1 / stride - taps) - here


def _row_sums(tables: Sequence[tuple[Tensor, Tensor]], index: Tensor) -> Tensor:
    """Sum over all controls of |sum over axes of the difference along that axis|, per place."""
    total: Tensor | float = 0.0
    for moved in range(len(tables)):
        term = torch.ones((len(index), 1), dtype=torch.float64)
        for axis, (here, step) in enumerate(tables):
            factor = (step if axis == moved else here)[index[:, axis]]
            term = (term[:, :, None] * factor[:, None, :]).flatten(1)
        total = total + term
    return torch.as_tensor(total).abs().sum(1)
