"""The single measurements of a report; each needs only its own inputs, so `evaluate` uses them too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from DiffeoRegLib.losses.similarity import lncc, ncc, window_from_mm
from DiffeoRegLib.metrics import label_table
from DiffeoRegLib.space.field import u_vox_from_mm
from DiffeoRegLib.space.grid import Grid, Matrix
from DiffeoRegLib.space.jacobian import folded_percent, jacobian_determinant, minimum_corner_determinant
from DiffeoRegLib.space.transform import (
    AffineTransform,
    CompositeTransform,
    DisplacementTransform,
    Transform,
    displacement_on,
)
from DiffeoRegLib.volumes.pair import Correspondence
from DiffeoRegLib.volumes.resample import warp_labels, warp_volume
from DiffeoRegLib.volumes.volume import Volume

MOST_SIMILARITY_VOXELS = 3_000_000  # finer images are read on every n-th voxel
MOST_POINTS = 100_000
CYCLE_POINTS = 20_000
LNCC_WINDOW_MM = 9.0
HISTOGRAM_BINS = 64
IDENTITY = AffineTransform(np.eye(4))


@dataclass(frozen=True, eq=False)
class Deformation:
    """The part of a transform that is not affine: displacement in mm, (1, 3, *shape), on its own grid."""

    grid: Grid
    u_mm: Tensor

    @property
    def u_vox(self) -> Tensor:
        """The displacement in voxels of its grid, (1, d, *shape)."""
        return u_vox_from_mm(self.u_mm, self.grid)


def deformation_of(transform: Transform, grid: Grid) -> Deformation | None:
    """The displacement field inside a transform, on the grid it is stored on; None for an affine one.

    A transform of several fields is read on `grid` as a whole, affine parts included.
    """
    parts = _flat(transform)
    fields = [part for part in parts if isinstance(part, DisplacementTransform)]
    others = [part for part in parts if not isinstance(part, (DisplacementTransform, AffineTransform))]
    if not fields and not others:
        return None
    if len(fields) == 1 and not others:
        return Deformation(fields[0].grid, fields[0].u_mm.float())
    return Deformation(grid, displacement_on(transform, grid))


def similarity_scores(
    fixed: Volume, moving: Volume, stages: Mapping[str, Transform], mask: Volume | None
) -> dict[str, Any]:
    """NCC, NMI and LNCC of the fixed image and the moving image read through each transform.

    Only voxels inside the moving image (and the mask) count; a stage without 100 of them has None.
    """
    strides = _strides(fixed.grid, MOST_SIMILARITY_VOXELS)
    grid = fixed.grid.coarsened(strides)
    reference = fixed.data.float() if max(strides) == 1 else warp_volume(fixed, IDENTITY, grid).data
    counts = torch.ones(grid.shape, dtype=torch.bool)
    if mask is not None:
        counts = warp_labels(mask, IDENTITY, grid).data != 0
    scores: dict[str, Any] = {"measured_on_mm": list(grid.spacing[::-1])}
    for stage, transform in stages.items():
        # A value no image has marks what lies outside the moving image, without a second pass.
        moved = warp_volume(moving, transform, grid, fill=float("nan")).data
        inside = counts & torch.isfinite(moved) & torch.isfinite(reference)
        scores[stage] = _similarity(reference, moved, inside, grid)
    return scores


def _similarity(fixed: Tensor, moved: Tensor, inside: Tensor, grid: Grid) -> dict[str, float] | None:
    share = float(inside.double().mean() * 100)
    if int(inside.sum()) < 100:
        return None
    weight = inside[None, None].float()
    first = torch.where(inside, fixed, 0.0)[None, None]
    second = torch.where(inside, moved, 0.0)[None, None]
    window = window_from_mm(LNCC_WINDOW_MM, grid.spacing)
    return {
        "ncc": 1 - float(ncc(first, second, mask=weight)),
        "nmi": normalised_mutual_information(fixed[inside], moved[inside]),
        "lncc": 1 - float(lncc(first, second, window, mask=weight)),
        "overlap_percent": share,
    }


def normalised_mutual_information(first: Tensor, second: Tensor) -> float:
    """(H(A) + H(B)) / H(A, B) of two lists of values, from a 64 x 64 histogram; 1 independent, 2 equal.

    Source: Studholme, Hill and Hawkes, Pattern Recognition 1999.
    """
    codes = _bins(first) * HISTOGRAM_BINS + _bins(second)
    joint = torch.bincount(codes, minlength=HISTOGRAM_BINS**2).double().view(HISTOGRAM_BINS, HISTOGRAM_BINS)
    joint = joint / joint.sum()
    together = _entropy(joint.flatten())
    return (_entropy(joint.sum(0)) + _entropy(joint.sum(1))) / together if together > 0 else 2.0


def _bins(values: Tensor) -> Tensor:
    """Bin number of every value; the outer 0.5 % on both sides share the outer bins."""
    step = max(1, len(values) // 200_000)
    low, high = torch.quantile(values[::step].float(), torch.tensor([0.005, 0.995]))
    scaled = (values - low) / (high - low).clamp(min=1e-12) * HISTOGRAM_BINS
    bins: Tensor = scaled.floor().clamp(0, HISTOGRAM_BINS - 1).to(torch.int64)
    return bins


def _entropy(share: Tensor) -> float:
    positive = share[share > 0]
    return float(-(positive * positive.log()).sum())


def fold_scores(transform: Transform, grid: Grid, mask: Volume | None = None) -> dict[str, float | None]:
    """Folds (corner determinants) and volume change of the deformation, on the grid it is stored on."""
    deformation = deformation_of(transform, grid)
    if deformation is None:
        none = {"folded_percent": 0.0, "folded_percent_in_mask": None if mask is None else 0.0}
        return none | {"minimum_determinant": 1.0, "maximum_determinant": 1.0, "sd_log_jacobian": 0.0}
    u_vox = deformation.u_vox
    lowest = minimum_corner_determinant(u_vox)
    central = jacobian_determinant(u_vox)
    within = None
    if mask is not None:
        marked = warp_labels(mask, IDENTITY, deformation.grid).data != 0
        within = folded_percent(u_vox, marked[None, None]) if _holds_a_cell(marked) else None
    return {
        "folded_percent": float((~(lowest > 0)).double().mean() * 100),
        "folded_percent_in_mask": within,
        "minimum_determinant": float(lowest.min()),
        "maximum_determinant": float(central.max()),
        "sd_log_jacobian": float(central.clamp(min=1e-9).log().double().std(correction=0)),
    }


def _holds_a_cell(marked: Tensor) -> bool:
    """True if 2^d neighbouring voxels are all marked."""
    for axis in range(marked.dim()):
        size = marked.shape[axis] - 1
        marked = marked.narrow(axis, 0, size) & marked.narrow(axis, 1, size)
    return bool(marked.any())


def inverse_scores(transform: Transform, inverse: Transform, fixed: Grid, moving: Grid) -> dict[str, Any]:
    """|T^-1(T(x)) - x|, mm, of points of the fixed image, and the same the other way round.

    Counted are points that land in the other image and never leave the grid of a displacement field on the
    way: beyond it a stored field says nothing (ITK: no displacement).
    `points` says how many, `left_out_percent` how many were not counted.
    """
    return {
        **_round_trip(transform, inverse, fixed, moving),
        "moving_to_fixed": _round_trip(inverse, transform, moving, fixed),
    }


def _round_trip(there: Transform, back: Transform, source: Grid, target: Grid) -> dict[str, Any]:
    points = grid_points(source)
    landed, within_there = _follow(there, points)
    returned, within_back = _follow(back, landed)
    counted = within_there & within_back & _inside(target, landed)
    error = np.linalg.norm(returned[counted] - points[counted], axis=1)
    left_out = 100 * float(1 - counted.mean())
    return {**statistics(error), "points": int(counted.sum()), "left_out_percent": left_out}


def cycle_scores(transforms: Sequence[Transform], grids: Sequence[Grid]) -> dict[str, Any]:
    """|T3(T2(T1(x))) - x|, mm, of points of the first image that stay within all images on the way round.

    transforms: from each image to the next, the last back to the first.  grids: of the images.
    """
    start = grid_points(grids[0], CYCLE_POINTS)
    points, within = start, np.ones(len(start), dtype=bool)
    for transform, grid in zip(transforms, (*grids[1:], grids[0]), strict=True):
        points, stayed = _follow(transform, points)
        within &= stayed & _inside(grid, points)
    error = np.linalg.norm(points[within] - start[within], axis=1)
    return {**statistics(error), "points": int(within.sum())}


def _follow(transform: Transform, points: Matrix) -> tuple[Matrix, NDArray[np.bool_]]:
    """Where points go, and whether each was inside every displacement field it met."""
    within = np.ones(len(points), dtype=bool)
    for part in _flat(transform):
        if isinstance(part, DisplacementTransform):
            within &= _inside(part.grid, points)
        points = part.map_points(points)
    return points, within


def _inside(grid: Grid, points: Matrix) -> NDArray[np.bool_]:
    """Points between the outer voxel centres of a grid."""
    position = grid.index_from_world(points)
    return np.asarray(((position >= -1e-6) & (position <= np.array(grid.shape) - 1 + 1e-6)).all(axis=1))


def displacement_scores(transform: Transform, grid: Grid) -> dict[str, Any]:
    """How far points of the fixed image move: by the whole transform, and by its deformation alone, mm."""
    points = grid_points(grid)
    whole = np.linalg.norm(transform.map_points(points) - points, axis=1)
    deformation = deformation_of(transform, grid)
    if deformation is None:
        return {"whole": statistics(whole), "deformation": statistics(np.zeros(1))}
    field = DisplacementTransform(deformation.grid, deformation.u_mm)
    own_points = grid_points(deformation.grid)
    return {
        "whole": statistics(whole),
        "deformation": statistics(np.linalg.norm(field.map_points(own_points) - own_points, axis=1)),
    }


def label_scores(
    evaluation: Correspondence | None, stages: Mapping[str, Transform], grid: Grid
) -> dict[str, Any] | None:
    """Dice and HD95 of every label at every stage, and their means; None without two label maps."""
    if evaluation is None or evaluation.fixed_labels is None or evaluation.moving_labels is None:
        return None
    reference = evaluation.fixed_labels
    if not reference.grid.same_as(grid, tolerance=1e-2):
        reference = warp_labels(reference, IDENTITY, grid)
    moved = {
        stage: warp_labels(evaluation.moving_labels, transform, reference.grid)
        for stage, transform in stages.items()
    }
    return compare_labels(reference, moved)


def compare_labels(reference: Volume, moved: Mapping[str, Volume]) -> dict[str, Any]:
    """Dice and HD95 of label maps on one grid, per stage and label."""
    tables = {stage: label_table(reference, labels) for stage, labels in moved.items()}
    names = sorted({int(label) for table in tables.values() for label in table})
    per_label = {
        str(name): {
            stage: table.get(name, {"dice": None, "hd95_mm": None}) for stage, table in tables.items()
        }
        for name in names
    }
    means = {
        stage: {key: _mean([rows[stage][key] for rows in per_label.values()]) for key in ("dice", "hd95_mm")}
        for stage in moved
    }
    return {"mean": means, "per_label": per_label}


def landmark_scores(
    evaluation: Correspondence | None, stages: Mapping[str, Transform]
) -> dict[str, Any] | None:
    """|T(fixed landmark) - moving landmark| at every stage, mm; None without landmarks."""
    if evaluation is None or evaluation.fixed_points_mm is None or evaluation.moving_points_mm is None:
        return None
    fixed, moving = evaluation.fixed_points_mm, evaluation.moving_points_mm
    scores: dict[str, Any] = {"count": len(fixed)}
    for stage, transform in stages.items():
        error = np.linalg.norm(transform.map_points(fixed) - moving, axis=1)
        scores[stage] = statistics(error) | {"sd": float(error.std()), "median": float(np.median(error))}
    return scores


def statistics(values: NDArray[np.float64]) -> dict[str, float | None]:
    """Mean, 95th percentile and maximum; None each for no values."""
    if len(values) == 0:
        return {"mean": None, "p95": None, "max": None}
    return {"mean": float(values.mean()), "p95": float(np.percentile(values, 95)), "max": float(values.max())}


def grid_points(grid: Grid, most: int = MOST_POINTS) -> Matrix:
    """At most so many voxel centres spread evenly over a grid, RAS mm, (n, 3)."""
    strides = _strides(grid, most)
    axes = [
        np.arange((n - 1) % s // 2, n, s, dtype=np.float64) for n, s in zip(grid.shape, strides, strict=True)
    ]
    return grid.world_from_index(np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, grid.dim))


def _strides(grid: Grid, most: int) -> list[int]:
    """Smallest equal strides (at most the axis length) that leave at most `most` voxels."""
    step = 1
    while np.prod([-(-n // min(step, n)) for n in grid.shape]) > most:
        step += 1
    return [min(step, n) for n in grid.shape]


def _flat(transform: Transform) -> list[Transform]:
    if isinstance(transform, CompositeTransform):
        return [leaf for part in transform.parts for leaf in _flat(part)]
    return [transform]


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
