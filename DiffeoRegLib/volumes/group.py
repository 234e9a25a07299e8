"""From K images in patient space to a Group: one common grid, intensities, where each of them counts."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from DiffeoRegLib.errors import InputError, NoOverlapError
from DiffeoRegLib.settings import PRESETS, Settings
from DiffeoRegLib.space.grid import Grid, Matrix
from DiffeoRegLib.space.sample import array_from_tensor
from DiffeoRegLib.volumes.checks import check_image
from DiffeoRegLib.volumes.halfway import axes_of, fitting_factor, grid_over, refinement_factor
from DiffeoRegLib.volumes.intensity import (
    CUT_PERCENT,
    background,
    finite,
    foreground_points_mm,
    inside_field_of_view,
    intensity_window,
    normalise,
    resample_affine,
)
from DiffeoRegLib.volumes.volume import Volume
from DiffeoRegLib.volumes.working_grid import fit_to_memory, grid_around

LEAST_SHARED = 0.02
"""Share of the common grid that has to lie inside every image."""


@dataclass(frozen=True, eq=False)
class Group:
    """K images on one working grid, ready for the search.

    images: (1, 1, *grid.shape) each, in [0, 1], read through image_from_grid (RAS mm 4x4 each).
    masks: (1, 1, *grid.shape) in [0, 1], where each counts; None = everywhere.
    cut: whether an image goes on beyond its field of view, where nothing is known of it.
    notes: sentences for the report.
    """

    images: list[Tensor]
    grid: Grid
    image_from_grid: list[Matrix]
    masks: list[Tensor | None]
    cut: list[bool]
    notes: list[str] = field(default_factory=list)

    def to(self, device: torch.device | str) -> Group:
        """The same on another device."""
        masks = [None if mask is None else mask.to(device) for mask in self.masks]
        return replace(self, images=[image.to(device) for image in self.images], masks=masks)


def check_group(
    images: Sequence[Volume], fixed_index: int | None, masks: Sequence[Volume | None] | None
) -> None:
    """Raises InputError for what no group is: one image, an index beyond it, masks that do not match."""
    if len(images) < 2:
        raise InputError(f"A group needs two images or more, not {len(images)}.")
    if fixed_index is not None and not 0 <= fixed_index < len(images):
        raise InputError(
            f"The fixed index {fixed_index} is out of range: the {len(images)} images are numbered "
            f"from 0 to {len(images) - 1}."
        )
    if masks is not None and len(masks) != len(images):
        raise InputError(f"{len(images)} images need as many masks, None for one without; not {len(masks)}.")
    flat = [image.grid.dim == 2 for image in images]
    if any(flat) and not all(flat):
        raise InputError(
            f"'{images[flat.index(True)].name}' is 2D and '{images[flat.index(False)].name}' is 3D: "
            "the images of a group are all of one kind."
        )


def usable_images(images: Sequence[Volume], *, leave_out: bool) -> tuple[list[int], list[str]]:
    """Numbers of the images that can be registered, and sentences about them.

    leave_out: one that cannot is left out, and a sentence names it; else InputError says what is wrong.
    """
    kept, notes = [], list[str]()
    for number, image in enumerate(images):
        try:
            notes += check_image(image, "group's")
            kept.append(number)
        except InputError as error:
            if not leave_out:
                raise InputError(f"Image {number} of the group: {error}") from error
            notes.append(f"Image {number} of the group was left out: {error}")
    return kept, notes


def canonical_order(images: Sequence[Volume]) -> list[int]:
    """The order the images are worked on in: what they hold decides it, not how they are given."""

    def key(number: int) -> tuple[float | int, ...]:
        image = images[number]
        matrix = image.grid.world_from_voxel.ravel().tolist()
        return (*image.grid.shape, *matrix, content_of(image))

    return sorted(range(len(images)), key=key)


def content_of(image: Volume) -> int:
    """A number that images of other values have not, but by a rare chance."""
    return zlib.crc32(array_from_tensor(image.data).tobytes())


def common_field_of_view(images: Sequence[Volume], fixed_index: int | None) -> tuple[Grid, list[str]]:
    """The grid that the common space is shown on, and a sentence where images had to be brought to it.

    That of the fixed image, or the largest field of view, whichever image comes first.
    """
    if fixed_index is not None:
        chosen = images[fixed_index]
    else:

        def size(image: Volume) -> tuple[float, ...]:
            grid = image.grid
            return (float(np.prod(grid.extent_mm)), grid.voxel_count, *grid.world_from_voxel.ravel())

        chosen = max(images, key=size)
    others = sum(not image.grid.same_as(chosen.grid) for image in images)
    if not others:
        return chosen.grid, []
    shape = " x ".join(str(n) for n in reversed(chosen.grid.shape))
    spacing = " x ".join(f"{s:.3g}" for s in reversed(chosen.grid.spacing))
    return chosen.grid, [
        f"{others} of {len(images)} images have another size or geometry than the common grid, that of "
        f"'{chosen.name}' ({shape} voxels of {spacing} mm); they were resampled on it in patient space."
    ]


def prepare_group(
    images: Sequence[Volume],
    view: Grid,
    settings: Settings,
    image_from_common: Sequence[Matrix],
    masks: Sequence[Volume | None] | None = None,
    *,
    device: torch.device | str = "cpu",
    memory_limit_bytes: int | None = None,
    memory_of: Callable[[Grid], int],
    network_mm: Sequence[float] | None = None,
    refined: bool = True,
) -> Group:
    """The images as the search wants them: on one grid over `view`, in [0, 1], read through their matrices.

    image_from_common: RAS mm 4x4 each.  memory_of: bytes the whole run takes on a working grid.
    memory_limit_bytes: the grid is made coarser until they suffice.
    network_mm: voxel size of a network per axis, which the voxels of the grid are whole fractions of, along
    S, A and R (2D: along the common view).  refined: iterations follow it, so the grid may be finer.
    Raises NoOverlapError where the images share no space, MemoryLimitError.
    """
    images = [finite(image) for image in images]
    notes = list[str]()
    if network_mm is not None:
        working = _network_grid(images, view, settings, image_from_common, network_mm)
        factor = refinement_factor([image.grid for image in images], network_mm, settings) if refined else 1
        if memory_limit_bytes is not None:
            factor, notes = fitting_factor(
                lambda factor: memory_of(working.refined([factor] * working.dim)), factor, memory_limit_bytes
            )
        working = working.refined([factor] * working.dim)
    else:
        working = grid_around(view, _points_of_interest_mm(images, image_from_common), settings)
        if memory_limit_bytes is not None:
            working, notes = fit_to_memory(working, memory_limit_bytes, settings, memory_of)
    shape = " x ".join(str(n) for n in reversed(working.shape))
    spacing = " x ".join(f"{s:.3g}" for s in reversed(working.spacing))
    notes.append(
        f"Common grid of the search: {shape} voxels of {spacing} mm; {len(images)} images on it take about "
        f"{memory_of(working) / 1e9:.2g} GB of memory in all."
    )
    given = masks or [None] * len(images)
    weights = [
        _weight(image, working, matrix, mask)
        for image, matrix, mask in zip(images, image_from_common, given, strict=True)
    ]
    _require_overlap(weights)
    return Group(
        images=[
            _image_on(image, working, matrix, settings).to(device)
            for image, matrix in zip(images, image_from_common, strict=True)
        ],
        grid=working,
        image_from_grid=[np.array(matrix, dtype=np.float64) for matrix in image_from_common],
        masks=[None if weight is None else weight.to(device) for weight in weights],
        cut=[goes_on(image) for image in images],
        notes=notes,
    )


def goes_on(image: Volume) -> bool:
    """Whether an object is cut by the field of view: what lies beyond is unknown."""
    around = background(image)
    return around is None or around.border_percent > CUT_PERCENT


def _points_of_interest_mm(images: Sequence[Volume], from_common: Sequence[Matrix]) -> Matrix | None:
    """Points (n, 3) of the common space, RAS mm, whose box holds all foreground; None = all there is."""
    found = []
    for image, matrix in zip(images, from_common, strict=True):
        points = foreground_points_mm(image)
        if points is None:
            return None
        back = np.linalg.inv(matrix)
        found.append(points @ back[:3, :3].T + back[:3, 3])
    return np.concatenate(found)


def _network_grid(
    images: Sequence[Volume],
    view: Grid,
    settings: Settings,
    from_common: Sequence[Matrix],
    network_mm: Sequence[float],
) -> Grid:
    """The grid of a network over all foreground, or over all fields of view where an object is cut."""
    points = _points_of_interest_mm(images, from_common)
    objects = (
        [points]
        if points is not None
        else [
            image.grid.corners_mm() @ back[:3, :3].T + back[:3, 3]
            for image, back in zip(images, map(np.linalg.inv, from_common), strict=True)
        ]
    )
    thickness = float(np.linalg.norm(view.world_from_voxel[:3, 2]))
    return grid_over(objects, axes_of(view, np.eye(4)), network_mm, thickness, settings)


def _image_on(image: Volume, grid: Grid, image_from_grid: Matrix, settings: Settings) -> Tensor:
    """An image on the working grid in [0, 1]; beyond its field of view the edge value goes on."""
    window = PRESETS[settings.preset].intensity_window
    if window is None or not _overlaps(image, window):
        window = intensity_window(image)
    return normalise(resample_affine(image, grid, image_from_grid), window)


def _overlaps(image: Volume, window: tuple[float, float]) -> bool:
    """True if at least a third of the window is used by the image: it is in the units the preset expects."""
    low, high = (float(v) for v in image.data.aminmax())
    return min(high, window[1]) - max(low, window[0]) > (window[1] - window[0]) / 3


def _weight(image: Volume, grid: Grid, image_from_grid: Matrix, mask: Volume | None) -> Tensor | None:
    """Weight of an image on the working grid, None if it counts everywhere; unknown beyond a cut image."""
    weight = None
    if goes_on(image):
        inside = inside_field_of_view(image.grid, grid, image_from_grid, slack_vox=1.0)
        weight = inside if bool((inside == 0).any()) else None
    if mask is not None:
        marked = Volume((mask.data != 0).to(torch.float32), mask.grid, mask.name)
        value = resample_affine(marked, grid, image_from_grid, outside="zeros")
        weight = value if weight is None else weight * value
    return weight


def _require_overlap(weights: Sequence[Tensor | None]) -> None:
    """Raises NoOverlapError when there is next to no place where all images count."""
    shared: Tensor | None = None
    for weight in weights:
        if weight is not None:
            shared = weight if shared is None else shared * weight
    if shared is not None and float(shared.mean()) <= LEAST_SHARED:
        raise NoOverlapError(
            "The images of the group share no space (within the masks): choose another initial alignment, "
            "or leave out the one that lies elsewhere."
        )
