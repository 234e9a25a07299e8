"""Scores for any program's result, with SimpleITK, numpy and scipy only: they share no bug with our engine.

A transform is the composition of ITK files that maps fixed points to moving points (LPS mm). Label maps are
warped once, from the original moving file, nearest neighbour.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import ndimage

Array = NDArray[Any]
Part = str | dict[str, str]


def _one(part: Part, start: Path) -> list[sitk.Transform]:
    if isinstance(part, dict) and "inverse_of" in part:
        return [sitk.ReadTransform(part["inverse_of"]).GetInverse()]
    if isinstance(part, dict):
        return [sitk.ReadTransform(str(start)), residual_of_total(part["total"], start)]
    if part.endswith((".tfm", ".h5", ".mat", ".txt")):
        return [sitk.ReadTransform(part)]
    return [sitk.DisplacementFieldTransform(sitk.ReadImage(part, sitk.sitkVectorFloat64))]


def read_transform(parts: Sequence[Part], start: Path) -> sitk.CompositeTransform:
    """Composite of the listed parts; the last one acts first (ITK's order).

    A part is a transform file, a displacement image, `{"inverse_of": linear file}`, or `{"total": image}`:
    the whole map on the fixed grid, split into start and rest, so that beyond the grid it is the start.
    """
    return sitk.CompositeTransform([transform for part in parts for transform in _one(part, start)])


def residual_of_total(path: str, start: Path) -> sitk.DisplacementFieldTransform:
    """Displacement u with start(x + u(x)) = x + total(x), on the total field's grid."""
    total = sitk.ReadImage(path, sitk.sitkVectorFloat64)
    linear, offset = linear_parts(sitk.ReadTransform(str(start)))
    points = grid_points(total)
    target = points + sitk.GetArrayFromImage(total)
    field = sitk.GetImageFromArray((target - offset) @ np.linalg.inv(linear).T - points, isVector=True)
    field.CopyInformation(total)
    return sitk.DisplacementFieldTransform(field)


def linear_parts(transform: sitk.Transform) -> tuple[Array, Array]:
    """Matrix (3, 3) and offset (3,) of a linear ITK transform, from the images of four points."""
    offset = np.array(transform.TransformPoint((0.0, 0.0, 0.0)))
    columns = [np.array(transform.TransformPoint(tuple(row))) - offset for row in np.eye(3).tolist()]
    return np.stack(columns, axis=1), offset


def grid_points(image: sitk.Image) -> Array:
    """Physical points (K, J, I, 3) of all voxels, LPS mm."""
    world = np.reshape(image.GetDirection(), (3, 3)) @ np.diag(image.GetSpacing())
    i, j, k = (np.arange(n, dtype=np.float64) for n in image.GetSize())
    index = np.stack(np.broadcast_arrays(i[None, None, :], j[None, :, None], k[:, None, None]), axis=-1)
    return np.asarray(index @ world.T + np.array(image.GetOrigin()))


def field_mm(transform: sitk.Transform, grid: sitk.Image) -> Array:
    """Displacement (K, J, I, 3) in LPS mm of the transform on a grid."""
    field = sitk.TransformToDisplacementField(
        transform,
        sitk.sitkVectorFloat64,
        grid.GetSize(),
        grid.GetOrigin(),
        grid.GetSpacing(),
        grid.GetDirection(),
    )
    return np.asarray(sitk.GetArrayFromImage(field))


def dice(fixed: Array, moved: Array, labels: Sequence[int]) -> dict[int, float]:
    """Dice of each label; a label that vanished in both counts 0."""
    size = int(max(fixed.max(), moved.max(), max(labels, default=0))) + 1
    overlap = np.bincount(fixed[fixed == moved].ravel(), minlength=size)
    total = np.bincount(fixed.ravel(), minlength=size) + np.bincount(moved.ravel(), minlength=size)
    return {label: float(2 * overlap[label] / total[label]) if total[label] else 0.0 for label in labels}


def hd95_mm(fixed: Array, moved: Array, label: int, spacing_mm: Sequence[float]) -> float:
    """95th percentile of surface distances, both ways pooled; spacing in array order; NaN if one is empty."""
    either = (fixed == label) | (moved == label)
    boxes = ndimage.find_objects(either.astype(np.uint8))
    if not boxes:
        return float("nan")
    box = tuple(slice(max(0, s.start - 1), s.stop + 1) for s in boxes[0])
    masks = [np.pad(image[box] == label, 1) for image in (fixed, moved)]
    if not (masks[0].any() and masks[1].any()):
        return float("nan")
    edges = [mask & ~ndimage.binary_erosion(mask) for mask in masks]
    far = [ndimage.distance_transform_edt(~edge, sampling=spacing_mm) for edge in edges]
    return float(np.percentile(np.concatenate([far[1][edges[0]], far[0][edges[1]]]), 95))


def corner_folds(position: Array) -> Array:
    """Boolean (K, J, I): any of the (up to) 8 one-sided corner determinants is <= 0.

    position: (K, J, I, 3), the map's values in voxel index coordinates of its own grid, last axis (k, j, i),
    so that handedness and spacing of the grid cancel.
    """
    steps = [np.diff(position, axis=axis) for axis in range(3)]
    folded: Array = np.zeros(position.shape[:3], dtype=bool)
    for sides in product((0, 1), repeat=3):
        # side 0: forward difference, known for all but the last voxel; side 1: backward, all but the first
        region = tuple(slice(side, n - 1 + side) for side, n in zip(sides, folded.shape, strict=True))
        rows = []
        for axis in range(3):
            cut = [slice(side, n - 1 + side) for side, n in zip(sides, folded.shape, strict=True)]
            cut[axis] = slice(0, folded.shape[axis] - 1)
            rows.append(steps[axis][tuple(cut)])
        folded[region] |= _det(*rows) <= 0
    return folded


def _det(a: Array, b: Array, c: Array) -> Array:
    cross = (
        b[..., 1] * c[..., 2] - b[..., 2] * c[..., 1],
        b[..., 2] * c[..., 0] - b[..., 0] * c[..., 2],
        b[..., 0] * c[..., 1] - b[..., 1] * c[..., 0],
    )
    return np.asarray(a[..., 0] * cross[0] + a[..., 1] * cross[1] + a[..., 2] * cross[2])


def index_positions(displacement_mm: Array, grid: sitk.Image) -> Array:
    """x + displacement in voxel index coordinates of the same grid, last axis (k, j, i)."""
    world = np.reshape(grid.GetDirection(), (3, 3)) @ np.diag(grid.GetSpacing())
    shift = (displacement_mm @ np.linalg.inv(world).T)[..., ::-1]
    return np.asarray(shift + np.moveaxis(np.indices(shift.shape[:3]), 0, -1))


def sd_log_jacobian(position: Array, where: Array) -> float:
    """Standard deviation of log det J (central differences, determinants clipped at 1e-3) over a mask."""
    rows = [np.gradient(position, axis=axis) for axis in range(3)]
    return float(np.log(np.clip(_det(*rows)[where], 1e-3, None)).std())


def nmi(fixed: Array, moved: Array, where: Array, bins: int = 64) -> float:
    """Normalised mutual information (H(a) + H(b)) / H(a, b) in a mask, intensities cut at 0.5 and 99.5 %."""
    scaled = []
    for values in (fixed[where].astype(np.float64), moved[where].astype(np.float64)):
        low, high = np.percentile(values, (0.5, 99.5))
        scaled.append(np.clip(values, low, max(high, low + 1e-9)))
    joint = np.histogram2d(scaled[0], scaled[1], bins=bins)[0]
    joint /= joint.sum()

    def entropy(p: Array) -> float:
        return float(-(p[p > 0] * np.log(p[p > 0])).sum())

    both = entropy(joint)
    return (entropy(joint.sum(axis=0)) + entropy(joint.sum(axis=1))) / both if both > 0 else 1.0


def landmark_errors_mm(transform: sitk.Transform, fixed_mm: Array, moving_mm: Array) -> Array:
    """Distance of every transformed fixed landmark from its moving partner."""
    mapped = np.array([transform.TransformPoint(point) for point in fixed_mm.tolist()])
    return np.asarray(np.linalg.norm(mapped - moving_mm, axis=1))


def inverse_error_mm(
    forward: sitk.Transform, inverse: sitk.Transform, grid: sitk.Image, moving: sitk.Image, where: Array
) -> tuple[float, float]:
    """Mean and largest |inverse(forward(x)) - x| over every 2nd mask voxel landing in the moving volume."""
    points = grid_points(grid)[::2, ::2, ::2][where[::2, ::2, ::2]]
    size, errors = np.array(moving.GetSize()), []
    for x in points.tolist():
        y = forward.TransformPoint(x)
        index = np.array(moving.TransformPhysicalPointToContinuousIndex(y))
        if (index >= 0).all() and (index <= size - 1).all():
            errors.append(np.linalg.norm(np.subtract(inverse.TransformPoint(y), x)))
    return (float(np.mean(errors)), float(np.max(errors))) if errors else (float("nan"), float("nan"))


def foreground(fixed: sitk.Image, labels: sitk.Image | None, mask: sitk.Image | None) -> Array:
    """Where the map is judged: the fixed mask, else Otsu together with the labels; dilated by 2 voxels."""
    if mask is not None:
        inside = (
            sitk.GetArrayFromImage(sitk.Resample(mask, fixed, sitk.Transform(), sitk.sitkNearestNeighbor, 0))
            > 0
        )
    else:
        inside = sitk.GetArrayFromImage(sitk.OtsuThreshold(fixed, 0, 1)) > 0
        if labels is not None:
            inside |= sitk.GetArrayFromImage(labels) > 0
    return np.asarray(ndimage.binary_dilation(inside, iterations=2))


class Truth:
    """What a pair lets us judge, read once: images, labels, landmarks, foreground."""

    def __init__(self, pair: Any, start: Path) -> None:
        """pair: peer_data.Pair; start: its initial transform file."""
        self.pair, self.start = pair, start
        self.fixed = sitk.ReadImage(str(pair.fixed), sitk.sitkFloat32)
        self.moving = sitk.ReadImage(str(pair.moving), sitk.sitkFloat32)
        read = {name: getattr(pair, name) for name in ("fixed_labels", "moving_labels", "fixed_mask")}
        images = {name: sitk.ReadImage(str(path)) if path else None for name, path in read.items()}
        self.fixed_labels, self.moving_labels = images["fixed_labels"], images["moving_labels"]
        lesion = pair.fixed_lesion
        self.lesion = sitk.GetArrayFromImage(sitk.ReadImage(str(lesion))) != 0 if lesion else None
        self.where = foreground(self.fixed, self.fixed_labels, images["fixed_mask"])

    def scores(
        self, forward: Sequence[Part], inverse: Sequence[Part] | None, *, hd95: bool
    ) -> dict[str, Any]:
        """All scores that this pair and this result allow."""
        transform = read_transform(forward, self.start)
        result: dict[str, Any] = {}
        if self.fixed_labels is not None:
            result |= self._label_scores(transform, hd95)
        if self.pair.fixed_points_mm is not None:
            errors = landmark_errors_mm(transform, self.pair.fixed_points_mm, self.pair.moving_points_mm)
            result |= {"tre_mm": float(errors.mean()), "tre_95_mm": float(np.percentile(errors, 95))}
        field = field_mm(transform, self.fixed)
        position = index_positions(field, self.fixed)
        folds = corner_folds(position)
        result["folded_percent"] = 100 * float(folds[self.where].mean())
        result["folded_whole_percent"] = 100 * float(folds.mean())
        result["sd_log_jacobian"] = sd_log_jacobian(position, self.where)
        result["nmi"] = self._nmi(transform)
        if inverse:
            backward = read_transform(inverse, self.start)
            errors_mm = inverse_error_mm(transform, backward, self.fixed, self.moving, self.where)
            result |= dict(zip(("inverse_mean_mm", "inverse_max_mm"), errors_mm, strict=True))
        return result

    def _nmi(self, transform: sitk.Transform) -> float:
        moved = sitk.Resample(self.moving, self.fixed, transform, sitk.sitkLinear, self.pair.outside)
        return nmi(sitk.GetArrayFromImage(self.fixed), sitk.GetArrayFromImage(moved), self.where)

    def _label_scores(self, transform: sitk.Transform, hd95: bool) -> dict[str, Any]:
        moved = sitk.Resample(self.moving_labels, self.fixed_labels, transform, sitk.sitkNearestNeighbor, 0)
        original = np.unique(sitk.GetArrayViewFromImage(self.moving_labels))
        fixed, warped = (
            sitk.GetArrayFromImage(image).astype(np.int64) for image in (self.fixed_labels, moved)
        )
        if self.lesion is not None:
            fixed[self.lesion] = warped[self.lesion] = 0
        labels = [int(label) for label in np.intersect1d(np.unique(fixed), original) if label != 0]
        per_label = dice(fixed, warped, labels)
        result: dict[str, Any] = {"dice": float(np.mean(list(per_label.values()))), "labels": len(labels)}
        if hd95:
            spacing = self.fixed.GetSpacing()[::-1]
            result["hd95_mm"] = float(
                np.nanmean([hd95_mm(fixed, warped, label, spacing) for label in labels])
            )
        return result
