"""Jacobian determinants of x -> x + u(x) and what is counted from them.

A determinant is a ratio of volumes: it is the same in voxels and in millimetres, for any spacing and
direction of the grid, because the change of coordinates cancels (det(A (I + Du) A^-1) = det(I + Du)).

Two readings of the derivative:
* `central`: central differences at every voxel (one-sided at the border); blind to folds of one voxel.
* `corners`: the exact derivatives of the multilinear interpolant, which is what is resampled, at the 2^d
  corners of every cell. In 2D the determinant of a bilinear cell is an affine function of the position,
  so positive corners prove that the whole cell is unfolded. In 3D it is quadratic along each axis and
  its corners do not bound it (a test holds counterexamples); `minimum_cell_bound` does: it is positive
  only if no point of the cell folds, hence neither does any finer sampling inside the cell.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from DiffeoRegLib.errors import InputError, SettingsError, ShapeError

SLAB_VALUES = 1 << 18  # cells worked on at once: the differences of a slab stay in the cache

EXCESS_SLACK = 1e-3
"""More than the rounding of a determinant."""
MOST_DOUBTFUL = 0.1
"""Where more of the cells are in doubt, the determinants of all are as cheap."""

Columns = list[list[Tensor]]  # [axis of the derivative][component]


def require_field(u_vox: Tensor) -> int:
    """Number of spatial axes d of a field (N, d, *spatial); raises ShapeError for anything else."""
    dim = u_vox.dim() - 2
    if dim not in (2, 3) or u_vox.shape[1] != dim:
        raise ShapeError(f"A field is (N, 2, H, W) or (N, 3, D, H, W), not {tuple(u_vox.shape)}.")
    return dim


def jacobian_determinant(u_vox: Tensor, kind: Literal["central", "corners"] = "central") -> Tensor:
    """Determinant of I + Du.

    u_vox: (N, d, *shape).  Returns (N, *shape) for `central`, (N, 2^d, *(shape - 1)) for `corners`,
    corner number read as bits, first axis highest.  Differentiable.
    Raises ShapeError for anything but a field, for `corners` also for an axis of one voxel.
    """
    if kind == "corners":
        return corner_determinants(u_vox)
    if kind != "central":
        raise SettingsError(f"Determinants are 'central' or 'corners', not '{kind}'.")
    dim = require_field(u_vox)
    slopes = [_central_difference(u_vox, 2 + axis) for axis in range(dim)]
    return _determinant(_columns(slopes))


def corner_determinants(u_vox: Tensor) -> Tensor:
    """Determinants of the multilinear interpolant at the 2^d corners of every cell, (N, 2^d, *(shape - 1)).

    Holds 2^d volumes; `minimum_corner_determinant` does not.  Raises ShapeError for an axis of one voxel.
    """
    dim = _require_cells(u_vox)
    slopes = [u_vox.diff(dim=2 + axis) for axis in range(dim)]
    return torch.stack([_determinant(_at_corner(slopes, c)) for c in _corners(dim)], 1)


def minimum_corner_determinant(u_vox: Tensor) -> Tensor:
    """Smallest of the corner determinants of every cell, (N, 1, *(shape - 1)).

    Works one slab of the volume at a time.  Raises ShapeError for an axis of one voxel.
    """
    dim = _require_cells(u_vox)
    slabs = []
    for slab in _slabs(u_vox):
        slopes = [slab.diff(dim=2 + axis) for axis in range(dim)]
        lowest: Tensor | None = None
        for corner in _corners(dim):
            value = _determinant(_at_corner(slopes, corner))
            lowest = value if lowest is None else torch.minimum(lowest, value)
        assert lowest is not None
        slabs.append(lowest[:, None])
    return torch.cat(slabs, 2)


def folded_cells(u_vox: Tensor, least_determinant: float = 0.0) -> Tensor:
    """True for cells with a corner determinant that is not above a bound >= 0, (N, 1, *(shape - 1)); NaN too.

    As comparing `minimum_corner_determinant` does, but most cells need no determinant: where the
    diagonal entry of every column of I + Du exceeds the sum of the others, det is at least the product of
    these excesses.
    Raises ShapeError for an axis of one voxel.
    Source of the bound: Ostrowski, Bulletin des Sciences Mathematiques 61, 1937.
    """
    dim = _require_cells(u_vox)
    enough = least_determinant ** (1 / dim) + EXCESS_SLACK
    slabs = []
    for slab in _slabs(u_vox):
        doubtful = _doubtful_cells(slab, enough)
        count = int(doubtful.sum())
        if count > MOST_DOUBTFUL * doubtful.numel():
            doubtful = ~(minimum_corner_determinant(slab) > least_determinant)
        elif count:
            cells = doubtful.nonzero()
            doubtful[tuple(cells.T)] = ~(_lowest_of_cells(slab, cells) > least_determinant)
        slabs.append(doubtful)
    return torch.cat(slabs, 2)


def minimum_cell_bound(u_vox: Tensor) -> Tensor:
    """Lower bound of the determinant of the multilinear interpolant over every cell, (N, 1, *(shape - 1)).

    The determinant is multilinear in its columns, column a is multilinear in the other d - 1 coordinates:
    its Bernstein coefficients of degree d - 1 along each axis are means of determinants of columns taken
    from different edges of the cell, and the smallest coefficient bounds it from below (equal to the
    corner minimum in 2D).  Not exact but never optimistic.  Raises ShapeError for an axis of one voxel.
    """
    dim = _require_cells(u_vox)
    slabs = []
    for slab in _slabs(u_vox):
        slopes = [slab.diff(dim=2 + axis) for axis in range(dim)]
        edges = [_edges(slope, axis) for axis, slope in enumerate(slopes)]
        lowest: Tensor | None = None
        for index in itertools.product(range(dim), repeat=dim):
            value = _bernstein(edges, index)
            lowest = value if lowest is None else torch.minimum(lowest, value)
        assert lowest is not None
        slabs.append(lowest[:, None])
    return torch.cat(slabs, 2)


def folded_percent(u_vox: Tensor, mask: Tensor | None = None) -> float:
    """Percent of cells in which any corner determinant is not positive.

    mask: (N or 1, 1, *shape), nonzero inside; a cell counts when all its corners are inside.
    The count is of this grid: a finer sampling of a coarse field takes differences across the coarse cell
    faces (and, in 3D, inside cells), which corners do not bound; count again on the grid that is stored.
    NaN counts as folded.
    Raises InputError when the mask leaves no cell, ShapeError as `minimum_corner_determinant`.
    """
    bad = folded_cells(u_vox.detach())
    if mask is None:
        return float(bad.double().mean() * 100)
    inside = _cells_inside(mask != 0).expand_as(bad)
    count = int(inside.sum())
    if count == 0:
        raise InputError("The mask contains no whole cell of the grid to count folds in.")
    return 100.0 * int((bad & inside).sum()) / count


def log_jacobian(u_vox: Tensor, *, floor: float = 1e-9, learn2reg: bool = False) -> Tensor:
    """Logarithm of the central determinant, (N, *shape), cut below at `floor`.

    learn2reg: the challenge's variant log(clip(det + 3, 1e-9, 1e9)), kept to compare with its tables.
    """
    determinant = jacobian_determinant(u_vox)
    if learn2reg:
        return (determinant + 3).clamp(1e-9, 1e9).log()
    return determinant.clamp(min=floor).log()


def sd_log_jacobian(u_vox: Tensor, mask: Tensor | None = None, *, learn2reg: bool = False) -> float:
    """Standard deviation of the log-Jacobian inside a mask, no unit.

    mask: (N or 1, 1, *shape), nonzero inside.  learn2reg: see `log_jacobian`; without a mask the challenge's
    border of two voxels is left out too.  Raises InputError for an empty mask.
    """
    values = log_jacobian(u_vox.detach(), learn2reg=learn2reg)
    if mask is not None:
        values = values[(mask[:, 0] != 0).expand_as(values)]
    elif learn2reg:
        values = values[(slice(None), *[slice(2, -2)] * (values.dim() - 1))]
    if values.numel() == 0:
        raise InputError("There is no voxel to measure the Jacobian in.")
    return float(values.double().std(correction=0))


def _require_cells(u_vox: Tensor) -> int:
    dim = require_field(u_vox)
    if min(u_vox.shape[2:]) < 2:
        raise ShapeError(f"A cell needs two voxels along every axis; the field is {tuple(u_vox.shape)}.")
    return dim


def _doubtful_cells(u_vox: Tensor, enough: float) -> Tensor:
    """Cells with an edge along which I + Du does not exceed its other entries by so much, (N, 1, *cells)."""
    dim = u_vox.dim() - 2
    doubtful: Tensor | None = None
    for axis in range(dim):
        slope = u_vox.diff(dim=2 + axis)
        excess = slope[:, axis : axis + 1]
        for other in range(dim):
            if other != axis:
                excess = excess - slope[:, other : other + 1].abs_()
        edges = ~(excess >= enough - 1)
        for other in range(dim):
            if other != axis:
                edges = _cell_side(edges, other, 0) | _cell_side(edges, other, 1)
        doubtful = edges if doubtful is None else doubtful.logical_or_(edges)
    assert doubtful is not None
    return doubtful


def _lowest_of_cells(u_vox: Tensor, cells: Tensor) -> Tensor:
    """Smallest corner determinant of listed cells, (n,); cells: (n, 2 + d) as `nonzero` gives them."""
    dim = u_vox.dim() - 2
    batch, _, *index = cells.T
    corners = [
        u_vox[(batch, slice(None), *[i + c for i, c in zip(index, corner, strict=True)])]
        for corner in _corners(dim)
    ]
    nodes = torch.stack([corner.T for corner in corners], 1).view(dim, *[2] * dim, -1)
    return minimum_corner_determinant(nodes.movedim(-1, 0)).flatten()


def _central_difference(values: Tensor, axis: int) -> Tensor:
    """Half the difference of the neighbours, one-sided at the ends, 0 along an axis of one voxel."""
    n = values.shape[axis]
    if n == 1:
        return torch.zeros_like(values)
    steps = values.diff(dim=axis)
    first, last = steps.narrow(axis, 0, 1), steps.narrow(axis, n - 2, 1)
    middle = (steps.narrow(axis, 0, n - 2) + steps.narrow(axis, 1, n - 2)) * 0.5
    return torch.cat([first, middle, last], axis)


def _columns(slopes: Sequence[Tensor]) -> Columns:
    """Components of each derivative, without the identity."""
    return [[slope[:, c] for c in range(len(slopes))] for slope in slopes]


def _determinant(columns: Columns) -> Tensor:
    """det(I + Du); entry [axis][component] of `columns` is d u_component / d x_axis."""
    if len(columns) == 2:
        (a, b), (c, d) = columns
        return (a + 1) * (d + 1) - b * c
    (a, b, c), (d, e, f), (g, h, i) = columns
    a, e, i = a + 1, e + 1, i + 1
    return a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)


def _corners(dim: int) -> Iterator[tuple[int, ...]]:
    return itertools.product((0, 1), repeat=dim)


def _cell_side(values: Tensor, axis: int, side: int) -> Tensor:
    """Values at one end of the cells along a spatial axis."""
    return values.narrow(2 + axis, side, values.shape[2 + axis] - 1)


def _at_corner(slopes: Sequence[Tensor], corner: Sequence[int]) -> Columns:
    """Edge differences that meet at one corner of every cell."""
    met = []
    for axis, slope in enumerate(slopes):
        for other, side in enumerate(corner):
            if other != axis:
                slope = _cell_side(slope, other, side)
        met.append(slope)
    return _columns(met)


def _edges(slope: Tensor, axis: int) -> dict[tuple[int, ...], list[Tensor]]:
    """The 2^(d-1) edges of every cell along `axis`, keyed by their side on every axis (0 on `axis`)."""
    dim = slope.dim() - 2
    edges = {}
    for corner in _corners(dim):
        if corner[axis] == 0:
            part = slope
            for other, side in enumerate(corner):
                if other != axis:
                    part = _cell_side(part, other, side)
            edges[corner] = [part[:, c] for c in range(dim)]
    return edges


def _bernstein(edges: Sequence[dict[tuple[int, ...], list[Tensor]]], index: tuple[int, ...]) -> Tensor:
    """Bernstein coefficient `index` of the determinant: the mean over the edge choices that sum to it."""
    dim = len(edges)
    total: Tensor | None = None
    count = 0
    for choice in itertools.product(*[e.keys() for e in edges]):
        if all(sum(sides[axis] for sides in choice) == index[axis] for axis in range(dim)):
            value = _determinant([edges[axis][sides] for axis, sides in enumerate(choice)])
            total = value if total is None else total + value
            count += 1
    assert total is not None
    return total / count


def _slabs(u_vox: Tensor) -> Iterator[Tensor]:
    """Overlapping runs of whole slices along the first axis that cover every cell once."""
    n = u_vox.shape[2]
    per_slice = max(1, u_vox[:, 0, 0].numel())
    step = max(1, SLAB_VALUES // per_slice)
    for first in range(0, n - 1, step):
        yield u_vox[:, :, first : min(first + step, n - 1) + 1]


def _cells_inside(mask: Tensor) -> Tensor:
    """True for cells all of whose corners are inside, (N, 1, *(shape - 1))."""
    for axis in range(mask.dim() - 2):
        mask = _cell_side(mask, axis, 0) & _cell_side(mask, axis, 1)
    return mask
