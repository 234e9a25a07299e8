"""Registration transforms <-> transform nodes.

A transform T leads fixed points to moving points, RAS mm; the worker gives it as parts, the first of which
acts first.  A node holds it in the direction *from parent*, so that it belongs over the moving volume.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import slicer
import vtk
from numpy.typing import NDArray

from DiffeoRegLib.errors import InputError
from DiffeoRegPanel.nodes.grids import covering_grid, grid_transform, mapped, sampled, thickened
from DiffeoRegPanel.nodes.places import (
    Matrix,
    matrix_from_vtk,
    parent_matrix,
    parent_of,
    remember_parent,
    vtk_from_matrix,
    world_from_voxel,
)
from DiffeoRegPanel.nodes.volumes import FIXED, MOVING, array_of

Parts = Sequence[Mapping[str, Any]]


def transform_from_parts(parts: Parts, then: Matrix | None = None) -> Any:
    """The vtkAbstractTransform that applies the parts, the first one first, and then a 4x4 matrix.

    A vtkTransform or vtkOrientedGridTransform where one suffices, else a vtkGeneralTransform of them.
    Raises GeometryError for a displacement grid without right angles.
    """
    steps = [_vtk_part(part) for part in _merged(parts, then)]
    if len(steps) == 1:
        return steps[0]
    together = vtk.vtkGeneralTransform()
    together.PreMultiply()
    for step in reversed(steps):
        together.Concatenate(step)
    return together


def output_transform(
    scene: Any,
    parts: Parts,
    fixed: Any,
    moving: Any,
    *,
    node: Any = None,
    name: str | None = None,
    parent: Matrix | None = None,
) -> Any:
    """The node to put over the moving volume, at the root of the scene: FromParent = parent^-1 after T.

    node: filled instead of a new one.  parent: world from the moving volume's parent space when the
    registration began; None = as it is now.
    Raises InputError where that parent is not linear, or `node` cannot hold the transform.
    """
    return _filled(scene, parts, over=moving, under=fixed, node=node, name=name, parent=parent)


def inverse_transform(
    scene: Any,
    parts: Parts,
    fixed: Any,
    moving: Any,
    *,
    node: Any = None,
    name: str | None = None,
    parent: Matrix | None = None,
) -> Any:
    """The node of T^-1, given by its parts, to put over the fixed volume; `parent` is the fixed volume's.

    Otherwise like `output_transform`.
    """
    return _filled(scene, parts, over=fixed, under=moving, node=node, name=name, parent=parent)


def check_output_node(node: Any, deformable: bool, keep: Any = None) -> None:
    """Raise InputError when a node given for the result cannot hold such a transform, or moves `keep`."""
    if node is not None and keep is not None and _is_under(keep, node):
        raise InputError(
            f"'{node.GetName()}' moves '{keep.GetName()}': choose another transform for the result, "
            "or a new one."
        )
    if node is None or node.GetClassName() == "vtkMRMLTransformNode":
        return
    if node.IsA("vtkMRMLLinearTransformNode") and not deformable:
        return
    if node.IsA("vtkMRMLGridTransformNode") and deformable:
        return
    what = "a deformation" if deformable else "a linear transform"
    raise InputError(
        f"'{node.GetName()}' is a {node.GetNodeTagName()} node and cannot hold {what}: choose a general "
        "transform node, or a new one."
    )


def apply_to(node: Any, volume: Any) -> None:
    """Put a volume under a transform node, in place of its former parent, which the node takes in."""
    volume.SetAndObserveTransformNodeID(node.GetID())


def parts_of(node: Any, fixed: Any) -> list[dict[str, Any]]:
    """An initial transform, fixed world -> moving world, from the node one would put the moving volume under.

    The moving volume where it is now, moved along by the node: T = the node's FromParent to the world, with
    all parents of the node.  Linear: one matrix; anything else: its displacements on a grid at right angles
    that covers the fixed volume, of its spacing (twice that above 20 million voxels).
    """
    from_world = vtk.vtkGeneralTransform()
    if node.IsTransformToWorldLinear():
        matrix = vtk.vtkMatrix4x4()
        node.GetMatrixTransformFromWorld(matrix)
        return [{"matrix": matrix_from_vtk(matrix)}]
    node.GetTransformFromWorld(from_world)
    shape, world = covering_grid(array_of(fixed).shape[:3], world_from_voxel(fixed))
    return [{"displacement": sampled(from_world, shape, world)}]


def inverse_error_mm(node: Any, inverse_node: Any, points: NDArray[np.float64]) -> dict[str, float]:
    """mean, p95 and max of |T^-1(T(x)) - x|, mm, as the nodes give it, for fixed points x (n, 3), RAS mm.

    T^-1 is once that of the inverse node, once VTK's numeric inverse of `node`; the larger numbers count.
    """
    return _largest_error(_world_transform(node), _world_transform(inverse_node), points)


def ways_error_mm(node: Any, back: Parts, points: NDArray[np.float64]) -> dict[str, float]:
    """As `inverse_error_mm`, with the parts of T^-1 instead of a node."""
    return _largest_error(_world_transform(node), transform_from_parts(back), points)


def _largest_error(forward: Any, inverse: Any, points: NDArray[np.float64]) -> dict[str, float]:
    """Once through the inverse given, once through VTK's own."""
    there = mapped(forward, points)
    errors = [
        np.linalg.norm(mapped(back, there) - points, axis=1) for back in (inverse, forward.GetInverse())
    ]
    measures = {"mean": np.mean, "p95": lambda e: np.percentile(e, 95), "max": np.max}
    return {name: max(float(measure(error)) for error in errors) for name, measure in measures.items()}


