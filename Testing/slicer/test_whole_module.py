"""The whole module as a user goes through it: choose, Apply, look, save the scene, load it again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import qt
import slicer
import vtk

from Testing.slicer.panel_pictures import add_launcher
from Testing.slicer.pictures import load_pair

PATIENCE = 120.0


@pytest.fixture
def module(bench):
    add_launcher(Path(bench.app.slicerHome))
    loaded = bench.load()
    yield loaded
    loaded.close()


def apply(bench, widget):
    bench.click(widget.panel.ui.applyButton)
    seen = []
    widget.panel.ui.progressBar.connect("valueChanged(int)", seen.append)
    bench.wait(lambda: not widget.panel.run.running, PATIENCE, "the end of the run")
    return seen


def mapped(node, points):
    transform = vtk.vtkGeneralTransform()
    node.GetTransformFromWorld(transform)
    return np.array([transform.TransformPoint(*point) for point in points])


def transforms():
    """Names of the transform nodes, without the slice views' own."""
    names = [node.GetName() for node in slicer.util.getNodesByClass("vtkMRMLTransformNode")]
    return sorted(name for name in names if "->" in name)


ENDINGS = {
    "vtkMRMLTransformNode": ".h5",
    "vtkMRMLVolumeNode": ".nrrd",
    "vtkMRMLSegmentationNode": ".seg.nrrd",
    "vtkMRMLTableNode": ".tsv",
}


def save_data(folder):
    """What Slicer's Save dialog does besides the .mrml file: a file for every node of the user."""
    for kind, ending in ENDINGS.items():
        for number, node in enumerate(slicer.util.getNodesByClass(kind)):
            if not node.GetHideFromEditors():
                assert slicer.util.saveNode(node, str(folder / f"{kind}{number}{ending}"), {}), node.GetName()


@pytest.mark.parametrize("suffix", [".mrml", ".mrb"])
def test_choose_apply_save_close_and_load_again(bench, module, tmp_path, suffix):
    pair = load_pair(bench.core)
    widget = module.enter()
    panel = widget.panel
    panel.ui.fixedSelector.setCurrentNode(pair.fixed)
    panel.ui.movingSelector.setCurrentNode(pair.moving)
    panel.parameters.model.preset = "brain-mr"
    panel.parameters.model.effort = "fast"
    panel.parameters.flow.regularity = 1.5
    panel.parameters.segmentations = [pair.moving_labels]
    panel.parameters.evaluation.fixed.node = pair.fixed_labels
    panel.parameters.evaluation.moving.node = pair.moving_labels
    shown = apply(bench, widget)
    assert panel.ui.statusLabel.text.startswith("Done."), panel.ui.logText.toPlainText()
    assert shown == sorted(shown)
    assert len(set(shown)) > 5
    assert panel.ui.resultFolds.text.startswith("0 %")
    assert "before" in panel.ui.resultDice.text
    transform = panel.parameters.outputs.transform
    points = np.array(list(np.ndindex(3, 3, 3))) * 8.0
    before = mapped(transform, points)
    volume = slicer.util.arrayFromVolume(panel.parameters.outputs.volume).copy()
    names = transforms()
    assert names == ["Hippocampus fixed -> Hippocampus moving", "Hippocampus moving -> Hippocampus fixed"]

    path = tmp_path / f"scene{suffix}"
    if suffix == ".mrml":
        save_data(tmp_path)
    assert slicer.util.saveScene(str(path), {})
    slicer.mrmlScene.Clear()
    assert panel.ui.fixedSelector.currentNode() is None
    slicer.util.loadNodeFromFile(str(path), "SceneFile", {"clear": True})
    bench.spin(0.05)

    assert panel.parameters.fixed.GetName() == "Hippocampus fixed"
    assert panel.ui.movingSelector.currentNode().GetName() == "Hippocampus moving"
    assert panel.parameters.flow.regularity == 1.5
    assert panel.parameters.model.effort == "fast"
    assert transforms() == names
    again = panel.parameters.outputs.transform
    assert np.abs(mapped(again, points) - before).max() < 1e-3
    assert again.GetNodeReference("spatialRegistrationMoving").GetName() == "Hippocampus moving"
    assert np.array_equal(slicer.util.arrayFromVolume(panel.parameters.outputs.volume), volume)
    (table,) = slicer.util.getNodesByClass("vtkMRMLTableNode")
    assert table.GetNumberOfRows() > 5
    apply(bench, widget)
    assert panel.ui.statusLabel.text.startswith("Done."), panel.ui.statusLabel.text
    assert qt.slotErrors == []


