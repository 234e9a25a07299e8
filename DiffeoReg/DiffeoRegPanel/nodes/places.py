"""Where nodes are: matrices between voxels, nodes and the world.

The one place where Slicer's (i, j, k) order is reversed to numpy's (k, j, i).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import vtk
from numpy.typing import NDArray

from DiffeoRegLib.errors import InputError

Matrix = NDArray[np.float64]
KJI = [2, 1, 0, 3]
PARENT = "DiffeoReg.VolumeParent"
"""Attribute of a result: world from the parent space of its volume during the run, when not identity."""


def matrix_from_vtk(matrix: Any) -> Matrix:
    """A vtkMatrix4x4 as float64 4x4."""
    return np.array([[matrix.GetElement(row, column) for column in range(4)] for row in range(4)])


def vtk_from_matrix(matrix: Matrix) -> Any:
    """A 4x4 as vtkMatrix4x4."""
    out = vtk.vtkMatrix4x4()
    out.DeepCopy(np.asarray(matrix, dtype=float).ravel().tolist())
    return out


def text_of(numbers: NDArray[Any]) -> str:
    """Numbers as a node attribute keeps them exactly: only characters that MRML files leave alone."""
    return " ".join(repr(float(number)) for number in np.ravel(numbers))


def numbers_of(text: str) -> NDArray[np.float64]:
    """What `text_of` wrote. Raises ValueError for anything else."""
    return np.array([float(word) for word in text.split()])


def parent_matrix(node: Any) -> Matrix:
    """World from the space in which a volume or other node is defined, RAS mm; identity without parent.

    Raises InputError where a parent transform is not linear.
    """
    parent, matrix = node.GetParentTransformNode(), vtk.vtkMatrix4x4()
    if parent is None:
        return np.eye(4)
    if not parent.IsTransformToWorldLinear():
        raise InputError(
            f"'{node.GetName()}' is under the non-linear transform '{parent.GetName()}', which cannot be "
            "taken into account: take it out of that transform, or resample it with the transform first."
        )
    parent.GetMatrixTransformToWorld(matrix)
    return matrix_from_vtk(matrix)


def remember_parent(node: Any, parent: Matrix) -> None:
    """Keep, on a node that a run made, the parent matrix of the volume it belongs over."""
    if np.array_equal(parent, np.eye(4)):
        node.RemoveAttribute(PARENT)
    else:
        node.SetAttribute(PARENT, text_of(parent))


def parent_of(node: Any) -> Matrix:
    """World from the parent space, during the run, of the volume that a result belongs over.

    The volume's present parent may be that result itself.
    """
    text = node.GetAttribute(PARENT)
    return np.eye(4) if text is None else numbers_of(text).reshape(4, 4)


def local_from_voxel(node: Any) -> Matrix:
    """World from voxel (k, j, i) without the volume's parent transforms."""
    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    return matrix_from_vtk(matrix)[:, KJI]


def world_from_voxel(node: Any) -> Matrix:
    """RAS mm of the voxel (k, j, i, 1) of a volume, linear parent transforms included.

    Raises InputError where a parent transform is not linear.
    """
    return parent_matrix(node) @ local_from_voxel(node)
