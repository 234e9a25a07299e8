"""Pre-flight: what cannot be registered is refused before it starts, in a sentence that says what to do."""

from __future__ import annotations

import numpy as np

from DiffeoRegLib import catalog
from DiffeoRegLib.errors import InputError
from DiffeoRegPanel.checks_images import (
    check_dimensions,
    check_initial,
    check_kind,
    check_model,
    check_places,
    check_planes,
    check_voxels,
    is_under,
)
from DiffeoRegPanel.checks_regions import check_carried, check_mask, check_matching, check_needs
from DiffeoRegPanel.nodes.places import Matrix, local_from_voxel, world_from_voxel
from DiffeoRegPanel.nodes.transforms import check_output_node
from DiffeoRegPanel.request import STORAGES, Request
from DiffeoRegPanel.request_nodes import all_nodes, carried_nodes, inputs_of, outputs_of

VOLUME, TRANSFORM = "vtkMRMLScalarVolumeNode", "vtkMRMLTransformNode"


def check_request(request: Request) -> list[str]:
    """Sentences for the report about a request that can be carried out.

    Raises InputError, one sentence that says what to do, for one that cannot.
    """
    _check_pair(request)
    card = catalog.card(request.settings.method)
    catalog.check_steps(card, request.settings.steps)
    _check_scene(request)
    _check_outputs(request, card)
    check_places(request)
    check_dimensions(request.fixed, request.moving)
    check_model(card, request.fixed, request.moving)
    check_planes(request)
    for role, volume in (("fixed", request.fixed), ("moving", request.moving)):
        check_voxels(volume, role)
    notes = check_initial(request)
    for what, region, volume in (
        ("fixed mask", request.fixed_mask, request.fixed),
        ("moving mask", request.moving_mask, request.moving),
    ):
        check_mask(what, region, volume)
    notes += check_needs(request, card)
    notes += check_matching("guidance", request.guidance, request)
    notes += check_matching("evaluation", request.evaluation, request)
    check_carried(request)
    return list(dict.fromkeys(notes))  # guidance and evaluation may be the same nodes


def check_still_there(request: Request) -> None:
    """Raise InputError when a node that the result is built from, or written to, is gone from the scene."""
    outputs = request.outputs
    needed = [("fixed volume", request.fixed), ("moving volume", request.moving), *carried_nodes(request)]
    needed += [("output node", node) for node in (outputs.transform, outputs.inverse, outputs.volume)]
    for what, node in needed:
        if node is not None and node.GetScene() is None:
            raise InputError(
                f"The {what} '{node.GetName()}' was removed from the scene during the run, so there is no "
                "result and nothing was changed: choose another and apply again."
            )


def voxel_places(request: Request) -> tuple[Matrix, Matrix]:
    """Where the voxels are that a result belongs to: the fixed in the world, the moving without its parent.

    Raises InputError where the fixed volume is under a non-linear transform.
    """
    return world_from_voxel(request.fixed), local_from_voxel(request.moving)


def check_not_moved(request: Request, before: tuple[Matrix, Matrix]) -> None:
    """Raise InputError when a volume is not where it was when the run began; before: its `voxel_places`."""
    for role, volume, was, now in zip(
        ("fixed", "moving"), (request.fixed, request.moving), before, voxel_places(request), strict=True
    ):
        if not np.allclose(was, now, rtol=1e-9, atol=1e-6):
            raise InputError(
                f"The {role} volume '{volume.GetName()}' was moved during the run, so the result does not "
                "fit it any more and nothing was changed: apply again."
            )


def _check_pair(request: Request) -> None:
    fixed, moving = request.fixed, request.moving
    if fixed is None:
        raise InputError("No fixed volume is chosen: choose the image that stays where it is.")
    if moving is None:
        raise InputError("No moving volume is chosen: choose the image that is to be aligned.")
    for role, node in (("fixed", fixed), ("moving", moving)):
        check_kind(node, role)
    if fixed is moving:
        raise InputError(
            f"'{fixed.GetName()}' is chosen as fixed and as moving volume: choose two different volumes."
        )


def _check_scene(request: Request) -> None:
    """All nodes in the scene of the fixed volume, and none that a sequence browser may change."""
    scene = request.fixed.GetScene()
    for what, node in all_nodes(request):
        if node.GetScene() is None:
            raise InputError(f"The {what} '{node.GetName()}' is no longer in the scene: choose another.")
        if node.GetScene() is not scene:
            raise InputError(
                f"The {what} '{node.GetName()}' and the fixed volume '{request.fixed.GetName()}' are in "
                "different scenes: load both into the same scene."
            )
    still = [("fixed volume", request.fixed), ("moving volume", request.moving), *carried_nodes(request)]
    for index in range(scene.GetNumberOfNodesByClass("vtkMRMLSequenceBrowserNode")):
        browser = scene.GetNthNodeByClass(index, "vtkMRMLSequenceBrowserNode")
        for what, node in still:
            if browser.IsProxyNodeID(node.GetID()):
                raise InputError(
                    f"The {what} '{node.GetName()}' shows a frame of a sequence and changes with the "
                    f"sequence browser '{browser.GetName()}': clone it in the Data module and choose the "
                    "copy."
                )


def _check_outputs(request: Request, card: catalog.Card) -> None:
    """Outputs that can hold the result, are not inputs, and do not move the inputs."""
    outputs = request.outputs
    if outputs.storage not in STORAGES:
        raise InputError(
            f"A transform cannot be stored in '{outputs.storage}' resolution: choose {' or '.join(STORAGES)}."
        )
    given = outputs_of(outputs)
    inputs = [*inputs_of(request)]
    for n, (what, node) in enumerate(given):
        for other, taken in (*given[:n], *inputs):
            if node is taken:
                raise InputError(
                    f"'{node.GetName()}' is chosen as {what} and as {other}: choose another node, "
                    f"or a new one, as {what}."
                )
    if outputs.volume is not None and outputs.volume.GetClassName() != VOLUME:
        raise InputError(
            f"'{outputs.volume.GetName()}' cannot hold the moved image: choose a scalar volume, or a new "
            "one, as output volume."
        )
    for what, node in given[: len(given) - (outputs.volume is not None)]:
        if not node.IsA(TRANSFORM):
            raise InputError(
                f"'{node.GetName()}' is not a transform: choose a transform, or a new one, as {what}."
            )
        for role, moved in inputs:
            if is_under(moved, node):
                raise InputError(
                    f"The {role} '{moved.GetName()}' lies under '{node.GetName()}', which is also the "
                    f"{what}: take '{moved.GetName()}' out of this transform, or choose another {what}."
                )
        check_output_node(node, card.deformable)
