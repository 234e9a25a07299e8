"""Markups and models: as landmarks for the engine, and carried onto the fixed volume."""

from __future__ import annotations

from typing import Any

import numpy as np
import slicer
import vtk
from numpy.typing import NDArray

from DiffeoRegLib.errors import InputError
from DiffeoRegPanel.nodes.layers import chain
from DiffeoRegPanel.nodes.places import parent_matrix


def points_of(markups: Any) -> NDArray[np.float64]:
    """(n, 3) world positions of the control points that have been placed, RAS mm, in their order."""
    placed = [
        markups.GetNthControlPointPositionWorld(n)
        for n in range(markups.GetNumberOfControlPoints())
        if markups.GetNthControlPointPositionStatus(n) == slicer.vtkMRMLMarkupsNode.PositionDefined
    ]
    return np.array(placed, dtype=float).reshape(-1, 3)


def transfer_markups(
    markups: Any, inverse_transform: Any, fixed: Any, name: str | None = None, node: Any = None
) -> Any:
    """A copy of the markups carried to the fixed volume, with labels, descriptions, locks and display.

    inverse_transform: vtkAbstractTransform from moving world point to fixed world point.  node: a node of the
    same class to fill; None = a new one.  The result lies under the parent transform of the fixed volume.
    Raises InputError for a `node` of another class and for non-linear parent transforms.
    """
    move = _fixed_from_local(markups, inverse_transform, fixed)
    target = _target(markups, fixed, name, node)
    target.CopyContent(markups)
    target.ApplyTransform(move, True)  # True: locked points lie on the anatomy like the others
    _finish(target, markups, fixed)
    return target


def transfer_model(
    model: Any, inverse_transform: Any, fixed: Any, name: str | None = None, node: Any = None
) -> Any:
    """A copy of the model carried to the fixed volume, with its normals, data arrays and display.

    The arguments are those of `transfer_markups`.
    Raises InputError for a model without points, besides what `transfer_markups` raises.
    """
    mesh = model.GetMesh()
    if mesh is None or mesh.GetNumberOfPoints() == 0:
        raise InputError(f"The model '{model.GetName()}' has no points: load it again, or leave it out.")
    mover = vtk.vtkTransformFilter()  # normals follow the derivative of the transform
    mover.SetInputData(mesh)
    mover.SetTransform(_fixed_from_local(model, inverse_transform, fixed))
    mover.Update()
    target = _target(model, fixed, name, node)
    target.CopyContent(model)
    target.SetAndObserveMesh(mover.GetOutput())
    _finish(target, model, fixed)
    return target


def _fixed_from_local(node: Any, inverse_transform: Any, fixed: Any) -> Any:
    """From a node's own coordinates, through the inverse registration, to those of the fixed volume."""
    return chain(parent_matrix(node), inverse_transform, np.linalg.inv(parent_matrix(fixed)))


def _target(source: Any, fixed: Any, name: str | None, node: Any) -> Any:
    if node is None:
        scene = source.GetScene()
        wanted = name or f"{source.GetName()} on {fixed.GetName()}"
        return scene.AddNewNodeByClass(source.GetClassName(), scene.GetUniqueNameByString(wanted))
    if node is source or node.GetClassName() != source.GetClassName():
        raise InputError(
            f"'{source.GetName()}' cannot be carried into '{node.GetName()}': choose one of its own kind."
        )
    return node


def _finish(target: Any, source: Any, fixed: Any) -> None:
    """The place of the fixed volume and the look of the source."""
    target.SetAndObserveTransformNodeID(fixed.GetTransformNodeID())
    target.CreateDefaultDisplayNodes()
    mine, other = target.GetDisplayNode(), source.GetDisplayNode()
    if mine is None or other is None:
        return
    mine.CopyContent(other)
    if other.GetColorNodeID():
        mine.SetAndObserveColorNodeID(other.GetColorNodeID())
