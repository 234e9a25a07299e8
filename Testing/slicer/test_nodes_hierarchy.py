"""New nodes are listed where their reference is."""

from __future__ import annotations

import pytest
import slicer

from DiffeoRegPanel.nodes.hierarchy import place_beside
from Testing.slicer import region_cases as cases


@pytest.fixture
def hierarchy(scene):
    return slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)


@pytest.fixture
def fixed(hierarchy):
    """A volume in a study; the application lists new nodes by itself, a bare scene does not."""
    node = volume("fixed")
    patient = hierarchy.CreateSubjectItem(hierarchy.GetSceneItemID(), "patient")
    hierarchy.CreateItem(hierarchy.CreateStudyItem(patient, "study"), node)
    return node


def volume(name):
    return cases.add_volume(cases.FIXED_SHAPE, cases.FIXED_PLACE, name)


def parent(hierarchy, node):
    return hierarchy.GetItemName(hierarchy.GetItemParent(hierarchy.GetItemByDataNode(node)))


def test_a_node_that_is_listed_elsewhere_moves(hierarchy, fixed):
    moved = volume("moved")
    item = hierarchy.CreateItem(hierarchy.GetSceneItemID(), moved)
    place_beside(moved, fixed)
    assert parent(hierarchy, moved) == "study"
    assert hierarchy.GetItemByDataNode(moved) == item
    assert parent(hierarchy, fixed) == "study"


def test_a_node_that_is_not_listed_yet_is_added(scene, hierarchy, fixed):
    scene.StartState(slicer.vtkMRMLScene.BatchProcessState)
    transform = scene.AddNewNodeByClass("vtkMRMLTransformNode", "transform")
    place_beside(transform, fixed)
    scene.EndState(slicer.vtkMRMLScene.BatchProcessState)
    assert parent(hierarchy, transform) == "study"
    study = hierarchy.GetItemParent(hierarchy.GetItemByDataNode(fixed))
    assert hierarchy.GetNumberOfItemChildren(study) == 2


def test_beside_something_at_the_top(hierarchy, fixed):
    unlisted = volume("unlisted")
    place_beside(fixed, unlisted)
    item = hierarchy.GetItemByDataNode(fixed)
    assert hierarchy.GetItemParent(item) == hierarchy.GetSceneItemID()
