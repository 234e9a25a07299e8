"""Where an image shows what the other one has nothing for: lesions, resections, tumours.

A pathology is marked in the space of the image that has it.  On a working grid every image has its own marks;
a method carries them along with the image they belong to, so that both may be ill and their marks are joined
wherever the two images meet.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from DiffeoRegLib.errors import InputError, SettingsError
from DiffeoRegLib.settings import PATHOLOGY_EDGE_MM
from DiffeoRegLib.space.filters import gaussian_smooth
from DiffeoRegLib.space.grid import Grid, Matrix
from DiffeoRegLib.space.sample import array_from_tensor, warp
from DiffeoRegLib.space.transform import Transform
from DiffeoRegLib.volumes.intensity import background, inside_field_of_view, resample_affine
from DiffeoRegLib.volumes.resample import warp_volume
from DiffeoRegLib.volumes.volume import Volume

EDGE_MM = PATHOLOGY_EDGE_MM
ALL_COVERED = 0.98
"""From this share of an image on, too little healthy tissue is left to say where anything went."""
MOST_COVERED = 0.5
"""Above this share the report says that the map rests on little."""
UNMARKED = (
    "No pathology was marked, so both images were taken for healthy: where one of them has a lesion, the map "
    "is drawn towards it."
)


@dataclass(frozen=True, eq=False)
class Pathology:
    """Masks, segmentations or label maps of the pathology in the space of the fixed and of the moving image.

    classes: the labels that count; None: every value but 0.
    edge_mm: width over which the marks fall to 0 beyond their border, which few draw to the voxel; 0: hard.
    """

    fixed: Volume | None = None
    moving: Volume | None = None
    classes: tuple[int, ...] | None = None
    edge_mm: float = EDGE_MM

    def __post_init__(self) -> None:
        if not 0 <= self.edge_mm < math.inf:
            raise SettingsError(f"The soft edge of a pathology is 0 mm or wider, not {self.edge_mm!r}.")
        if self.classes is not None and not self.classes:
            raise SettingsError("No class of the pathology was chosen: name at least one, or leave it open.")

    def exchanged(self) -> Pathology:
        """The same with the images in each other's role."""
        return dataclasses.replace(self, fixed=self.moving, moving=self.fixed)


@dataclass(frozen=True, eq=False)
class PlacedPathology:
    """Marks on a working grid, (1, 1, *grid.shape) in [0, 1], each read as its image is; None: healthy."""

    fixed: Tensor | None
    moving: Tensor | None

    def to(self, device: torch.device | str) -> PlacedPathology:
        """The same on another device."""
        fixed, moving = (None if mark is None else mark.to(device) for mark in (self.fixed, self.moving))
        return PlacedPathology(fixed, moving)

    def carried(self, to_fixed_vox: Tensor, to_moving_vox: Tensor) -> PlacedPathology:
        """The marks where displacements (1, d, *grid.shape), voxels, into either image read them."""
        sides = ((self.fixed, to_fixed_vox), (self.moving, to_moving_vox))
        return PlacedPathology(*(None if mark is None else warp(mark, u_vox) for mark, u_vox in sides))


def marked(labels: Volume, classes: tuple[int, ...] | None) -> Tensor:
    """True where a label map shows one of the classes, or anything but 0 without any."""
    if classes is None:
        return labels.data != 0
    chosen = torch.tensor(classes, dtype=torch.float64, device=labels.data.device)
    return torch.isin(labels.data.to(torch.float64), chosen)


def marks_anything(pathology: Pathology) -> bool:
    """True if a voxel of either image is marked."""
    given = [labels for labels in (pathology.fixed, pathology.moving) if labels is not None]
    return any(bool(marked(labels, pathology.classes).any()) for labels in given)


def check_pathology(pathology: Pathology | None, fixed: Volume, moving: Volume) -> list[str]:
    """Sentences for the report about a pathology that can be taken into account, or about none at all.

    Raises InputError for marks of another dimension, without any of the chosen classes, outside their image
    or over all of it.
    """
    if pathology is None or (pathology.fixed is None and pathology.moving is None):
        return [UNMARKED]
    notes = []
    for labels, image in ((pathology.fixed, fixed), (pathology.moving, moving)):
        if labels is not None:
            notes += _check_marks(labels, image, pathology.classes)
    return notes


def _check_marks(labels: Volume, image: Volume, classes: tuple[int, ...] | None) -> list[str]:
    what = f"The pathology '{labels.name}'"
    if labels.grid.dim != image.grid.dim:
        raise InputError(f"{what} is {labels.grid.dim}D, its image '{image.name}' {image.grid.dim}D.")
    present = {float(value) for value in torch.unique(labels.data).tolist()} - {0.0}
    if not present:
        return [f"{what} marks nothing: '{image.name}' was taken for healthy."]
    notes = []
    if classes is not None:
        if not present & set(classes):
            raise InputError(
                f"{what} has none of the chosen classes ({_listed(classes)}); it has {_listed(present)}."
            )
        if absent := set(classes) - present:
            notes.append(f"Classes without a voxel in '{labels.name}': {_listed(absent)}.")
    elif len(present) > 1:
        notes.append(f"All classes of '{labels.name}' count as pathology: {_listed(present)}.")
    mark = marked(labels, classes)
    if not _touches(mark, labels.grid, image.grid):
        raise InputError(
            f"{what} does not touch the image '{image.name}': was it drawn on another image or in another "
            "space?"
        )
    share = covered_share(labels, image, classes)
    if share >= ALL_COVERED:
        raise InputError(
            f"{what} covers all of '{image.name}': no healthy tissue is left that could be aligned. "
            "Was it inverted, or is it a mask of the organ?"
        )
    if share > MOST_COVERED:
        notes.append(
            f"{what} covers {100 * share:.0f} % of '{image.name}': the map rests on the little that is left."
        )
    if not labels.grid.same_as(image.grid, tolerance=1e-2):
        notes.append(f"{what} has another geometry than '{image.name}'; it was resampled in patient space.")
    return notes


