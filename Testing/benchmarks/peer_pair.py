"""A benchmark pair, its initial alignment, and pairs with a known motion."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

Points = NDArray[np.float64]


@dataclass(frozen=True)
class Pair:
    """One registration problem; points are (n, 3) ITK physical points (LPS mm), equal rows correspond."""

    group: str
    name: str
    fixed: Path
    moving: Path
    fixed_labels: Path | None = None
    moving_labels: Path | None = None
    fixed_points_mm: Points | None = None
    moving_points_mm: Points | None = None
    fixed_mask: Path | None = None
    moving_mask: Path | None = None
    fixed_lesion: Path | None = None  # shown by the fixed image only; labels are not compared there
    regions: Path | None = None  # label map of the moving image, for methods with a stiffness per region
    one_modality: bool = True
    start: str = "affine"  # or "identity"
    outside: float = 0.0


def read_points(path: Path) -> Points:
    """Landmarks of an elastix text file (`point`, count, rows) or a legacy ASCII `.vtk` polydata file."""
    words = path.read_text(encoding="utf-8").split()
    if path.suffix == ".vtk":
        at = words.index("POINTS")
        count, values = int(words[at + 1]), words[at + 3 :]
    else:
        if words[0] != "point":
            raise ValueError(f"{path}: expected an elastix file of physical points.")
        count, values = int(words[1]), words[2:]
    return np.array(values[: 3 * count], dtype=np.float64).reshape(count, 3)


def affine_start(fixed: sitk.Image, moving: sitk.Image, *, threads: int = 1) -> sitk.AffineTransform:
    """Affine fixed -> moving: centres of mass, then Mattes mutual information at two levels, fixed seed."""
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
    fixed, moving = (sitk.Cast(image, sitk.sitkFloat32) for image in (fixed, moving))
    lowest = [float(sitk.GetArrayViewFromImage(image).min()) for image in (fixed, moving)]
    transform = sitk.CenteredTransformInitializer(
        fixed - lowest[0],
        moving - lowest[1],
        sitk.AffineTransform(3),
        sitk.CenteredTransformInitializerFilter.MOMENTS,
    )
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(32)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(0.2, 7)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-4, 200, 0.5, 1e-6)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([4, 2] if min(fixed.GetSize()) >= 96 else [2, 1])
    method.SetSmoothingSigmasPerLevel([2, 1])
    method.SetInitialTransform(transform, inPlace=True)
    method.Execute(fixed, moving)
    return sitk.AffineTransform(transform)


def start_of(pair: Pair, folder: Path) -> Path:
    """Path of the pair's initial transform, computed on first use."""
    path = folder / f"{pair.name}.tfm"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        images = [sitk.ReadImage(str(file)) for file in (pair.fixed, pair.moving)]
        start = sitk.AffineTransform(3) if pair.start == "identity" else affine_start(images[0], images[1])
        sitk.WriteTransform(start, str(path))
    return path


def smooth_motion(
    like: sitk.Image, amplitude_mm: float, cell_mm: float, seed: int
) -> sitk.DisplacementFieldTransform:
    """A smooth random motion on the image's grid; no folds while the amplitude is well under the cell."""
    random = np.random.default_rng(seed)
    coarse = [max(4, round(n * s / cell_mm)) for n, s in zip(like.GetSize(), like.GetSpacing(), strict=True)]
    nodes = random.uniform(-1, 1, (*coarse[::-1], 3))
    image = sitk.GetImageFromArray(nodes, isVector=True)
    extent = [(n - 1) * s for n, s in zip(like.GetSize(), like.GetSpacing(), strict=True)]
    image.SetSpacing([e / (c - 1) for e, c in zip(extent, coarse, strict=True)])
    image.SetOrigin(like.GetOrigin())
    image.SetDirection(like.GetDirection())
    parts = [sitk.VectorIndexSelectionCast(image, axis) for axis in range(3)]
    dense = np.stack(
        [
            sitk.GetArrayFromImage(sitk.Resample(part, like, sitk.Transform(), sitk.sitkBSpline, 0.0))
            for part in parts
        ],
        axis=-1,
    )
    motion = sitk.GetImageFromArray(
        dense * (amplitude_mm / np.linalg.norm(dense, axis=-1).max()), isVector=True
    )
    motion.CopyInformation(like)
    return sitk.DisplacementFieldTransform(motion)


