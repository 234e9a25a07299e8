"""The group mode of the panel: what is shown, what is asked for, what a result and a cancelled run leave."""

from __future__ import annotations

import numpy as np
import pytest
import slicer

from DiffeoRegLib.errors import Cancelled
from DiffeoRegLib.exchange import Image
from DiffeoRegPanel.group import GroupRequest, check_group, group_nodes
from Testing.slicer import panel_cases as cases
from Testing.slicer.test_nodes_frames import sequence_of


@pytest.fixture
def panel(bench):
    made = cases.make_panel()
    yield made
    made.cleanup()


def choose(combo, value):
    combo.setCurrentIndex(combo.findData(value))


@pytest.fixture
def group(panel):
    """The panel in its group mode, three volumes ticked."""
    choose(panel.ui.modeCombo, "group")
    panel.parameters.groupVolumes = [cases.add_volume(f"phase {n}", n) for n in range(3)]
    return panel


def hidden(widget):
    return widget.isHidden()


def answer(request):
    """What the worker says when nothing moves."""
    images = check_group(request).images
    matrix = [{"matrix": np.eye(4).tolist()}]
    aligned = [Image(np.array(i.array), i.world_from_voxel, i.name) for i in images]
    return {
        "transforms": [matrix] * len(images), "inverses": [matrix] * len(images), "aligned": aligned,
        "mean": aligned[0], "uncertainty": aligned, "report": {"fixed": None},
    }  # fmt: skip


def finish(panel):
    run = panel.logic.runs[-1]
    frames = check_group(run.request)
    run.result = group_nodes(slicer.mrmlScene, run.request, frames, answer(run.request))
    panel.run.poll()
    return run.result


def test_the_mode_decides_what_is_shown(panel):
    ui = panel.ui
    groups = [ui.groupSeries, ui.groupVolumes, ui.groupTargetCombo, ui.groupUncertainty, ui.groupSeriesLabel]
    pairs = [ui.fixedSelector, ui.movingSelectorLabel, ui.masksSection, ui.outputsSection, ui.methodCombo]
    for mode, shown, not_shown in (
        ("group", groups, pairs),
        ("pair", pairs, groups),
        ("group", groups, pairs),
    ):
        choose(ui.modeCombo, mode)
        assert panel.parameters.mode == mode
        assert not any(hidden(widget) for widget in shown)
        assert all(hidden(widget) for widget in not_shown)
    assert hidden(ui.flowSection)
    assert hidden(ui.groupFrameSpin)
    choose(ui.groupTargetCombo, "frame")
    assert not hidden(ui.groupFrameSpin)


def test_what_is_missing_is_said(panel):
    choose(panel.ui.modeCombo, "group")
    assert panel.problem() == "Choose a sequence, or two volumes or more."
    assert not panel.ui.applyButton.enabled
    panel.parameters.groupVolumes = [cases.add_volume("one")]
    assert "a group needs at least 2" in panel.problem()
    panel.parameters.groupVolumes = [cases.add_volume("one"), cases.add_volume("two")]
    assert panel.problem() == ""
    assert panel.ui.applyButton.enabled
    assert "2 images; about" in panel.ui.estimateText.text
    panel.parameters.group.target = "frame"
    panel.ui.groupFrameSpin.setValue(2)
    assert "frame to register to is number 2" in panel.problem()
    panel.ui.groupFrameSpin.setValue(1)
    panel.parameters.advanced.similarity = "mind"
    assert "not compared by 'mind'" in panel.problem()


def test_apply_asks_for_what_is_chosen(bench, group):
    p, points = group.parameters, slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "tips")
    bench.click(group.ui.applyButton)
    request = group.logic.runs[-1].request
    assert isinstance(request, GroupRequest)
    assert [node.GetName() for node in request.images] == ["phase 0", "phase 1", "phase 2"]
    assert (request.fixed, request.carried, request.want_uncertainty) == (None, (), True)
    assert request.settings.method == "svf"
    finish(group)
    sequence = sequence_of(slicer.mrmlScene, p.groupVolumes)
    group.ui.groupSeries.setCurrentNode(sequence)
    assert hidden(group.ui.groupVolumes)
    choose(group.ui.groupTargetCombo, "frame")
    group.ui.groupFrameSpin.setValue(2)
    p.groupMarkups = [points]
    assert not hidden(group.ui.groupMarkedSpin)
    group.ui.groupMarkedSpin.setValue(1)
    group.ui.groupUncertainty.setChecked(False)
    choose(group.ui.effortCombo, "fast")
    bench.click(group.ui.applyButton)
    request = group.logic.runs[-1].request
    assert request.images is sequence
    assert (request.fixed, request.carried, request.marked) == (2, (points,), 1)
    assert (request.want_uncertainty, request.settings.effort) == (False, "fast")


def test_a_result_is_shown_and_plays(bench, group):
    assert hidden(group.ui.groupPlayButton)
    bench.click(group.ui.applyButton)
    found = finish(group)
    assert group.ui.statusLabel.text == "Done: 3 frames."
    assert group.parameters.group.browser is found.browser
    bench.click(group.ui.groupPlayButton)
    assert found.browser.GetPlaybackActive()
    group.exit()
    assert not found.browser.GetPlaybackActive()


def test_a_cancelled_run_leaves_the_scene_as_it_was(bench, group):
    before = slicer.mrmlScene.GetNumberOfNodes()
    bench.click(group.ui.applyButton)
    bench.click(group.ui.applyButton)
    run = group.logic.runs[-1]
    assert run.cancelled
    run.error = Cancelled("Cancelled; the scene is as it was.")
    group.run.poll()
    assert group.ui.statusLabel.text == "Cancelled; the scene is as it was."
    assert slicer.mrmlScene.GetNumberOfNodes() == before
    assert group.parameters.group.browser is None


def test_another_panel_shows_the_same(bench, group):
    """What a reload of the module does."""
    choose(group.ui.groupTargetCombo, "frame")
    group.ui.groupFrameSpin.setValue(1)
    other = cases.make_panel()
    assert other.ui.modeCombo.itemData(other.ui.modeCombo.currentIndex) == "group"
    assert [node.GetName() for node in other.ui.groupVolumes.checkedNodes()] == [
        "phase 0", "phase 1", "phase 2",
    ]  # fmt: skip
    assert other.ui.groupFrameSpin.value == 1
    assert other.group.request().fixed == 1
    other.cleanup()
