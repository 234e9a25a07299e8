"""The panel over a long day: another pair, reloads, saved scenes, a slider during a run, vanished nodes."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import slicer
import slicer.util

from DiffeoRegLib.errors import InputError, OutputError
from DiffeoRegPanel import folders
from DiffeoRegPanel.console import region_of
from DiffeoRegPanel.nodes import transforms, volumes
from DiffeoRegPanel.path import Path as FlowPath
from DiffeoRegPanel.runner import Runner
from Testing.slicer import panel_cases as cases
from Testing.worker_jobs import gone

pytestmark = pytest.mark.usefixtures("bench")
SLEEPER = [sys.executable, "-c", "import sys; sys.stdin.read()"]


@pytest.fixture
def panel():
    made = cases.make_panel()
    yield made
    made.cleanup()


def finish(panel):
    """Press Apply; the run succeeds."""
    panel.ui.applyButton.click()
    run = panel.logic.runs[-1]
    run.result = cases.result_nodes(run.request.fixed, run.request.moving)
    for node, fixed, moving in (
        (run.result.outputTransform, run.request.fixed, run.request.moving),
        (run.result.inverseTransform, run.request.moving, run.request.fixed),
    ):
        node.SetNodeReferenceID(volumes.FIXED, fixed.GetID())
        node.SetNodeReferenceID(volumes.MOVING, moving.GetID())
    run.events = [cases.event("result", result={})]
    panel.run.poll()
    return run.result


# --- outputs and pairs --------------------------------------------------------------------------------------


def test_another_pair_does_not_overwrite_the_last_result(panel):
    cases.choose_pair(panel)
    result = finish(panel)
    panel.ui.movingSelector.setCurrentNode(cases.add_volume("PET", 7))
    outputs = panel.request().outputs
    assert (outputs.transform, outputs.inverse, outputs.volume) == (None, None, None)
    assert panel.ui.transformSelector.currentNode() is None
    assert panel.ui.gridButton.enabled
    panel.ui.gridButton.click()
    assert result.outputTransform.GetDisplayNode().GetVisibility2D()
    panel.ui.transformSelector.setCurrentNode(result.outputTransform)
    assert panel.request().outputs.transform is result.outputTransform


def test_outputs_that_the_user_chose_stay_with_another_pair(panel):
    cases.choose_pair(panel)
    finish(panel)
    mine = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTransformNode", "mine")
    panel.ui.transformSelector.setCurrentNode(mine)
    panel.ui.movingSelector.setCurrentNode(cases.add_volume("PET", 7))
    assert panel.request().outputs.transform is mine


def test_a_volume_that_was_deselected_for_a_moment_keeps_the_outputs(panel):
    _, moving = cases.choose_pair(panel)
    result = finish(panel)
    panel.ui.movingSelector.setCurrentNode(None)
    panel.ui.movingSelector.setCurrentNode(moving)
    assert panel.request().outputs.transform is result.outputTransform


def test_a_refusal_is_said_until_something_is_changed(panel):
    cases.choose_pair(panel)
    panel.logic.refuse = InputError("'MR' has no voxels: load it again.")
    panel.ui.applyButton.click()
    assert panel.ui.statusLabel.text == "'MR' has no voxels: load it again."
    panel.ui.movingSelector.setCurrentNode(cases.add_volume("PET", 7))
    assert panel.ui.statusLabel.text == "Ready."


# --- the slider ---------------------------------------------------------------------------------------------


def test_the_slider_stays_off_during_a_run(panel):
    cases.choose_pair(panel)
    finish(panel)
    panel.ui.applyButton.click()
    assert not panel.ui.pathSlider.enabled
    panel.parameters.flow.steps = 16  # from the Python console
    panel.exit()
    panel.enter()
    assert not panel.ui.pathSlider.enabled


def test_the_preview_ends_before_the_scene_is_saved(panel):
    """The preview node is not saved: the moving volume would come back without its parent transform."""
    cases.choose_pair(panel)
    finish(panel)
    panel.ui.pathSlider.value = 40.0
    slicer.mrmlScene.StartState(slicer.vtkMRMLScene.SaveState)
    assert panel.logic.paths[-1].closed
    slicer.mrmlScene.EndState(slicer.vtkMRMLScene.SaveState)
    assert panel.ui.pathSlider.value == 100.0


def test_flicker_ends_with_the_module_and_its_button_comes_up(panel):
    cases.choose_pair(panel)
    finish(panel)
    panel.ui.flickerButton.click()
    assert panel.result.flicker.running
    panel.exit()
    assert not panel.result.flicker.running
    assert not panel.ui.flickerButton.checked


class Answers:
    """Stands for the runner: every position is a shift along x, there at once."""

    def start(self, job):
        matrix = np.eye(4)
        matrix[0, 3] = job["fraction"]
        result = {"transform": [{"matrix": matrix}]}
        self.run = cases.FakeRegistration(None)
        self.run.events, self.run.result = [cases.event("result", result=result)], result
        return self.run


@pytest.fixture
def way():
    """A path, its moving volume under a parent transform."""
    fixed, moving = cases.add_volume("CT", 1), cases.add_volume("MR", 2)
    parent = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "parent")
    moving.SetAndObserveTransformNodeID(parent.GetID())
    field = volumes.Image(np.ones((4, 4, 4, 3), np.float32), np.eye(4))
    node = volumes.velocity_node(slicer.mrmlScene, field, 8, [np.eye(4)], "velocity", fixed, moving)
    path = FlowPath(node, Answers())
    path.set(0.5)
    path.poll()
    assert moving.GetTransformNodeID() == path.node.GetID()
    return path, moving, parent


def test_closing_the_preview_puts_the_volume_back(way):
    path, moving, parent = way
    path.close()
    assert moving.GetTransformNodeID() == parent.GetID()


def test_closing_the_preview_when_the_parent_is_gone(way):
    path, moving, parent = way
    slicer.mrmlScene.RemoveNode(parent)
    path.close()
    assert moving.GetTransformNodeID() is None


def test_the_preview_node_was_deleted(way):
    path, moving, _ = way
    slicer.mrmlScene.RemoveNode(path.node)
    path.set(0.75)
    path.poll()
    assert slicer.mrmlScene.IsNodePresent(path.node)
    assert moving.GetParentTransformNode() is path.node


def test_the_moving_volume_was_deleted(way):
    path, moving, _ = way
    path.set(0.75)
    slicer.mrmlScene.RemoveNode(moving)
    with pytest.raises(InputError, match=r"'MR' was removed from the scene.*register again"):
        path.poll()
    path.close()
    assert "preview" not in "".join(node.GetName() for node in slicer.util.getNodesByClass("vtkMRMLNode"))


def test_the_velocity_remembers_where_the_volume_was_when_the_run_began(scene):
    fixed, moving = cases.add_volume("CT", 1), cases.add_volume("MR", 2)
    began = np.diag([2.0, 2.0, 2.0, 1.0])
    field = volumes.Image(np.ones((4, 4, 4, 3), np.float32), np.eye(4))
    node = volumes.velocity_node(scene, field, 8, [np.eye(4)], "velocity", fixed, moving, parent=began)
    np.testing.assert_allclose(transforms.parent_of(node), began)


def ours(folder):
    """Names of exchange folders."""
    return [path.name for path in folder.iterdir() if path.name.startswith(folders.PREFIX)]


# --- reload and close ---------------------------------------------------------------------------------------


@pytest.fixture
def module(bench):
    loaded = bench.load()
    loaded.enter()
    return loaded


def test_a_reloaded_module_follows_the_scene(bench, module):
    old = module.widget.panel
    module.widget.onReload()
    panel = module.widget.panel
    assert panel is not old
    slicer.mrmlScene.Clear()
    assert panel.parameters is not None
    assert old.parameters is None
    cases.choose_pair(panel)
    assert panel.ui.applyButton.enabled


@pytest.mark.parametrize("end", ["onReload", "close"])
def test_a_run_ends_with_its_panel(bench, module, tmp_path, end):
    runner = module.widget.logic._runner = Runner(SLEEPER, temporary=tmp_path)
    cases.choose_pair(module.widget.panel)
    bench.click(module.widget.panel.ui.applyButton)
    child = runner.pid
    assert not gone(child)
    (module.widget.onReload if end == "onReload" else module.close)()
    assert gone(child)
    assert ours(tmp_path) == []
    bench.spin(0.1)


def test_pressed_twice_is_cancelled_and_nothing_is_left(bench, module, tmp_path):
    runner = module.widget.logic._runner = Runner(SLEEPER, temporary=tmp_path)
    panel = module.widget.panel
    cases.choose_pair(panel)
    for _ in range(3):
        panel.ui.applyButton.click()  # the third meets a disabled button
    bench.wait(lambda: not panel.run.running)
    assert panel.ui.statusLabel.text == "Cancelled; the scene is as it was."
    assert runner.state != "busy"
    assert ours(tmp_path) == []


# --- folders and calls --------------------------------------------------------------------------------------


def test_a_folder_that_cannot_be_marked_is_taken_back(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "MARK", "no such folder/mark")
    with pytest.raises(OutputError, match="No temporary folder can be made"):
        folders.new_folder(tmp_path)
    assert ours(tmp_path) == []


@pytest.mark.parametrize("given", ["liver", ("a", "b", "c"), ()])
def test_a_region_that_is_no_node_is_refused(given):
    with pytest.raises(InputError, match="segmentation or label map"):
        region_of(given)


def test_a_temporary_folder_that_is_not_there_is_refused(module, tmp_path):
    """It would silently be the system's own, which may be the full one."""
    ui = module.widget.panel.ui
    usual = ui.temporaryEdit.text
    ui.temporaryEdit.setText(str(tmp_path / "nowhere"))
    ui.temporaryEdit.editingFinished.emit()
    assert "make it first" in ui.statusLabel.text
    assert ui.temporaryEdit.text == usual
