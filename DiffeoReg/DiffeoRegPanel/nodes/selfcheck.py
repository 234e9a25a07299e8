"""Is what Slicer shows what the engine computed? The moving volume through the node, against the engine's."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import vtk
from numpy.typing import NDArray
from vtk.util import numpy_support

from DiffeoRegLib.errors import InputError
from DiffeoRegLib.exchange import Image
from DiffeoRegPanel.nodes.grids import mapped
from DiffeoRegPanel.nodes.places import KJI, local_from_voxel, vtk_from_matrix, world_from_voxel
from DiffeoRegPanel.nodes.volumes import array_of

LIMIT = 1e-3
MOST_VOXELS = 700_000
"""So many voxels, evenly spread, are compared: a fraction of a second."""
EDGE_VOX = {"linear": 0.02, "nearest": 0.02, "cubic": 4.0}
"""So near to the border of the moving volume, or between two voxels for `nearest`, two programs may disagree:
on what is outside, which voxel is nearest, how a spline ends."""
MOST_LEFT_OUT = {"linear": 0.05, "nearest": 0.5, "cubic": 0.5}


@dataclass(frozen=True)
class SelfCheck:
    """What the comparison gave.

    max_difference: in intensities.  share_of_range: that over the moving volume's range.
    share_left_out: voxels at the border of the moving volume, or without a number, as a share of all.
    """

    max_difference: float
    share_of_range: float
    share_left_out: float
    ok: bool
    sentence: str


def check_transform(
    node: Any,
    moving: Any,
    fixed: Any,
    moved: Image | NDArray[Any],
    background: float | None = None,
    interpolation: str = "linear",
    most_voxels: int = MOST_VOXELS,
) -> SelfCheck:
    """Compare the moving volume, resampled once by VTK through the node, with the engine's moved image.

    node: over the moving volume, whether or not it is put there already.  moved: (k, j, i) on the fixed
    volume's voxels.  background: the engine's value outside the moving volume; None = the volume's smallest,
    which the engine takes.  interpolation: linear, nearest or cubic, what the engine used.  most_voxels: are
    compared.
    Nothing is added to the scene.  Raises InputError when `moved` does not have the fixed volume's shape.
    """
    engine = moved.array if isinstance(moved, Image) else np.asarray(moved)
    if engine.shape != array_of(fixed).shape[:3]:
        raise InputError(
            f"The moved image does not have the voxels of '{fixed.GetName()}' any more: register again."
        )
    chain, strides = _moving_from_fixed_voxel(node, moving, fixed), _strides(engine.shape, most_voxels)
    low, high = _range(array_of(moving))
    outside = low if background is None else background
    shown = _resliced(moving, chain, engine.shape, strides, outside, interpolation)
    engine = engine[tuple(slice(None, None, s) for s in strides)]
    return _judged(engine, shown, chain, strides, array_of(moving).shape, high - low, interpolation)


def _range(values: NDArray[Any]) -> tuple[float, float]:
    """Smallest and largest finite value; 0, 0 without any."""
    low, high = float(values.min()), float(values.max())
    if np.isfinite([low, high]).all():
        return low, high
    finite = values[np.isfinite(values)]
    return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)


def _judged(
    engine: NDArray[Any],
    shown: NDArray[Any],
    chain: Any,
    strides: list[int],
    moving_shape: tuple[int, ...],
    span: float,
    interpolation: str,
) -> SelfCheck:
    """The largest difference away from the border of the moving volume, and a sentence about it."""
    with np.errstate(invalid="ignore"):
        difference = np.abs(engine.astype(np.float64) - shown)
    unknown = ~np.isfinite(difference)
    index = np.argwhere(~unknown & (difference > LIMIT * span)) * np.array(strides)
    at_edge = np.zeros(difference.shape, dtype=bool)
    if len(index):
        edge = _near_edge(mapped(chain, index[:, ::-1].astype(float)), moving_shape, interpolation)
        at_edge[tuple((index[edge] // np.array(strides)).T)] = True
    left_out = unknown | at_edge
    worst = float(difference[~left_out].max(initial=0.0))
    share = worst / span if span > 0 else (0.0 if worst == 0 else float("inf"))
    lost = float(left_out.mean())
    ok = share <= LIMIT and lost <= MOST_LEFT_OUT[interpolation]
    check = SelfCheck(worst, share, lost, ok, "")
    return replace(check, sentence=_sentence(check))


def measured(check: SelfCheck) -> str:
    """The numbers of a check, as a sentence has them in brackets."""
    lost = 100 * check.share_left_out
    aside = f", {lost:.2g} % of the voxels at the border of the moving volume left out" if lost else ""
    share = 100 * check.share_of_range
    return f"largest difference {check.max_difference:.3g}, {share:.2g} % of the intensity range{aside}"


def _sentence(check: SelfCheck) -> str:
    if check.ok:
        return f"The transform node moves the image exactly as the registration did ({measured(check)})."
    return (
        f"The transform node does not move the image as the registration did ({measured(check)}): do not use "
        "this result, and please report it with the log."
    )


def _strides(shape: tuple[int, ...], most_voxels: int) -> list[int]:
    """Steps along k, j, i, so that not too many voxels are left; the finest axis is thinned first."""
    strides = [1, 1, 1]
    while np.prod([-(-n // s) for n, s in zip(shape, strides, strict=True)]) > most_voxels:
        counts = [n / s for n, s in zip(shape, strides, strict=True)]
        strides[int(np.argmax(counts))] += 1
    return strides


def _moving_from_fixed_voxel(node: Any, moving: Any, fixed: Any) -> Any:
    """Fixed (i, j, k) to moving (i, j, k) through the node, which stands for moving's parents."""
    through = vtk.vtkGeneralTransform()
    node.GetTransformFromWorld(through)
    chain = vtk.vtkGeneralTransform()
    chain.PostMultiply()
    chain.Concatenate(vtk_from_matrix(world_from_voxel(fixed)[:, KJI]))
    chain.Concatenate(through)
    chain.Concatenate(vtk_from_matrix(np.linalg.inv(local_from_voxel(moving)[:, KJI])))
    return chain


