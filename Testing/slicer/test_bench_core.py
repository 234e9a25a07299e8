"""The booted scene: real MRML, nothing left over from one test to the next."""

from __future__ import annotations

import numpy as np
import slicer
import slicer.util
import vtk

from Testing.slicer.bench import core


def add_volume(name="image"):
    array = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4)
    return slicer.util.addVolumeFromArray(array, name=name)


def test_the_scene_is_slicers(scene):
    assert slicer.mrmlScene is scene
    assert slicer.util.arrayFromVolume(add_volume()).shape == (2, 3, 4)


def test_reset_removes_nodes_and_observers(scene):
    called = []
    scene.AddObserver(slicer.vtkMRMLScene.NodeAddedEvent, lambda *_: called.append(1))
    add_volume()
    assert called
    called.clear()
    core.boot().reset()
    add_volume()
    assert not called
    assert slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")[0].GetName() == "image"
    core.boot().reset()
    assert not slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")


def test_reset_removes_singletons_of_modules(scene):
    node = scene.CreateNodeByClass("vtkMRMLScriptedModuleNode")
    node.UnRegister(None)
    node.SetSingletonTag("DiffeoReg")
    scene.AddNode(node)
    scene.Clear(0)
    assert slicer.util.getNodesByClass("vtkMRMLScriptedModuleNode") == [node]
    core.boot().reset()
    assert slicer.util.getNodesByClass("vtkMRMLScriptedModuleNode") == []
    assert slicer.util.getNodesByClass("vtkMRMLColorTableNode")


def test_a_removed_observer_is_forgotten(scene):
    before = set(core.boot().observers)
    tag = scene.AddObserver(slicer.vtkMRMLScene.NodeAddedEvent, lambda *_: None)
    assert core.boot().observers == before | {tag}
    scene.RemoveObserver(tag)
    assert core.boot().observers == before


def test_segments_can_be_exported_after_a_reset(scene):
    core.boot().reset()
    assert slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene) is not None
    reference = add_volume()
    segmentation = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "seg")
    labels = slicer.util.addVolumeFromArray(
        np.ones((2, 3, 4), np.uint8), name="labels", nodeClassName="vtkMRMLLabelMapVolumeNode"
    )
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    assert logic.ImportLabelmapToSegmentationNode(labels, segmentation)
    out = scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "out")
    ids = vtk.vtkStringArray()
    ids.InsertNextValue(segmentation.GetSegmentation().GetNthSegmentID(0))
    assert logic.ExportSegmentsToLabelmapNode(segmentation, ids, out, reference)
    assert slicer.util.arrayFromVolume(out).sum() == 24


def test_archives_come_back(scene, tmp_path):
    add_volume("brain")
    path = tmp_path / "saved.mrb"
    assert scene.WriteToMRB(str(path))
    core.boot().reset()
    assert scene.ReadFromMRB(str(path), True)
    np.testing.assert_array_equal(
        slicer.util.arrayFromVolume(slicer.util.getNode("brain")).ravel(), np.arange(24)
    )