def _touches(mark: Tensor, grid: Grid, image: Grid) -> bool:
    """True if (of a sub-sample) a marked voxel lies inside the image."""
    index = mark.nonzero()
    index = index[:: max(1, len(index) // 50_000)]
    position = image.index_from_world(grid.world_from_index(array_from_tensor(index).astype(np.float64)))
    inside = (position > -0.5) & (position < np.array(image.shape) - 0.5)
    return bool(inside.all(axis=1).any())


def covered_share(labels: Volume, image: Volume, classes: tuple[int, ...] | None) -> float:
    """Which share of the object in an image, or of all of it without a background, is marked."""
    mark, foreground = _read(labels, classes, image.grid, None)[0, 0] > 0.5, _foreground(image)
    return float((mark & foreground).sum()) / max(1.0, float(foreground.sum()))


def healthy_tissue(labels: Volume | None, classes: tuple[int, ...] | None, image: Volume) -> Tensor | None:
    """True at the voxels of an image that are neither marked nor background; None if nothing is marked."""
    if labels is None:
        return None
    mark = _read(labels, classes, image.grid, None)[0, 0] > 0.5
    return _foreground(image) & ~mark if bool(mark.any()) else None


def _foreground(image: Volume) -> Tensor:
    """True where an image is not its background; everywhere without one."""
    around, data = background(image), image.data.to(torch.float32)
    return (
        torch.ones_like(data, dtype=torch.bool)
        if around is None
        else ((data - around.value).abs() > around.tolerance)
    )


def place_pathology(
    pathology: Pathology,
    grid: Grid,
    fixed_from_grid: Matrix,
    moving_from_grid: Matrix,
    device: torch.device | str = "cpu",
) -> PlacedPathology | None:
    """A pathology at the voxels of a grid, through the RAS mm 4x4 that lead to each image; None: no marks.

    Raises InputError when marks were given and none lies on the grid.
    """
    sides = ((pathology.fixed, fixed_from_grid), (pathology.moving, moving_from_grid))
    placed = [
        None if labels is None else _placed(labels, pathology, grid, matrix, device)
        for labels, matrix in sides
    ]
    if all(mark is None for mark in placed):
        return None
    return PlacedPathology(*placed)


def _placed(
    labels: Volume, pathology: Pathology, grid: Grid, matrix: Matrix, device: torch.device | str
) -> Tensor | None:
    if not bool((labels.data != 0).any()):
        return None
    mark = _read(labels, pathology.classes, grid, np.asarray(matrix, dtype=np.float64))
    if not bool((mark > 0).any()):
        raise InputError(
            f"No part of the pathology '{labels.name}' lies where the images are compared: "
            "was it drawn on its own image?"
        )
    return softened(mark, grid.spacing, pathology.edge_mm).to(device)


def _read(
    labels: Volume, classes: tuple[int, ...] | None, grid: Grid, labels_from_grid: Matrix | None
) -> Tensor:
    """Marks at the voxels of a grid, in [0, 1]: the share of each voxel that is marked."""
    mark = Volume(marked(labels, classes).to(torch.float32), labels.grid, labels.name)
    read = resample_affine(mark, grid, labels_from_grid, outside="zeros")
    return read * inside_field_of_view(labels.grid, grid, labels_from_grid)


def carried_marks(pathology: Pathology, transform: Transform, grid: Grid) -> tuple[Tensor, Tensor]:
    """Marks of the fixed and, through fixed -> moving points, of the moving image on a grid, (*shape)."""
    own = carried = torch.zeros(grid.shape)
    if pathology.fixed is not None:
        own = softened(_read(pathology.fixed, pathology.classes, grid, None), grid.spacing, pathology.edge_mm)
        own = own[0, 0]
    if pathology.moving is not None:
        labels = pathology.moving
        mark = Volume(marked(labels, pathology.classes).to(torch.float32), labels.grid, labels.name)
        read = warp_volume(mark, transform, grid).data[None, None]
        carried = softened(read, grid.spacing, pathology.edge_mm)[0, 0]
    return own, carried


def softened(mark: Tensor, spacing: tuple[float, ...], edge_mm: float) -> Tensor:
    """Marks (1, 1, *shape) that fall to 0 over `edge_mm` beyond their border and are what they were within.

    The edge lies outside: a fall inside would leave the rim of the lesion unmarked.
    """
    if edge_mm == 0:
        return mark
    blurred = gaussian_smooth(mark, [0.5 * edge_mm / step for step in spacing])
    return torch.maximum(mark, (2 * blurred).clamp(max=1))


def _listed(values: set[float] | set[int] | tuple[int, ...]) -> str:
    names = [f"{value:g}" for value in sorted(values)]
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
