"""Evaluation: how good a registration is, in plain numbers. Nothing here is differentiable.

Every distance is in mm. Label maps are compared on one grid, warped with nearest-neighbour interpolation.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from DiffeoRegLib.errors import GeometryError, InputError, ShapeError
from DiffeoRegLib.space.field import compose
from DiffeoRegLib.space.jacobian import folded_percent, require_field, sd_log_jacobian
from DiffeoRegLib.space.sample import array_from_tensor
from DiffeoRegLib.volumes.volume import Volume

Labels = NDArray[np.integer]
Points = NDArray[np.float64]


class PointMap(Protocol):
    """Anything that maps RAS mm points to RAS mm points, such as a Transform."""

    def map_points(self, points_mm: Points) -> Points:
        """Images (n, 3) of the points (n, 3)."""
        ...


@dataclass(frozen=True)
class Statistics:
    """Mean, standard deviation, median, 95th percentile and maximum of a list of measurements."""

    mean: float
    sd: float
    median: float
    p95: float
    maximum: float

    @classmethod
    def of(cls, values: NDArray[np.floating]) -> Statistics:
        """Raises InputError for an empty list."""
        if values.size == 0:
            raise InputError("There is nothing to measure: the list of values is empty.")
        flat = values.astype(np.float64).ravel()
        return cls(
            float(flat.mean()), float(flat.std()), float(np.median(flat)),
            float(np.percentile(flat, 95)), float(flat.max()),
        )  # fmt: skip

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        return asdict(self)


def dice_per_label(first: Labels, second: Labels, labels: Iterable[int] | None = None) -> dict[int, float]:
    """Dice overlap 2 |A and B| / (|A| + |B|) of each label, in [0, 1].

    first, second: whole numbers on one grid, any shape.
    labels: those asked for, default all but 0 that occur in either. One that occurs in neither gives NaN.
    Raises ShapeError for different shapes.
    """
    counts = _count_labels(first, second)
    names = sorted(counts[0].keys() | counts[1].keys()) if labels is None else list(labels)
    scores = {}
    for name in names:
        total = counts[0].get(name, 0) + counts[1].get(name, 0)
        scores[name] = 2 * counts[2].get(name, 0) / total if total else float("nan")
    return scores


def mean_dice(first: Labels, second: Labels, labels: Iterable[int] | None = None) -> float:
    """Mean of `dice_per_label` over the labels that occur in either map; NaN if none does."""
    return _mean_of_known(dice_per_label(first, second, labels))


def dice_over_pairs(maps: Sequence[Labels]) -> float:
    """Mean of `mean_dice` over all pairs of two maps and more on one grid, without a pass for every pair.

    Raises InputError for fewer maps, ShapeError for different shapes.
    """
    if len(maps) < 2:
        raise InputError(f"Overlaps over all pairs need two label maps or more, not {len(maps)}.")
    if any(one.shape != maps[0].shape for one in maps):
        raise ShapeError(f"Label maps of one shape are compared, not {[one.shape for one in maps]}.")
    names = np.unique(np.concatenate([[0], *(np.unique(one) for one in maps)]))
    rows = [np.searchsorted(names, one.ravel()).astype(np.int32) for one in maps]
    sizes = [np.bincount(row, minlength=len(names)) for row in rows]
    scores = []
    for first, second in itertools.combinations(range(len(maps)), 2):
        both = np.bincount(rows[first][rows[first] == rows[second]], minlength=len(names))
        total = sizes[first] + sizes[second]
        known = (total > 0) & (names != 0)
        if known.any():
            scores.append(float(np.mean(2 * both[known] / total[known])))
    return float(np.mean(scores)) if scores else float("nan")


def hd95_mm(
    first: Labels, second: Labels, spacing: Sequence[float], labels: Iterable[int] | None = None
) -> dict[int, float]:
    """95 % Hausdorff distance of the surfaces of each label, mm.

    The surface of a label are its voxels with a face neighbour of another label; the image border counts as
    another label. The 95th percentile of the distances from each surface to the other, the larger of the two.
    first, second: whole numbers on one grid, d = 2 or 3 axes.  spacing: mm per array axis.
    labels: default all but 0 that occur in either. One that occurs in one map only is infinitely far,
    one that occurs in neither gives NaN.
    Raises ShapeError for different shapes or a spacing that does not fit.
    Source: Huttenlocher et al., IEEE TPAMI 1993 (ranked Hausdorff distance).
    """
    counts = _count_labels(first, second)
    if len(spacing) != first.ndim or not min(spacing) > 0:
        raise ShapeError(f"Label maps of {first.ndim} axes need as many positive spacings, not {spacing}.")
    names = sorted(counts[0].keys() | counts[1].keys()) if labels is None else list(labels)
    boxes = _bounding_boxes(first, second, names)
    distances = {}
    for name in names:
        held = (name in counts[0]) + (name in counts[1])
        if held < 2:
            distances[name] = float("inf") if held else float("nan")
            continue
        box = boxes[name]
        distances[name] = _surface_distance_mm(first[box] == name, second[box] == name, spacing)
    return distances


def label_table(reference: Volume, moved: Volume) -> dict[int, dict[str, float | None]]:
    """`dice` and `hd95_mm` of every label that occurs in either volume; None for an infinite distance.

    Raises GeometryError unless both lie on one grid.
    """
    if not reference.grid.same_as(moved.grid, tolerance=1e-2):
        raise GeometryError(
            f"'{reference.name}' and '{moved.name}' lie on different grids: resample one first."
        )
    first, second = (array_from_tensor(v.data) for v in (reference, moved))
    overlap = dice_per_label(first, second)
    distance = hd95_mm(first, second, reference.grid.spacing)
    return {
        name: {"dice": overlap[name], "hd95_mm": distance[name] if np.isfinite(distance[name]) else None}
        for name in overlap
    }


def tre_mm(fixed_points_mm: Points, moving_points_mm: Points, transform: PointMap | None = None) -> Points:
    """Distance of each moved fixed landmark from its moving landmark, (n,) mm; None = no motion.

    Both (n, 3) RAS mm.  Raises ShapeError for lists that do not pair, InputError for empty ones.
    """
    fixed, moving = (np.asarray(p, dtype=np.float64) for p in (fixed_points_mm, moving_points_mm))
    if fixed.shape != moving.shape or fixed.ndim != 2:
        raise ShapeError(f"Landmarks come in pairs, not {fixed.shape} and {moving.shape}.")
    if len(fixed) == 0:
        raise InputError("There is no landmark to measure.")
    mapped = fixed if transform is None else transform.map_points(fixed)
    return np.asarray(np.linalg.norm(mapped - moving, axis=1))


def inverse_consistency_mm(forward: PointMap, inverse: PointMap, points_mm: Points) -> Statistics:
    """|inverse(forward(x)) - x| over the points (n, 3) RAS mm."""
    points = np.asarray(points_mm, dtype=np.float64)
    return Statistics.of(np.linalg.norm(inverse.map_points(forward.map_points(points)) - points, axis=1))


def inverse_consistency_of_fields_mm(
    u_forward_vox: Tensor, u_inverse_vox: Tensor, spacing: Sequence[float], mask: Tensor | None = None
) -> Statistics:
    """|x - inverse(forward(x))| over the voxels x whose image forward(x) stays on the grid, and in the mask.

    Both fields (N, d, *spatial), voxels of one grid.  spacing: mm per tensor axis.
    mask: (N or 1, 1, *spatial), nonzero inside.
    Raises ShapeError for fields that do not fit, InputError if no voxel is left.
    """
    require_field(u_forward_vox)
    inside = torch.ones_like(u_forward_vox[:, 0], dtype=torch.bool)
    for axis, size in enumerate(u_forward_vox.shape[2:]):
        shape = [size if a == axis else 1 for a in range(u_forward_vox.dim() - 2)]
        position = torch.arange(size, device=u_forward_vox.device).reshape(shape) + u_forward_vox[:, axis]
        inside &= (position >= 0) & (position <= size - 1)
    residual = compose(u_inverse_vox.detach(), u_forward_vox.detach())
    return _length_statistics(residual, spacing, inside if mask is None else inside & (mask[:, 0] != 0))


def displacement_statistics_mm(
    u_vox: Tensor, spacing: Sequence[float], mask: Tensor | None = None
) -> Statistics:
    """Length of the displacement vectors, mm.

    u_vox: (N, d, *spatial), voxels.  spacing: mm per tensor axis.
    mask: (N or 1, 1, *spatial), nonzero inside.
    Raises ShapeError for anything but a field and its spacing, InputError for an empty mask.
    """
    inside = torch.ones_like(u_vox[:, 0], dtype=torch.bool) if mask is None else mask[:, 0] != 0
    return _length_statistics(u_vox, spacing, inside)


def deformation_summary(u_vox: Tensor, mask: Tensor | None = None) -> dict[str, float]:
    """Percent of folded cells (a corner determinant <= 0), spread of the log-Jacobian, also Learn2Reg's.

    u_vox: (N, d, *spatial), voxels.  mask: (N or 1, 1, *spatial), nonzero inside.
    Raises as `space.jacobian`.
    """
    return {
        "folded_percent": folded_percent(u_vox, mask),
        "sd_log_jacobian": sd_log_jacobian(u_vox, mask),
        "sd_log_jacobian_learn2reg": sd_log_jacobian(u_vox, mask, learn2reg=True),
    }


def _count_labels(first: Labels, second: Labels) -> tuple[dict[int, int], dict[int, int], dict[int, int]]:
    """Voxels of each label but 0 in the first map, in the second, and in both at the same place."""
    if first.shape != second.shape:
        raise ShapeError(f"Label maps of one shape are compared, not {first.shape} and {second.shape}.")
    counts = []
    for values in (first, second, first[first == second]):
        names, numbers = np.unique(values, return_counts=True)
        counts.append({int(n): int(c) for n, c in zip(names, numbers, strict=True) if n != 0})
    return counts[0], counts[1], counts[2]


def _bounding_boxes(first: Labels, second: Labels, names: Iterable[int]) -> dict[int, tuple[slice, ...]]:
    """Smallest box that holds each label of both maps, by one pass over the voxels that carry any of them."""
    wanted = np.array(sorted(names))
    low = np.full((len(wanted), first.ndim), np.iinfo(np.int64).max)
    high = np.full((len(wanted), first.ndim), -1)
    for labels in (first, second):
        position = np.stack(np.nonzero(np.isin(labels, wanted)), 1)
        row = np.searchsorted(wanted, labels[tuple(position.T)])
        np.minimum.at(low, row, position)
        np.maximum.at(high, row, position)
    return {
        int(name): tuple(slice(int(a), int(b) + 1) for a, b in zip(low[k], high[k], strict=True))
        for k, name in enumerate(wanted)
    }


def _surface_distance_mm(
    first: NDArray[np.bool_], second: NDArray[np.bool_], spacing: Sequence[float]
) -> float:
    surfaces = [shape & ~ndimage.binary_erosion(shape) for shape in (first, second)]
    directed = []
    for here, there in (surfaces, surfaces[::-1]):
        distance = ndimage.distance_transform_edt(~there, sampling=tuple(spacing))
        directed.append(float(np.percentile(distance[here], 95)))
    return max(directed)


def _length_statistics(u_vox: Tensor, spacing: Sequence[float], inside: Tensor) -> Statistics:
    """Statistics of the vector lengths in mm where `inside` (N or 1, *spatial) is true."""
    dim = require_field(u_vox)
    if len(spacing) != dim:
        raise ShapeError(f"A field of {dim} axes needs {dim} spacings in mm, not {tuple(spacing)}.")
    squared = sum(
        ((u_vox[:, axis].detach().double() * step).square() for axis, step in enumerate(spacing)),
        start=torch.zeros((), dtype=torch.float64),
    )
    return Statistics.of(array_from_tensor(squared.sqrt()[inside.expand_as(squared)]))


def _mean_of_known(scores: Mapping[int, float]) -> float:
    known = [value for value in scores.values() if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")
