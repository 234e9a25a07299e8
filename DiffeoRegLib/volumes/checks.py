"""Pre-flight: what cannot be registered is refused in a sentence, what is odd but usable is said."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from DiffeoRegLib.errors import InputError
from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.space.sample import array_from_tensor
from DiffeoRegLib.volumes.pair import Correspondence, Masks
from DiffeoRegLib.volumes.volume import Volume

SHORTEST_AXIS = 4
"""Fewest voxels along an axis that a derivative and a window can live on."""
SHEAR_TOLERANCE = 1e-3
"""Largest cosine between two image axes that still counts as a right angle."""
HUGE_VOXELS = 512**3


def check_pair(
    fixed: Volume,
    moving: Volume,
    masks: Masks | None = None,
    guidance: Correspondence | None = None,
    evaluation: Correspondence | None = None,
) -> list[str]:
    """Sentences for the report about two images that can be registered.

    Raises InputError, saying what is wrong and what to do, for images that cannot.
    """
    if fixed.grid.dim != moving.grid.dim:
        raise InputError(
            f"'{fixed.name}' is {fixed.grid.dim}D and '{moving.name}' is {moving.grid.dim}D: "
            "give two volumes, or two single slices."
        )
    notes = [*check_image(fixed, "fixed"), *check_image(moving, "moving")]
    if fixed.grid.same_as(moving.grid) and torch.equal(fixed.data, moving.data):
        notes.append("Fixed and moving are the same image: the result will be the identity.")
    masks = masks or Masks()
    for mask, image, exclude in (
        (masks.fixed, fixed, masks.exclude_fixed),
        (masks.moving, moving, masks.exclude_moving),
    ):
        if mask is not None:
            notes += _check_mask(mask, image, exclude)
    for given in (guidance, evaluation):
        if given is not None:
            notes += check_correspondence(fixed, moving, given)
    return list(dict.fromkeys(notes))  # guidance and evaluation may be the same files


def check_image(image: Volume, role: str) -> list[str]:
    """Sentences about one image, called by its role in them; raises InputError for one without use."""
    _check_axes(image)
    notes = [*_check_values(image, role)]
    grid = image.grid
    if is_sheared(grid):
        notes.append(
            f"The axes of the {role} image '{image.name}' are not at right angles (tilted gantry?); "
            "it is read where it is, on a working grid with right angles."
        )
    if max(grid.spacing) > 20 or min(grid.spacing) < 0.01:
        notes.append(
            f"The voxels of the {role} image '{image.name}' are {_size(grid.spacing)} mm: "
            "check that its header is right; distances in millimetres depend on it."
        )
    if max(grid.spacing) > 8 * min(grid.spacing):
        notes.append(
            f"The {role} image '{image.name}' has very anisotropic voxels ({_size(grid.spacing)} mm): "
            "motion across its thick slices is uncertain."
        )
    if grid.voxel_count > HUGE_VOXELS:
        notes.append(
            f"The {role} image '{image.name}' is large ({grid.voxel_count / 1e6:.0f} million voxels); "
            "it is registered on a coarser working grid."
        )
    return notes


def _check_axes(image: Volume) -> None:
    shape = image.grid.shape
    text = " x ".join(str(n) for n in reversed(shape))
    if min(shape) == 1:
        raise InputError(
            f"'{image.name}' ({text} voxels) is a single slice stored as a volume: give it as a 2D image, "
            "together with a 2D image of the other side."
        )
    if min(shape) < SHORTEST_AXIS:
        raise InputError(
            f"'{image.name}' ({text} voxels) is too thin: every axis needs at least {SHORTEST_AXIS} voxels."
        )


def _check_values(image: Volume, role: str) -> list[str]:
    data = image.data
    if data.is_complex():
        raise InputError(f"'{image.name}' has complex values: give its magnitude.")
    low, high = (float(v) for v in data.aminmax())
    notes = []
    if not (np.isfinite(low) and np.isfinite(high)):
        good = torch.isfinite(data)
        bad = data.numel() - int(good.sum())
        if bad == data.numel():
            raise InputError(f"'{image.name}' holds no finite value at all (every voxel is NaN or infinite).")
        low, high = (float(v) for v in data[good].aminmax())
        notes.append(
            f"{bad} voxels of the {role} image '{image.name}' are NaN or infinite; "
            f"they were given its smallest value ({low:g})."
        )
    if not high > low:
        raise InputError(
            f"'{image.name}' has the same value ({low:g}) everywhere: there is nothing to register. "
            "Was the right file, or the right component, chosen?"
        )
    return notes


def is_sheared(grid: Grid) -> bool:
    """True if two axes of the grid are not at right angles."""
    columns = grid.world_from_voxel[:3, : grid.dim]
    unit = columns / np.linalg.norm(columns, axis=0)
    return bool(np.abs(unit.T @ unit - np.eye(grid.dim)).max() > SHEAR_TOLERANCE)


def _check_mask(mask: Volume, image: Volume, exclude: bool) -> list[str]:
    if mask.grid.dim != image.grid.dim:
        raise InputError(
            f"The mask '{mask.name}' is {mask.grid.dim}D but '{image.name}' is {image.grid.dim}D."
        )
    marked = mask.data != 0
    if not bool(marked.any()):
        raise InputError(
            f"The mask '{mask.name}' is empty: mark at least one voxel, or register without a mask."
        )
    notes = []
    inside = _inside(mask, image.grid)
    if not inside.any() and not exclude:
        raise InputError(
            f"The mask '{mask.name}' does not touch the image '{image.name}': "
            "was it drawn on another image or in another space?"
        )
    if exclude and mask.grid.same_as(image.grid) and bool(marked.all()):
        raise InputError(
            f"The mask '{mask.name}' excludes all of '{image.name}': invert it, or use it to include."
        )
    if not inside.any():
        notes.append(f"The mask '{mask.name}' does not touch the image '{image.name}': it excludes nothing.")
    if not mask.grid.same_as(image.grid, tolerance=1e-2):
        notes.append(
            f"The mask '{mask.name}' has another geometry than '{image.name}'; "
            "it was resampled in patient space."
        )
    return notes


def _inside(mask: Volume, grid: Grid) -> NDArray[np.bool_]:
    """Which of (a sub-sample of) the mask's marked voxels lie inside a grid."""
    index = mask.data.nonzero()
    index = index[:: max(1, len(index) // 50_000)]
    points = mask.grid.world_from_index(array_from_tensor(index).astype(np.float64))
    position = grid.index_from_world(points)
    return np.asarray(((position > -0.5) & (position < np.array(grid.shape) - 0.5)).all(axis=1))


def check_correspondence(fixed: Volume, moving: Volume, given: Correspondence) -> list[str]:
    """Sentences about label maps and landmarks; raises InputError for halves, miscounts and empty maps."""
    if (given.fixed_labels is None) != (given.moving_labels is None):
        raise InputError(
            "Segmentations are used only in pairs: give one for the fixed and one for the moving image."
        )
    if (given.fixed_points_mm is None) != (given.moving_points_mm is None):
        raise InputError("Landmarks are used only in pairs: give the points of fixed and those of moving.")
    notes = []
    if given.fixed_labels is not None and given.moving_labels is not None:
        notes += _check_labels(given.fixed_labels, given.moving_labels, fixed, moving)
    if given.fixed_points_mm is not None and given.moving_points_mm is not None:
        notes += _check_points(given.fixed_points_mm, given.moving_points_mm, fixed, moving)
    return notes


def _check_labels(fixed_labels: Volume, moving_labels: Volume, fixed: Volume, moving: Volume) -> list[str]:
    notes = []
    found = []
    for labels, image in ((fixed_labels, fixed), (moving_labels, moving)):
        if labels.grid.dim != image.grid.dim:
            raise InputError(
                f"The segmentation '{labels.name}' is {labels.grid.dim}D, its image {image.grid.dim}D."
            )
        found.append(label_values(labels))
        if not labels.grid.same_as(image.grid, tolerance=1e-2):
            notes.append(
                f"The segmentation '{labels.name}' has another geometry than '{image.name}'; "
                "it was resampled in patient space."
            )
    if not found[0] & found[1]:
        raise InputError(
            f"The segmentations '{fixed_labels.name}' and '{moving_labels.name}' "
            "have no label number in common."
        )
    if alone := sorted(found[0] ^ found[1]):
        text = ", ".join(str(n) for n in alone[:10]) + (", ..." if len(alone) > 10 else "")
        notes.append(f"{len(alone)} labels exist on one side only and are not used: {text}.")
    return notes


def label_values(labels: Volume) -> set[int]:
    """The label numbers of a segmentation without 0; raises InputError when there is none."""
    values = {int(v) for v in torch.unique(labels.data).tolist()} - {0}
    if not values:
        raise InputError(f"The segmentation '{labels.name}' is empty: it has no label other than 0.")
    return values


def _check_points(
    fixed_mm: NDArray[np.float64], moving_mm: NDArray[np.float64], fixed: Volume, moving: Volume
) -> list[str]:
    for points, role in ((fixed_mm, "fixed"), (moving_mm, "moving")):
        if np.ndim(points) != 2 or np.shape(points)[1] != 3 or len(points) == 0:
            raise InputError(
                f"The {role} landmarks must be a list of (x, y, z) points, not {np.shape(points)}."
            )
        if not np.isfinite(points).all():
            raise InputError(f"The {role} landmarks contain NaN or infinite coordinates.")
    if len(fixed_mm) != len(moving_mm):
        raise InputError(
            f"There are {len(fixed_mm)} fixed but {len(moving_mm)} moving landmarks; "
            "they must correspond one to one."
        )
    notes = []
    for points, image, role in ((fixed_mm, fixed, "fixed"), (moving_mm, moving, "moving")):
        position = image.grid.index_from_world(points)
        outside = int(
            (~((position > -0.5) & (position < np.array(image.grid.shape) - 0.5)).all(axis=1)).sum()
        )
        if outside == len(points):
            raise InputError(
                f"All {role} landmarks lie outside '{image.name}': "
                "are they in RAS millimetres (not LPS or voxels)?"
            )
        if outside:
            notes.append(f"{outside} of {len(points)} {role} landmarks lie outside '{image.name}'.")
    return notes


def _size(spacing: tuple[float, ...]) -> str:
    return " x ".join(f"{s:.3g}" for s in reversed(spacing))