def synthetic_pair(
    group: str,
    name: str,
    fixed: Path,
    moved_from: Path,
    cache: Path,
    *,
    amplitude_mm: float,
    cell_mm: float,
    labels: Path | None = None,
    fixed_labels: Path | None = None,
    outside: float = 0.0,
    noise: float = 0.02,
    misalign: bool = True,
    one_modality: bool = True,
    seed: int = 3,
) -> Pair:
    """A pair with exact truth: moving(y) = moved_from(S(y)), so fixed point S(y) belongs to moving point y.

    labels: on moved_from's grid; fixed_labels: the same structures on the fixed grid, if that is another.
    """
    source = sitk.Cast(sitk.ReadImage(str(moved_from)), sitk.sitkFloat32)
    centre = source.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in source.GetSize()])
    affine = sitk.AffineTransform(3)
    if misalign:
        euler = sitk.Euler3DTransform(centre, 0.10, -0.07, 0.12, (7.0, -5.0, 6.0))
        affine.SetMatrix(
            np.ravel(np.reshape(euler.GetMatrix(), (3, 3)) @ np.diag([1.06, 0.95, 1.03])).tolist()
        )
        affine.SetCenter(centre)
        affine.SetTranslation(euler.GetTranslation())
    known = sitk.CompositeTransform([affine, smooth_motion(source, amplitude_mm, cell_mm, seed)])
    moving, moving_labels = cache / f"{name}_moving.nii.gz", None
    fixed_image = sitk.ReadImage(str(fixed))
    if labels is not None:
        fixed_labels, moving_labels = fixed_labels or labels, cache / f"{name}_moving_labels.nii.gz"
    if not moving.exists():
        cache.mkdir(parents=True, exist_ok=True)
        out = sitk.Resample(source, source, known, sitk.sitkLinear, outside)
        spread = float(np.std(sitk.GetArrayViewFromImage(out)))
        sitk.WriteImage(sitk.AdditiveGaussianNoise(out, noise * spread, 0.0, seed), str(moving))
        if labels is not None:
            truth = sitk.ReadImage(str(labels))
            sitk.WriteImage(
                sitk.Resample(truth, source, known, sitk.sitkNearestNeighbor, 0), str(moving_labels)
            )
    fixed_points, moving_points = _exact_points(fixed_image, source, known, 500, seed)
    return Pair(
        group,
        name,
        fixed,
        moving,
        fixed_labels,
        moving_labels,
        fixed_points,
        moving_points,
        one_modality=one_modality,
        start="affine" if misalign else "identity",
        outside=outside,
    )


def _exact_points(
    fixed: sitk.Image, source: sitk.Image, known: sitk.Transform, count: int, seed: int
) -> tuple[Points, Points]:
    foreground = sitk.GetArrayFromImage(sitk.OtsuThreshold(fixed, 0, 1)) > 0
    random = np.random.default_rng(seed)
    pairs = []
    for _ in range(200 * count):
        index = [int(random.integers(2, n - 2)) for n in source.GetSize()]
        y = source.TransformIndexToPhysicalPoint(index)
        x = known.TransformPoint(y)
        where = fixed.TransformPhysicalPointToIndex(x)
        inside = all(0 <= i < n for i, n in zip(where, fixed.GetSize(), strict=True))
        if inside and foreground[where[2], where[1], where[0]]:
            pairs.append((x, y))
        if len(pairs) == count:
            break
    both = np.array(pairs, dtype=np.float64)
    return both[:, 0], both[:, 1]