def test_regions_and_the_way_of_a_geodesic(bench, module):
    """A stiffness for each region of the moving volume, widths of kernels as typed, half of the way shown."""
    pair = load_pair(bench.core)
    widget = module.enter()
    panel, ui = widget.panel, widget.panel.ui
    ui.fixedSelector.setCurrentNode(pair.fixed)
    ui.movingSelector.setCurrentNode(pair.moving)
    ui.methodCombo.setCurrentIndex(ui.methodCombo.findData("rdmm-regions"))
    assert "needs regions" in ui.statusLabel.text
    assert not ui.applyButton.enabled
    ui.regionsNode.setCurrentNode(pair.moving_labels)
    assert ui.stiffnessTable.rowCount == 3
    ui.stiffnessTable.cellWidget(0, 1).setEditText("soft")
    ui.kernelWidthsEdit.setText("0.1, 0.15, 0.2, 0.4")
    ui.workingSpin.setValue(2.0)
    ui.wantRegulariser.setChecked(True)
    ui.stepsAuto.setChecked(False)
    ui.stepsSpin.setValue(6)
    panel.parameters.model.effort = "fast"
    panel.parameters.advanced.init = "mass"
    apply(bench, widget)
    assert ui.statusLabel.text.startswith("Done."), ui.logText.toPlainText()
    momentum = panel.parameters.velocity
    assert momentum.GetName() == "Momentum, Hippocampus moving -> Hippocampus fixed"
    names = [node.GetName() for node in slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")]
    assert {"Hippocampus moving regulariser t=0 (mm)", "Hippocampus fixed regulariser t=1 (mm)"} <= set(names)
    assert not ui.pathSlider.isHidden()
    points = np.array(list(np.ndindex(3, 3, 3))) * 8.0
    whole = mapped(panel.parameters.outputs.transform, points)
    ui.pathSlider.value = 50.0
    bench.wait(lambda: not panel.result._path.busy, PATIENCE, "the position half way")
    preview = pair.moving.GetParentTransformNode()
    assert preview.GetName().endswith("(preview)")
    half = mapped(preview, points)
    assert np.abs(half - (points + whole) / 2).max() < 0.5
    assert np.abs(half - whole).max() > 0.2
    ui.restoreButton.click()
    assert pair.moving.GetTransformNodeID() is None
    assert qt.slotErrors == []


def test_the_scene_is_closed_while_a_run_goes_on(bench, module):
    pair = load_pair(bench.core)
    widget = module.enter()
    panel = widget.panel
    panel.ui.fixedSelector.setCurrentNode(pair.fixed)
    panel.ui.movingSelector.setCurrentNode(pair.moving)
    panel.parameters.model.effort = "accurate"
    bench.click(panel.ui.applyButton)
    bench.wait(lambda: panel.ui.progressBar.value > 10, PATIENCE, "progress")
    slicer.mrmlScene.Clear()
    bench.wait(lambda: not panel.run.running, PATIENCE, "the end of the cancelled run")
    assert transforms() == []
    assert panel.ui.applyButton.text == "Apply"
    pair = load_pair(bench.core)
    panel.ui.fixedSelector.setCurrentNode(pair.fixed)
    panel.ui.movingSelector.setCurrentNode(pair.moving)
    panel.parameters.model.effort = "fast"
    apply(bench, widget)
    assert panel.ui.statusLabel.text.startswith("Done."), panel.ui.statusLabel.text
