"""Checks of masks, segmentations and landmarks, and of what the method needs of them."""

from __future__ import annotations

import math
from typing import Any

from DiffeoRegLib.catalog import Card
from DiffeoRegLib.errors import InputError, SettingsError
from DiffeoRegLib.settings import PRESETS
from DiffeoRegLib.stiffness import REGIONAL_SIGMAS, shares_of
from DiffeoRegPanel.nodes.pathology import Seen, look_at
from DiffeoRegPanel.nodes.points import points_of
from DiffeoRegPanel.nodes.segmentations import labels_of, mask_of, matched_labels, overlap_notes
from DiffeoRegPanel.request import NORMAL, Matching, Region, Request
from DiffeoRegPanel.request_nodes import carried_nodes

SEGMENTATION, LABEL_MAP = "vtkMRMLSegmentationNode", "vtkMRMLLabelMapVolumeNode"
MARKUPS, MODEL = "vtkMRMLMarkupsNode", "vtkMRMLModelNode"
COMPARABLE = ("lncc", "lncc-squared", "mk-lncc", "mse")
"""Similarities with which a metamorphosis can search, as methods/metamorphosis.py of the engine has them."""


def check_mask(what: str, region: Region | None, volume: Any) -> None:
    """Something marked inside the volume, and something left of it."""
    if region is None:
        return
    mask = mask_of(region, volume).array
    if region.exclude and mask.all():
        raise InputError(
            f"The {what} '{region.node.GetName()}' excludes all of '{volume.GetName()}': invert it, or use "
            "it to include."
        )


def check_needs(request: Request, card: Card) -> list[str]:
    """What the chosen method must be given, and what it has no use for."""
    notes = []
    if card.needs_region_labels and request.regions is None:
        raise InputError(
            f"The method '{card.title}' needs regions: choose a segmentation of the moving volume as regions."
        )
    for what, region, used in (
        ("fixed pathology", request.pathology.fixed, card.needs_pathology_mask),
        ("moving pathology", request.pathology.moving, card.needs_pathology_mask),
        ("regions", request.regions, card.needs_region_labels),
    ):
        if region is not None and not used:
            raise InputError(
                f"The method '{card.title}' does not use the {what} '{region.node.GetName()}': remove it, or "
                "choose a method that does."
            )
    if request.stiffness and not card.needs_region_labels:
        raise InputError(
            f"The method '{card.title}' does not use a stiffness: leave it out, or choose a method that does."
        )
    notes += _check_pathology(request, card)
    if request.regions is not None:
        notes += _check_regions(request, request.regions)
    return notes


def check_comparable(card: Card, similarity: str) -> None:
    """A search for a change compares intensities; a network's refinement asks for that in the run."""
    if not card.trained and similarity not in COMPARABLE:
        raise InputError(
            f"'{card.title}' explains a lesion by a difference of intensities, which '{similarity}' does not "
            f"compare: choose one of {', '.join(COMPARABLE)}, or svf with a mask that excludes the lesion."
        )


def _check_pathology(request: Request, card: Card) -> list[str]:
    """Marks that leave something healthy, each on its own volume; the engine says when there are none."""
    marks, notes = request.pathology, []
    if not 0 <= marks.edge_mm < math.inf:
        raise InputError(
            f"The soft edge of a pathology cannot be {marks.edge_mm!r} mm wide: choose 0 mm or more."
        )
    for region, volume in ((marks.fixed, request.fixed), (marks.moving, request.moving)):
        seen = Seen(empty=True) if region is None else look_at(region, volume)
        if seen.problem:
            raise InputError(seen.problem)
        if seen.note and not seen.reported:
            notes.append(seen.note)
        if not seen.empty:
            settings = request.settings
            check_comparable(card, settings.similarity or PRESETS[settings.preset].similarity)
    return notes


def _check_regions(request: Request, regions: Region) -> list[str]:
    """Regions of the moving volume, each with a stiffness that means something."""
    kernels = len(request.settings.kernel_sigmas or REGIONAL_SIGMAS)
    known = {entry.key: entry.name for entry in labels_of(regions, request.moving)[1].values()}
    texts = {**dict.fromkeys(known, NORMAL), **request.stiffness}
    given = {known.get(key, key): stiffness for key, stiffness in texts.items()}
    for name, stiffness in (*given.items(), ("everything else", request.rest)):
        try:
            shares_of(stiffness, kernels)
        except SettingsError as error:
            raise SettingsError(f"Stiffness of {name}: {error}") from error
    notes = overlap_notes(regions, request.moving, by_order=True)
    if unknown := sorted(set(request.stiffness) - set(known)):
        notes.append(
            f"Stiffness is given for what is not in '{regions.node.GetName()}' inside the moving volume, "
            f"and not used there: {', '.join(unknown)}."
        )
    return notes


def check_matching(use: str, known: Matching, request: Request) -> list[str]:
    """Segmentations and landmarks come in pairs that have something in common."""
    if (known.fixed is None) != (known.moving is None):
        side = "fixed" if known.fixed is None else "moving"
        raise InputError(
            f"For {use}, a segmentation of the {side} volume is missing: choose one, or remove the other."
        )
    if (known.fixed_points is None) != (known.moving_points is None):
        side = "fixed" if known.fixed_points is None else "moving"
        raise InputError(
            f"For {use}, the landmarks of the {side} volume are missing: choose them, or remove the "
            "other ones."
        )
    notes = []
    if known.fixed_points is not None:
        _check_landmarks(use, known)
    if known.fixed is not None and known.moving is not None:
        names = matched_labels(known.fixed, known.moving, request.fixed, request.moving)[2]
        for region, volume in ((known.fixed, request.fixed), (known.moving, request.moving)):
            total = len(labels_of(region, volume)[1])
            if total > len(names):
                notes.append(
                    f"For {use}, {len(names)} of the {total} segments of '{region.node.GetName()}' exist "
                    "on both sides; the others are not used."
                )
            notes += overlap_notes(region, volume)
    return notes


def _check_landmarks(use: str, known: Matching) -> None:
    counts = []
    for node in (known.fixed_points, known.moving_points):
        if not node.IsA(MARKUPS):
            raise InputError(f"'{node.GetName()}' is not a point list: choose a point list as landmarks.")
        counts.append(len(points_of(node)))
        if not counts[-1]:
            raise InputError(f"For {use}, '{node.GetName()}' has no placed points: place them, or remove it.")
    if counts[0] != counts[1]:
        raise InputError(
            f"For {use}, '{known.fixed_points.GetName()}' has {counts[0]} points and "
            f"'{known.moving_points.GetName()}' has {counts[1]}: place the same points in both, in "
            "the same order."
        )


def check_carried(request: Request) -> None:
    """What is to be carried to the fixed volume is of a kind that can be, and not empty."""
    kinds = {"segmentation": (SEGMENTATION, LABEL_MAP), "markups": (MARKUPS,), "model": (MODEL,)}
    for what, node in carried_nodes(request):
        kind = what.removesuffix(" to transfer")
        if not any(node.IsA(name) for name in kinds[kind]):
            raise InputError(
                f"'{node.GetName()}' cannot be transferred as {kind}: choose a node of that kind."
            )
        if kind == "segmentation":
            mask_of(Region(node), request.moving)
        if kind == "model" and (node.GetMesh() is None or not node.GetMesh().GetNumberOfPoints()):
            raise InputError(f"The model '{node.GetName()}' has no points: load it again, or leave it out.")