def _is_under(volume: Any, node: Any) -> bool:
    """Whether a transform node is among the parents of a volume."""
    parent = volume.GetParentTransformNode()
    return parent is not None and (parent is node or _is_under(parent, node))


def _world_transform(node: Any) -> Any:
    """T from an output node: its FromParent, then the parent of the volume it was made for."""
    inner, matrix = vtk.vtkGeneralTransform(), vtk_from_matrix(parent_of(node))
    node.GetTransformFromWorld(inner)
    together = vtk.vtkGeneralTransform()
    together.PostMultiply()
    together.Concatenate(inner)
    together.Concatenate(matrix)
    return together


def _filled(
    scene: Any, parts: Parts, *, over: Any, under: Any, node: Any, name: str | None, parent: Matrix | None
) -> Any:
    """A transform node over the volume `over`, named and referring to both volumes."""
    parent = parent_matrix(over) if parent is None else np.asarray(parent, dtype=float)
    check_output_node(node, any("displacement" in part for part in parts), keep=under)
    transform = transform_from_parts(parts, np.linalg.inv(parent))
    if node is None:
        name = name or f"{over.GetName()} -> {under.GetName()}"
        node = scene.AddNewNodeByClass("vtkMRMLTransformNode", scene.GetUniqueNameByString(name))
    elif node.IsA("vtkMRMLGridTransformNode"):
        transform = _one_grid(transform, parts)
    node.SetAndObserveTransformNodeID(None)
    node.SetAndObserveTransformFromParent(transform)
    node.SetNodeReferenceID(MOVING, over.GetID())
    node.SetNodeReferenceID(FIXED, under.GetID())
    remember_parent(node, parent)
    return node


def _merged(parts: Parts, then: Matrix | None) -> list[dict[str, Any]]:
    """The parts without identities, neighbouring matrices multiplied; never empty."""
    out: list[dict[str, Any]] = []
    for part in [*parts, *([] if then is None else [{"matrix": then}])]:
        if "matrix" in part and out and "matrix" in out[-1]:
            out[-1] = {"matrix": np.asarray(part["matrix"], dtype=float) @ np.asarray(out[-1]["matrix"])}
        else:
            out.append(dict(part))
    kept = [p for p in out if "displacement" in p or not np.array_equal(p["matrix"], np.eye(4))]
    return kept or [{"matrix": np.eye(4)}]


def _vtk_part(part: Mapping[str, Any]) -> Any:
    if "matrix" in part:
        transform = vtk.vtkTransform()
        transform.SetMatrix(vtk_from_matrix(np.asarray(part["matrix"])))
        return transform
    return grid_transform(part["displacement"])


def _one_grid(transform: Any, parts: Parts) -> Any:
    """A transform as a single displacement grid, where its first deformation acts."""
    if isinstance(transform, slicer.vtkOrientedGridTransform):
        return transform
    before = np.eye(4)
    for part in parts:
        if "displacement" in part:
            break
        before = np.asarray(part["matrix"]) @ before
    grid = thickened(part["displacement"])
    world = np.linalg.inv(before) @ grid.world_from_voxel
    shape, world = covering_grid(grid.array.shape[:3], world, beyond_vox=0.0)
    return grid_transform(sampled(transform, shape, world))
