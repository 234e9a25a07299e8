"""The numbers of a finished registration, as one dictionary that JSON can hold.

What every entry means is written in Resources/docs/report.md.
"""

from __future__ import annotations

import dataclasses
import datetime
import math
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from DiffeoRegLib import __version__
from DiffeoRegLib.device import DeviceChoice
from DiffeoRegLib.report.memory import peak_device_memory_mb, peak_memory_mb
from DiffeoRegLib.report.pathology import pathology_scores
from DiffeoRegLib.report.regions import region_scores, sigma_scores
from DiffeoRegLib.report.scores import (
    displacement_scores,
    fold_scores,
    inverse_scores,
    label_scores,
    landmark_scores,
    similarity_scores,
)
from DiffeoRegLib.settings import Settings
from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.space.transform import AffineTransform, Transform
from DiffeoRegLib.volumes.pair import Correspondence, Masks
from DiffeoRegLib.volumes.pathology import Pathology
from DiffeoRegLib.volumes.regions import Regions
from DiffeoRegLib.volumes.volume import Volume

SCHEMA = 1
IDENTITY = AffineTransform(np.eye(4))


def measure(
    *,
    fixed: Volume,
    moving: Volume,
    transform: Transform,
    inverse: Transform,
    settings: Settings,
    initial: Transform | None = None,
    masks: Masks | None = None,
    guidance: Correspondence | None = None,
    evaluation: Correspondence | None = None,
    regions: Regions | None = None,
    sigma: tuple[Volume, Volume] | None = None,
    pathology: Pathology | None = None,
    change: Volume | None = None,
    device: DeviceChoice | None = None,
    seconds: Mapping[str, float] | None = None,
    notes: Sequence[str] = (),
    citations: Sequence[str] = (),
) -> dict[str, Any]:
    """Everything a report says about one registration; only numbers, strings, lists and None.

    initial: the alignment the deformation started from (None: the images as given).
    regions: of the moving image.  sigma: width of the regulariser, mm, in the moving and the fixed image.
    pathology: of either image.  change: of appearance, on the fixed grid, in intensities of the moving image.
    seconds: per phase.  citations: of what really ran.
    Raises what reading the images through the transforms raises.
    """
    start = initial if initial is not None else IDENTITY
    stages = {"given": IDENTITY, "initial": start, "final": transform}
    mask = masks.fixed if masks is not None and not masks.exclude_fixed else None
    report = {
        "schema": SCHEMA,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "settings": dataclasses.asdict(settings),
        "inputs": _inputs(fixed, moving, masks, guidance, evaluation, regions, pathology),
        "device": device_facts(device),
        "similarity": similarity_scores(fixed, moving, stages, mask),
        "folds": fold_scores(transform, fixed.grid, mask),
        "inverse_consistency_mm": inverse_scores(transform, inverse, fixed.grid, moving.grid),
        "displacement_mm": displacement_scores(transform, fixed.grid),
        "labels": label_scores(evaluation, stages, fixed.grid),
        "landmarks": landmark_scores(evaluation, stages),
        "regions": region_scores(regions, transform, fixed.grid),
        "sigma_mm": sigma_scores(sigma),
        "pathology": pathology_scores(pathology, change, transform, fixed.grid),
        "seconds": dict(seconds or {}),
        "peak_memory_mb": peak_memory_mb(),
        "peak_device_memory_mb": peak_device_memory_mb(device.device if device else None),
        "notes": list(notes),
        "citations": list(dict.fromkeys(citations)),
    }
    return dict(json_safe(report))


def versions() -> dict[str, str]:
    """Versions of everything a result can depend on."""
    return {
        "diffeoreg": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "platform": platform.platform(),
    }


def json_safe(value: Any) -> Any:
    """The value with only JSON's types: NaN and infinity become None, tuples lists, numpy numbers plain.

    Floats keep six significant digits.  Raises TypeError for what has no JSON form.
    """
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        return float(f"{float(value):.6g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): json_safe(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, np.ndarray)):
        return [json_safe(item) for item in value]
    raise TypeError(f"A report cannot hold a {type(value).__name__}.")


def describe(volume: Volume) -> dict[str, Any]:
    """Name, size and place of a volume, axes in the order x, y, z of the files."""
    return {
        "name": volume.name,
        "shape": list(volume.grid.shape[::-1]),
        "spacing_mm": list(volume.grid.spacing[::-1]),
        "orientation": orientation(volume.grid),
    }


def orientation(grid: Grid) -> str:
    """Anatomical directions the file axes x, y, z point to, such as `LPS`; the nearest ones if oblique."""
    letters = ""
    for axis in reversed(range(grid.dim)):
        column = grid.world_from_voxel[:3, axis]
        world = int(np.argmax(np.abs(column)))
        letters += ("RAS" if column[world] > 0 else "LPI")[world]
    return letters


def _inputs(
    fixed: Volume,
    moving: Volume,
    masks: Masks | None,
    guidance: Correspondence | None,
    evaluation: Correspondence | None,
    regions: Regions | None,
    pathology: Pathology | None,
) -> dict[str, Any]:
    inputs: dict[str, Any] = {"fixed": describe(fixed), "moving": describe(moving)}
    if masks is not None:
        for side, mask, exclude in (
            ("fixed", masks.fixed, masks.exclude_fixed),
            ("moving", masks.moving, masks.exclude_moving),
        ):
            if mask is not None:
                inputs[f"{side}_mask"] = describe(mask) | {"excludes": exclude}
    for role, given in (("guidance", guidance), ("evaluation", evaluation)):
        if given is None:
            continue
        for side, labels, points in (
            ("fixed", given.fixed_labels, given.fixed_points_mm),
            ("moving", given.moving_labels, given.moving_points_mm),
        ):
            if labels is not None:
                inputs[f"{role}_{side}_labels"] = describe(labels)
            if points is not None:
                inputs[f"{role}_{side}_landmarks"] = len(points)
    if regions is not None:
        stiffness = {str(label): value for label, value in regions.stiffness.items()}
        inputs["regions"] = describe(regions.labels) | {"stiffness": stiffness, "rest": regions.rest}
    if pathology is not None:
        used = {"classes": pathology.classes, "edge_mm": pathology.edge_mm}
        for side, labels in (("fixed", pathology.fixed), ("moving", pathology.moving)):
            if labels is not None:
                inputs[f"{side}_pathology"] = describe(labels) | used
    return inputs


def device_facts(choice: DeviceChoice | None) -> dict[str, Any] | None:
    if choice is None:
        return None
    return {
        "device": str(choice.device),
        "name": choice.name,
        "why": choice.why,
        "notes": list(choice.notes),
        "threads": torch.get_num_threads(),
    }
