"""The group mode of the panel: what is shown, what is asked for, what a result and a cancelled run leave."""

from __future__ import annotations

import numpy as np
import pytest
import slicer

from DiffeoRegLib.catalog import CARDS
from DiffeoRegLib.errors import Cancelled
from DiffeoRegLib.exchange import Image
from DiffeoRegPanel.group import GroupRequest, check_group, group_nodes
from Testing.slicer import panel_cases as cases
from Testing.slicer.test_nodes_frames import sequence_of

REPORT = {
    "folds": [
        {"folded_percent": 0.0, "minimum_determinant": low, "maximum_determinant": 1.2}
        for low in (0.8, 0.5, 0.9)
    ],
    "similarity": {"before": {"nmi": 1.1, "rmse": 25.0}, "after": {"nmi": 1.25, "rmse": 10.0}, "voxels": 99},
    "inverse_consistency_mm": {"mean": 0.01, "max": 0.2},
    "deviation_mm": [{"mean": mean, "p95": 2.0, "max": 3.0 + mean} for mean in (1.0, 2.0, 1.5)],
    "device": {"device": "cpu", "name": "a test"},
}


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
        "mean": aligned[0], "uncertainty": aligned if request.want_uncertainty else None,
        "kept": list(range(len(images))), "report": REPORT | {"fixed": None},
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
    assert not any(map(hidden, (ui.flowSection, ui.stepsRow, ui.regularitySlider, ui.copyPythonButton)))
    assert all(map(hidden, (ui.groupFrameSpin, ui.guidanceWeightSpin, ui.paddingSpin, ui.pathSlider)))
    assert all(map(hidden, (ui.blendButton, ui.gridButton, ui.uncertaintyButton, ui.groupPlayButton)))
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
    assert panel.ui.estimateText.text.startswith("2 images: about")
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
    mask = cases.add_segmentation("mask", ("liver", "ribs"))
    group.ui.groupMaskNode.setCurrentNode(mask)
    choose(group.ui.groupMaskSegment, "S2")
    group.ui.groupMaskExclude.setChecked(True)
    group.ui.groupLeaveOut.setChecked(True)
    p.flow.autoSteps, p.flow.steps, p.flow.regularity = False, 16, 2.0
    bench.click(group.ui.applyButton)
    request = group.logic.runs[-1].request
    assert request.images is sequence
    assert (request.masks.node, request.masks.segment_id, request.masks.exclude) == (mask, "S2", True)
    assert request.leave_out
    assert (request.settings.steps, request.settings.regularity) == (16, 2.0)
    assert (request.fixed, request.carried, request.marked) == (2, (points,), 1)
    assert (request.want_uncertainty, request.settings.effort) == (False, "fast")


def test_a_result_is_shown_and_plays(bench, group):
    ui = group.ui
    assert hidden(ui.groupPlayButton)
    bench.click(ui.applyButton)
    found = finish(group)
    assert ui.statusLabel.text == f"Done: 3 frames. {found.selfCheck.sentence}"
    assert found.selfCheck.sentence.startswith("The 3 transforms move the images exactly")
    assert not ui.resultSection.collapsed
    assert ui.resultFolds.text == "0 %, volume change 0.50 to 1.20"
    assert ui.resultSimilarity.text == (
        "mutual information 1.100 before, 1.250 registered; difference 25 before, 10 registered"
    )
    assert ui.resultUncertainty.text == "1.5 mm on average, at most 5 mm"
    assert ui.resultCheck.text == found.selfCheck.sentence
    assert all(map(hidden, (ui.resultDice, ui.resultPathology, ui.blendButton, ui.pathSlider)))
    assert group.parameters.group.browser is found.browser
    bench.click(ui.groupPlayButton)
    assert found.browser.GetPlaybackActive()
    group.exit()
    assert not found.browser.GetPlaybackActive()


def test_uncertainty_and_mean_lie_over_the_aligned_frame(bench, group):
    bench.click(group.ui.applyButton)
    found = finish(group)
    aligned, spread = (found.browser.GetProxyNode(s) for s in (found.aligned, found.uncertainty))
    for button, over in ((group.ui.uncertaintyButton, spread), (group.ui.meanButton, found.mean)):
        bench.click(button)
        view = slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")[0]
        assert view.GetBackgroundVolumeID() == aligned.GetID()
        assert view.GetForegroundVolumeID() == over.GetID()
    bench.click(group.ui.meanButton)
    assert view.GetForegroundVolumeID() is None


def test_a_result_without_uncertainty_has_no_button_for_it(bench, group):
    group.ui.groupUncertainty.setChecked(False)
    bench.click(group.ui.applyButton)
    assert finish(group).uncertainty is None
    assert hidden(group.ui.uncertaintyButton)
    assert not any(map(hidden, (group.ui.meanButton, group.ui.groupPlayButton)))


def test_each_mode_shows_its_own_result(bench, group):
    bench.click(group.ui.applyButton)
    finish(group)
    choose(group.ui.modeCombo, "pair")
    assert hidden(group.ui.resultFolds)
    assert hidden(group.ui.groupPlayButton)
    choose(group.ui.modeCombo, "group")
    assert group.ui.resultFolds.text.startswith("0 %")


def test_a_removed_result_leaves_nothing_to_play(bench, group):
    bench.click(group.ui.applyButton)
    found = finish(group)
    slicer.mrmlScene.RemoveNode(found.browser)
    group.result.update()
    group.group.update()
    assert all(map(hidden, (group.ui.groupPlayButton, group.ui.uncertaintyButton, group.ui.meanButton)))


def test_a_trained_model_of_groups_is_offered(bench, monkeypatch):
    card = cases.card_with("breath", needs_group=True, weights=(cases.WEIGHT,), uncertainty=True)
    monkeypatch.setitem(CARDS, "breath", card)
    panel = cases.make_panel()
    choose(panel.ui.modeCombo, "group")
    assert not hidden(panel.ui.groupMethodCombo)
    choose(panel.ui.groupMethodCombo, "breath")
    panel.parameters.groupVolumes = [cases.add_volume("one"), cases.add_volume("two")]
    assert panel.model.card is card
    assert panel.ui.methodUse.text == card.use
    assert panel.group.request().settings.method == "breath"
    panel.cleanup()


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
