"""From a request to what the worker process is told: arrays with a place in the patient, and settings."""

from __future__ import annotations

import dataclasses
from typing import Any

from DiffeoRegLib.exchange import Image
from DiffeoRegPanel.nodes import points, segmentations, transforms, volumes
from DiffeoRegPanel.nodes.pathology import marks_of
from DiffeoRegPanel.request import NORMAL, Matching, Region, Request


def job_of(request: Request) -> tuple[dict[str, Any], dict[int, str]]:
    """The worker's job for a request that has passed the checks, and the names of its regions by label.

    Raises InputError for a mask, segmentation or transform that cannot be used.
    """
    fixed, moving, outputs = request.fixed, request.moving, request.outputs
    regions, entries = None, {}
    if request.regions is not None:
        regions, entries = segmentations.labels_of(request.regions, moving)
    job = {
        "kind": "register",
        "settings": dataclasses.asdict(request.settings),
        "fixed": volumes.image_of(fixed),
        "moving": volumes.image_of(moving),
        "initial": None if request.initial is None else transforms.parts_of(request.initial, fixed),
        "masks": _masks(request),
        "guidance": _matching(request.guidance, request),
        "evaluation": _matching(request.evaluation, request),
        "pathology": _pathology(request),
        "regions": regions,
        "stiffness": {
            str(label): request.stiffness.get(entry.key, NORMAL) for label, entry in entries.items()
        },
        "rest": request.rest,
        "storage": outputs.storage,
        "outputs": {
            "moved": True,  # the self-check needs it, whether or not a node is made of it
            "velocity": outputs.want_velocity,
            "jacobian": outputs.want_jacobian,
            "regulariser": outputs.want_regulariser,
        },
    }
    return job, {label: entry.name for label, entry in entries.items()}


def _masks(request: Request) -> dict[str, Any] | None:
    fixed, moving = request.fixed_mask, request.moving_mask
    if fixed is None and moving is None:
        return None
    return {
        "fixed": _mask(fixed, request.fixed),
        "moving": _mask(moving, request.moving),
        "exclude_fixed": fixed is not None and fixed.exclude,
        "exclude_moving": moving is not None and moving.exclude,
    }


def _pathology(request: Request) -> dict[str, Any] | None:
    """Marks on the voxels of the volume they belong to; which classes count is settled here."""
    marks = request.pathology
    if not marks:
        return None
    sides = (("fixed", marks.fixed, request.fixed), ("moving", marks.moving, request.moving))
    found = {side: None if region is None else marks_of(region, volume) for side, region, volume in sides}
    return {**found, "edge_mm": marks.edge_mm}


def _mask(region: Region | None, volume: Any) -> Image | None:
    return None if region is None else segmentations.mask_of(region, volume)


def _matching(known: Matching, request: Request) -> dict[str, Any] | None:
    """Label maps with equal numbers for equal names, and landmarks in the world."""
    if not known:
        return None
    fixed_labels, moving_labels = None, None
    if known.fixed is not None and known.moving is not None:
        fixed_labels, moving_labels, _names = segmentations.matched_labels(
            known.fixed, known.moving, request.fixed, request.moving
        )
    return {
        "fixed_labels": fixed_labels,
        "moving_labels": moving_labels,
        "fixed_points_mm": _points(known.fixed_points),
        "moving_points_mm": _points(known.moving_points),
    }


def _points(node: Any) -> list[list[float]] | None:
    return None if node is None else points.points_of(node).tolist()