def _resliced(
    moving: Any,
    chain: Any,
    shape: tuple[int, ...],
    strides: list[int],
    background: float,
    interpolation: str,
) -> NDArray[np.float32]:
    """The moving volume on every so many fixed voxels: one interpolation, half a voxel of border."""
    data = vtk.vtkImageData()
    data.ShallowCopy(moving.GetImageData())
    data.SetOrigin(0, 0, 0)
    data.SetSpacing(1, 1, 1)
    counts = [-(-n // s) for n, s in zip(shape, strides, strict=True)]
    reslice = vtk.vtkImageReslice()
    reslice.SetInputData(data)
    reslice.SetResliceTransform(chain)
    reslice.SetOutputOrigin(0, 0, 0)
    reslice.SetOutputSpacing(*[float(s) for s in strides[::-1]])
    reslice.SetOutputExtent(0, counts[2] - 1, 0, counts[1] - 1, 0, counts[0] - 1)
    reslice.SetOutputScalarType(vtk.VTK_FLOAT)
    reslice.SetBackgroundLevel(float(background))
    _set_interpolation(reslice, data, interpolation)
    reslice.Update()
    out = numpy_support.vtk_to_numpy(reslice.GetOutput().GetPointData().GetScalars())
    return out.reshape(counts)


def _set_interpolation(reslice: Any, data: Any, interpolation: str) -> None:
    if interpolation == "nearest":
        reslice.SetInterpolationModeToNearestNeighbor()
    elif interpolation == "cubic":
        coefficients = vtk.vtkImageBSplineCoefficients()
        coefficients.SetInputData(data)
        coefficients.SetBorderModeToMirror()
        interpolator = vtk.vtkImageBSplineInterpolator()
        interpolator.SetSplineDegree(3)
        interpolator.SetBorderModeToMirror()
        reslice.SetInputConnection(coefficients.GetOutputPort())
        reslice.SetInterpolator(interpolator)
    else:
        reslice.SetInterpolationModeToLinear()


def _near_edge(index: NDArray[np.float64], shape: tuple[int, ...], interpolation: str) -> NDArray[np.bool_]:
    """Which positions (n, 3), moving (i, j, k), are so near to a border of validity that rounding decides.

    For the nearest voxel, that is every plane between two voxels.
    """
    size = np.array(shape[2::-1])
    if interpolation == "nearest":
        return (np.abs(index - np.floor(index) - 0.5) < EDGE_VOX[interpolation]).any(axis=1)
    beyond = np.maximum(-0.5 - index, index - (size - 0.5)).max(axis=1)
    return np.abs(beyond) < EDGE_VOX[interpolation]
