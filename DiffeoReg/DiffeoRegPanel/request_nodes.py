"""The nodes of a request, each with the words a sentence has for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from DiffeoRegPanel.request import Outputs, Request

Named = tuple[str, Any]
"""What a node is to the run, as a sentence says it, and the node."""


def carried_nodes(request: Request) -> list[Named]:
    """What lies on the moving volume and is to be carried to the fixed one."""
    return [
        *(("segmentation to transfer", node) for node in request.segmentations),
        *(("markups to transfer", node) for node in request.markups),
        *(("model to transfer", node) for node in request.models),
    ]


def outputs_of(outputs: Outputs) -> list[Named]:
    """The given output nodes, the volume last."""
    given = (
        ("output transform", outputs.transform),
        ("inverse transform", outputs.inverse),
        ("output volume", outputs.volume),
    )
    return [(what, node) for what, node in given if node is not None]


def inputs_of(request: Request) -> Iterator[Named]:
    """Every node that is read."""
    regions = {
        "fixed mask": request.fixed_mask,
        "moving mask": request.moving_mask,
        "fixed pathology": request.pathology.fixed,
        "moving pathology": request.pathology.moving,
        "regions": request.regions,
    }
    nodes: dict[str, Any] = {
        "fixed volume": request.fixed,
        "moving volume": request.moving,
        "initial transform": request.initial,
    }
    for use, known in (("guidance", request.guidance), ("evaluation", request.evaluation)):
        regions[f"fixed {use}"], regions[f"moving {use}"] = known.fixed, known.moving
        nodes[f"fixed {use} points"], nodes[f"moving {use} points"] = known.fixed_points, known.moving_points
    yield from ((what, node) for what, node in nodes.items() if node is not None)
    yield from ((what, region.node) for what, region in regions.items() if region and region.node)
    yield from carried_nodes(request)


def all_nodes(request: Request) -> Iterator[Named]:
    """Every node that is read or written."""
    yield from inputs_of(request)
    yield from outputs_of(request.outputs)
