"""How a transform is kept in the scene: matrices, and fields on upright grids that end in zeros."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from DiffeoRegLib.exchange import Image
from DiffeoRegLib.flows.integrate import covering_grid
from DiffeoRegLib.report.scores import grid_points
from DiffeoRegLib.space.field import folded_percent, u_vox_from_mm
from DiffeoRegLib.space.filters import Banded, apply_axes
from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.space.sample import array_from_tensor
from DiffeoRegLib.space.storage import upright_grid
from DiffeoRegLib.space.transform import (
    AffineTransform,
    CompositeTransform,
    DisplacementTransform,
    InverseTransform,
    Transform,
    displacement_on,
)
from DiffeoRegLib.volumes.placed import NEARLY_ORTHOGONAL, shear_of
from DiffeoRegLib.volumes.volume import Volume
from DiffeoRegLib.worker.cubic import CubicField, as_volume, cubic_matrix, thick_grid

Parts = list[dict[str, Any]]
SHORT_AXIS = 8
"""Axes of so few voxels keep all of them when the field is stored at half resolution."""
BEYOND_A_CUT = 3
"""Nodes added where a field ends abruptly, so that the layer of zeros is out of reach of the image."""
FIT_PRECISION = 1e-6
COARSER = 1.25
MEGABYTE = 2**20


def storage_grid(field: DisplacementTransform, fixed: Grid, strides: Sequence[int]) -> Grid:
    """The fixed image's grid at some strides, continued until it holds the field and a layer of zeros."""
    layers = BEYOND_A_CUT if _ends_abruptly(field.u_mm) else 1
    grid = covering_grid(fixed.coarsened(strides), field.grid)
    return grid.padded([layers] * grid.dim, [layers] * grid.dim)


@torch.inference_mode()
def stored_field(field: DisplacementTransform, fixed: Grid, storage: str) -> CubicField:
    """A displacement field on its storage grid, its outermost layer 0.

    At half resolution the nodes are those whose cubic interpolant lies nearest to the field, in the sense of
    least squares, at all voxels of the fixed image's lattice.
    """
    upright = upright_grid(fixed) if shear_of(fixed.world_from_voxel) > NEARLY_ORTHOGONAL else fixed
    strides = [2 if storage == "half" and n > SHORT_AXIS else 1 for n in upright.shape]
    grid = storage_grid(field, upright, strides)
    u = displacement_on(field, grid.refined(strides), extend=True)
    fits = [None if s == 1 else _fit(n, s) for n, s in zip(grid.shape, strides, strict=True)]
    return CubicField(grid, _zero_ended(apply_axes(u, fits)))


def _fit(size: int, stride: int) -> Banded:
    """Values at all fine positions of an axis -> the `size` nodes that fit them best, the end nodes 0."""
    fine = (torch.arange(size * stride, dtype=torch.float64) + 0.5) / stride - 0.5
    inner = torch.linalg.pinv(cubic_matrix(fine, size)[:, 1:-1])
    inner[inner.abs() < FIT_PRECISION] = 0  # it falls off within a few voxels: a narrow band is left
    dense = torch.zeros((size, size * stride), dtype=torch.float32)
    dense[1:-1] = inner.float()
    return Banded.from_dense(dense)


def stored_form(transform: Transform, fixed: Grid, storage: str, axis: int | None) -> list[Transform]:
    """The parts of a transform as the scene keeps them, first acts first.

    axis: of a single voxel in the fixed image, None in 3D.  A field between two linear maps lives in a space
    of its own, half-way between the images, and keeps its own grid's axes; others take those of the image.
    Half the resolution means half the image's: such a field that is coarser than the image keeps all nodes.
    """
    if isinstance(transform, CompositeTransform):
        kinds = [type(part) for part in transform.parts]
        if kinds == [AffineTransform, DisplacementTransform, AffineTransform]:
            own: Grid = transform.parts[1].grid  # type: ignore[attr-defined]
            storage = "full" if min(own.spacing) > COARSER * min(fixed.spacing) else storage
            fixed = own
        return [part for whole in transform.parts for part in stored_form(whole, fixed, storage, axis)]
    if isinstance(transform, InverseTransform):
        grid = transform.forward.grid
        return [CubicField(grid, _zero_ended(displacement_on(transform, grid)))]
    if isinstance(transform, DisplacementTransform) and not isinstance(transform, CubicField):
        return [as_volume(stored_field(transform, fixed, storage), axis)]
    return [transform]


