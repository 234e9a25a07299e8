"""The way from the fixed to the moving image as a sequence of transforms, to play in the Sequences module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import slicer

from DiffeoRegLib.errors import InputError
from DiffeoRegPanel.nodes.places import Matrix, parent_matrix, remember_parent
from DiffeoRegPanel.nodes.transforms import FIXED, MOVING, Parts, transform_from_parts


def path_sequence(
    scene: Any,
    path: Sequence[tuple[float, Parts]],
    fixed: Any,
    moving: Any,
    name: str,
    *,
    parent: Matrix | None = None,
) -> tuple[Any, Any]:
    """A sequence of transforms over the moving volume along the flow, and a browser with its proxy transform.

    path: (fraction in [0, 1], parts of the transform there).  parent: world from the moving volume's parent
    space, as in `output_transform`.
    Returns (sequence, browser); browser.GetProxyNode(sequence) is the transform to put the volume under.
    Raises InputError for an empty path.
    """
    if not path:
        raise InputError("There is no path to show: register with a method that keeps its velocity first.")
    parent = parent_matrix(moving) if parent is None else np.asarray(parent, dtype=float)
    made: list[Any] = []
    try:
        sequence = _added(scene, "vtkMRMLSequenceNode", name, made)
        sequence.SetIndexName("along the flow")
        sequence.SetIndexUnit("%")
        sequence.SetIndexType(slicer.vtkMRMLSequenceNode.NumericIndex)
        for fraction, parts in path:
            item = _item(parts, fixed, moving, parent)
            sequence.SetDataNodeAtValue(item, f"{100 * fraction:g}")
        browser = _added(scene, "vtkMRMLSequenceBrowserNode", f"{name} browser", made)
        browser.SetAndObserveMasterSequenceNodeID(sequence.GetID())
        _update_proxies(browser)
        _refer(browser.GetProxyNode(sequence), fixed, moving)
    except BaseException:
        for node in reversed(made):
            scene.RemoveNode(node)
        raise
    return sequence, browser


def show_item(browser: Any, number: int) -> None:
    """Set the proxies of a browser to one item, counted from 0."""
    browser.SetSelectedItemNumber(number)
    _update_proxies(browser)


def _added(scene: Any, kind: str, name: str, made: list[Any]) -> Any:
    node = scene.AddNewNodeByClass(kind, scene.GetUniqueNameByString(name))
    made.append(node)
    return node


def _item(parts: Parts, fixed: Any, moving: Any, parent: Matrix) -> Any:
    """One transform of the path; it needs no scene, the sequence copies it."""
    node = slicer.vtkMRMLTransformNode()
    node.SetName(f"{moving.GetName()} -> {fixed.GetName()}")
    node.SetAndObserveTransformFromParent(transform_from_parts(parts, np.linalg.inv(parent)))
    remember_parent(node, parent)
    return node


def _refer(node: Any, fixed: Any, moving: Any) -> None:
    """References are no content: a sequence does not hand them to its proxy."""
    node.SetNodeReferenceID(MOVING, moving.GetID())
    node.SetNodeReferenceID(FIXED, fixed.GetID())


def _update_proxies(browser: Any) -> None:
    """Let the proxies hold the selected item now; Slicer's own logic does it again whenever it changes."""
    # A logic without a scene: with one, it would register its node classes a second time.
    slicer.vtkSlicerSequencesLogic().UpdateProxyNodesFromSequences(browser)
