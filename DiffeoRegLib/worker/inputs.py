"""From what the panel sends to what the engine takes: Images to volumes, dictionaries to settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from DiffeoRegLib.errors import InputError, UnknownNameError
from DiffeoRegLib.exchange import Image
from DiffeoRegLib.settings import Settings
from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.space.sample import tensor_from_array
from DiffeoRegLib.space.transform import AffineTransform, CompositeTransform, Transform
from DiffeoRegLib.stiffness import REST, Stiffness
from DiffeoRegLib.volumes.pair import Correspondence, Masks
from DiffeoRegLib.volumes.pathology import EDGE_MM, Pathology
from DiffeoRegLib.volumes.placed import placed
from DiffeoRegLib.volumes.regions import Regions
from DiffeoRegLib.volumes.volume import Volume
from DiffeoRegLib.worker.cubic import CubicField

LISTS = ("levels_mm", "iterations", "accepted_licences", "kernel_sigmas", "kernel_weights")


def volume_of(image: Image, what: str, *, labels: bool = False) -> Volume:
    """The engine's volume of an Image; one of a single slice becomes 2D.

    Raises InputError for anything but one number per voxel, and what `placed` raises.
    """
    name = image.name or what
    if image.array.ndim != 3:
        raise InputError(f"'{name}' is not one volume of single values. Split it and give one grey volume.")
    return placed(image.array, image.world_from_voxel, name, labels=labels, where=name)


def single_axis(image: Image) -> int | None:
    """The axis of one voxel that makes an Image a slice; None in 3D."""
    single = [axis for axis, size in enumerate(image.array.shape[:3]) if size == 1]
    return single[0] if single else None


def grid_of(shape: Sequence[int], world_from_voxel: Any) -> tuple[Grid, int | None]:
    """Grid of a volume of three axes, 2D if one of them has a single voxel, and that axis."""
    single = [axis for axis, size in enumerate(shape) if size == 1]
    matrix = np.array(world_from_voxel, dtype=np.float64)
    if not single:
        return Grid(tuple(shape), matrix), None
    rest = [axis for axis in range(3) if axis != single[0]]
    return Grid(tuple(shape[axis] for axis in rest), matrix[:, [*rest, single[0], 3]]), single[0]


def settings_of(given: Mapping[str, Any]) -> Settings:
    """Settings from the fields that are given; raises UnknownNameError and SettingsError."""
    known = [field.name for field in dataclasses.fields(Settings)]
    for name in given:
        if name not in known:
            raise UnknownNameError("setting", name, known)
    changed: dict[str, Any] = {
        name: tuple(value) if name in LISTS and isinstance(value, list) else value
        for name, value in given.items()
    }
    return Settings(**changed)


def transform_of(parts: list[dict[str, Any]] | None) -> Transform | None:
    """The transform of some parts, None without any; fields are read as Slicer reads them."""
    if not parts:
        return None
    transforms = [_part(part) for part in parts]
    return transforms[0] if len(transforms) == 1 else CompositeTransform(transforms)


def field_of(image: Image) -> tuple[Grid, torch.Tensor]:
    """Grid and vectors (1, 3, *shape) of an Image of vectors; raises InputError for other Images."""
    if image.array.ndim != 4 or image.array.shape[3] != 3:
        raise InputError(f"'{image.name or 'The field'}' does not hold three components per voxel.")
    vectors = tensor_from_array(np.moveaxis(image.array, 3, 0)[None], torch.float32)
    return Grid(image.array.shape[:3], image.world_from_voxel), vectors


def masks_of(given: Mapping[str, Any] | None) -> Masks | None:
    """The masks of a job."""
    if not given or (given.get("fixed") is None and given.get("moving") is None):
        return None
    return Masks(
        _labels(given.get("fixed"), "fixed mask"),
        _labels(given.get("moving"), "moving mask"),
        bool(given.get("exclude_fixed")),
        bool(given.get("exclude_moving")),
    )


def correspondence_of(given: Mapping[str, Any] | None, what: str) -> Correspondence | None:
    """Guidance or evaluation of a job."""
    if not given or all(value is None for value in given.values()):
        return None
    return Correspondence(
        _labels(given.get("fixed_labels"), f"fixed {what} labels"),
        _labels(given.get("moving_labels"), f"moving {what} labels"),
        _points(given.get("fixed_points_mm")),
        _points(given.get("moving_points_mm")),
    )


def regions_of(job: Mapping[str, Any]) -> Regions | None:
    """The regions of the moving image of a job, with the stiffness of each and of the rest."""
    image = job.get("regions")
    if image is None:
        return None
    stiffness = {int(label): _stiffness(value) for label, value in (job.get("stiffness") or {}).items()}
    return Regions(volume_of(image, "regions", labels=True), stiffness, _stiffness(job.get("rest", REST)))


def pathology_of(given: Mapping[str, Any] | None) -> Pathology | None:
    """The pathology of a job: `fixed` and `moving` Images, `classes`, `edge_mm`; each may be missing."""
    if not given or (given.get("fixed") is None and given.get("moving") is None):
        return None
    classes = given.get("classes")
    return Pathology(
        _labels(given.get("fixed"), "fixed pathology"),
        _labels(given.get("moving"), "moving pathology"),
        None if classes is None else tuple(int(label) for label in classes),
        float(given.get("edge_mm", EDGE_MM)),
    )


def _stiffness(given: Any) -> Stiffness:
    """A name, or the shares of the kernels."""
    return given if isinstance(given, str) else tuple(float(share) for share in given)


def _part(part: Mapping[str, Any]) -> Transform:
    if "matrix" in part:
        return AffineTransform(np.array(part["matrix"], dtype=np.float64))
    return CubicField(*field_of(part["displacement"]))


def _labels(image: Image | None, what: str) -> Volume | None:
    return None if image is None else volume_of(image, what, labels=True)


def _points(points: Any) -> Any:
    return None if points is None else np.array(points, dtype=np.float64).reshape(-1, 3)