def parts_of(stored: Sequence[Transform]) -> Parts:
    """Stored parts as matrices and Images."""
    parts: Parts = []
    for part in stored:
        if isinstance(part, AffineTransform):
            parts.append({"matrix": part.moving_from_fixed.tolist()})
        elif isinstance(part, CubicField):
            parts.append({"displacement": field_image(part.u_mm, part.grid)})
    return parts


def field_image(u_mm: Tensor, grid: Grid, name: str = "") -> Image:
    """Vectors (1, 3, *grid.shape), RAS mm, as an Image of a 3D grid."""
    return Image(array_from_tensor(u_mm[0].float().movedim(0, -1)), grid.world_from_voxel, name)


def volume_image(volume: Volume, axis: int | None) -> Image:
    """A volume as an Image of three axes; axis: the one of a single voxel, None in 3D."""
    data = volume.data if axis is None else volume.data.unsqueeze(axis)
    grid = volume.grid if axis is None else thick_grid(volume.grid, axis)
    return Image(array_from_tensor(data.float()), grid.world_from_voxel, volume.name)


def facts(
    stored: Sequence[Transform], exact: Transform, where: Grid, inverse: Sequence[Transform], back: Grid
) -> dict[str, Any]:
    """For the report: size of the stored transform, and how far it is from the computed one.

    where: grid at whose voxels they are compared.  inverse, back: the stored inverse, and where to go
    through both, there and back.
    """
    fields = [part for part in stored if isinstance(part, CubicField)]
    points, others = grid_points(where, most=20_000), grid_points(back, most=20_000)
    whole = CompositeTransform(stored)
    error = np.linalg.norm(whole.map_points(points) - exact.map_points(points), axis=1)
    returned = whole.map_points(CompositeTransform(inverse).map_points(others))
    largest = fields[0] if fields else None
    return {
        "stored_error_mm": _spread(error),
        "stored_inverse_consistency_mm": _spread(np.linalg.norm(returned - others, axis=1)),
        "grid": None if largest is None else list(largest.grid.shape[::-1]),
        "spacing": None if largest is None else list(largest.grid.spacing[::-1]),
        "megabytes": sum(field.u_mm.numel() * 4 for field in fields) / MEGABYTE,
        "folded_percent": None if largest is None else folded(stored),
    }


def folded(stored: Sequence[Transform]) -> float:
    """Percent of the cells of the stored grids that fold, the largest of all fields."""
    return max((_folded(part) for part in stored if isinstance(part, CubicField)), default=0.0)


def _folded(field: CubicField) -> float:
    """Percent of the cells of one stored grid that fold."""
    single = [2 + axis for axis, size in enumerate(field.grid.shape) if size == 1]
    u_vox = u_vox_from_mm(field.u_mm, field.grid)
    for axis in single:
        keep = [a for a in range(3) if a != axis - 2]
        u_vox = u_vox[:, keep].squeeze(axis)
    return folded_percent(u_vox)


def _spread(distance: Any) -> dict[str, float]:
    return {"p95": float(np.percentile(distance, 95)), "max": float(distance.max())}


def _ends_abruptly(u_mm: Tensor) -> bool:
    """Whether the outermost layer of a field is not zero."""
    return any(
        bool(u_mm.select(axis, end).abs().amax() > 0) for axis in range(2, u_mm.dim()) for end in (0, -1)
    )


def _zero_ended(u_mm: Tensor) -> Tensor:
    """The field with its outermost layer set to 0, in place; an axis of one voxel has none."""
    for axis in range(2, u_mm.dim()):
        if u_mm.shape[axis] > 1:
            u_mm.select(axis, 0).zero_()
            u_mm.select(axis, -1).zero_()
    return u_mm
