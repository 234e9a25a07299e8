"""Where nodes are listed in the subject hierarchy."""

from __future__ import annotations

from typing import Any

import slicer


def place_beside(node: Any, reference: Any) -> None:
    """List a node where the reference is listed: in the same study, folder or patient."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(reference.GetScene())
    none = hierarchy.GetInvalidItemID()
    beside = hierarchy.GetItemByDataNode(reference)
    parent = hierarchy.GetItemParent(beside) if beside != none else hierarchy.GetSceneItemID()
    item = hierarchy.GetItemByDataNode(node)
    if item == none:  # the items of new nodes are made late while the scene is in batch processing
        hierarchy.CreateItem(parent, node)
    else:
        hierarchy.SetItemParent(item, parent)
