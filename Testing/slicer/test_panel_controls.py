"""The panel on the bench: which controls are shown, and that parameters and controls follow each other."""

from __future__ import annotations

import json
from typing import Any

import pytest

from DiffeoRegPanel.request import Request
from Testing.slicer import panel_cases as cases

pytestmark = pytest.mark.usefixtures("bench")

OPTIONAL = {
    "pathologyGroup", "regionsGroup", "guidanceGroup", "stepsRow", "refinementSpin", "regularitySlider",
    "wantVelocity", "wantJacobian", "storageCombo", "windowSpin", "largeCombo", "modelWeights",
    "weightsButtons", "wantRegulariser", "kernelWidthsEdit", "kernelUnitsCombo", "kernelWeightsEdit",
    "integratorCombo",
}  # fmt: skip
DEFORMABLE = {
    "guidanceGroup", "regularitySlider", "wantJacobian", "storageCombo", "windowSpin", "largeCombo"
}  # fmt: skip
FLOW = DEFORMABLE | {"stepsRow", "refinementSpin", "wantVelocity"}
KERNELS = (FLOW - {"refinementSpin", "largeCombo"}) | {
    "kernelWidthsEdit", "kernelUnitsCombo", "kernelWeightsEdit"
}  # fmt: skip
SHOWN = {
    "affine": set(),
    "svf": FLOW,
    "pathological": FLOW | {"pathologyGroup"},
    "metamorphosis": FLOW | {"pathologyGroup"},
    "regional": (KERNELS - {"kernelWeightsEdit"}) | {"regionsGroup", "wantRegulariser", "integratorCombo"},
    "kernels": KERNELS,
    "vsvf": KERNELS,
    "lddmm": KERNELS | {"wantRegulariser", "integratorCombo"},
    "direct": (DEFORMABLE | {"modelWeights", "weightsButtons"}) - {"largeCombo"},
    "varying": FLOW - {"refinementSpin"},
    "shipped": (FLOW | {"modelWeights"}) - {"largeCombo"},
}


@pytest.fixture
def panel(bench: Any, monkeypatch: Any) -> Any:
    """A panel with all cards; nothing may have gone wrong in a slot."""
    import qt

    cases.add_cards(monkeypatch)
    made = cases.make_panel()
    yield made
    made.cleanup()
    assert [str(error) for error in qt.slotErrors] == []


def choose(combo: Any, value: str) -> None:
    """What a user does: pick the entry that stands for this value."""
    index = combo.findData(value)
    assert index >= 0, value
    combo.setCurrentIndex(index)


@pytest.mark.parametrize("method", sorted(SHOWN))
def test_a_method_shows_exactly_its_controls(panel: Any, method: str) -> None:
    choose(panel.ui.methodCombo, method)
    shown = {name for name in OPTIONAL if not getattr(panel.ui, name).isHidden()}
    assert shown == SHOWN[method]
    for name in OPTIONAL:
        label = getattr(panel.ui, f"{name}Label", None)
        assert label is None or label.isHidden() == (name not in shown), name


def test_hidden_controls_stay_hidden_when_their_section_is_opened(panel: Any) -> None:
    choose(panel.ui.methodCombo, "affine")
    for name in ("masksSection", "advancedSection"):
        getattr(panel.ui, name).collapsed = True
        getattr(panel.ui, name).collapsed = False
    assert panel.ui.pathologyGroup.isHidden()
    assert panel.ui.windowSpin.isHidden()


def test_methods_for_groups_are_not_offered(panel: Any) -> None:
    assert panel.ui.methodCombo.findData("group") == -1
    assert panel.ui.methodCombo.findData("svf") >= 0


def test_methods_that_need_weights_of_the_user_are_not_offered(panel: Any) -> None:
    assert panel.ui.methodCombo.findData("sitreg") == -1
    cases.choose_pair(panel)
    panel.parameters.model.method = "sitreg"  # as a scene may say
    assert "used from Python" in panel.ui.statusLabel.text
    assert not panel.ui.applyButton.enabled


def test_controls_change_the_parameters(panel: Any) -> None:
    ui, parameters = panel.ui, panel.parameters
    choose(ui.presetCombo, "lung-ct")
    choose(ui.similarityCombo, "nmi")
    ui.stepsAuto.setChecked(False)
    ui.stepsSpin.setValue(16)
    ui.regularitySlider.value = 2.5
    ui.wantJacobian.setChecked(True)
    assert parameters.model.preset == "lung-ct"
    assert parameters.advanced.similarity == "nmi"
    assert (parameters.flow.autoSteps, parameters.flow.steps, parameters.flow.regularity) == (False, 16, 2.5)
    assert parameters.outputs.wantJacobian is True
    assert ui.presetUse.text == "Breathing states or visits, chest CT."


def test_parameters_change_the_controls(panel: Any) -> None:
    ui, parameters = panel.ui, panel.parameters
    parameters.model.method = "direct"
    parameters.flow.autoSteps = False
    parameters.flow.refinement = 7
    parameters.outputs.storage = "full"
    parameters.advanced.init = "rigid"
    assert ui.methodCombo.itemData(ui.methodCombo.currentIndex) == "direct"
    assert ui.stepsSpin.enabled
    assert ui.refinementSpin.value == 7
    assert ui.storageCombo.itemData(ui.storageCombo.currentIndex) == "full"
    assert ui.initCombo.itemData(ui.initCombo.currentIndex) == "rigid"


def test_a_mask_is_one_segment_left_out(panel: Any) -> None:
    cases.choose_pair(panel)
    node = cases.add_segmentation("organs", ("liver", "implant"))
    ui = panel.ui
    assert ui.fixedMaskWhich.isHidden()
    ui.fixedMaskNode.setCurrentNode(node)
    choose(ui.fixedMaskSegment, "S2")
    ui.fixedMaskExclude.setChecked(True)
    mask = panel.request().fixed_mask
    assert (mask.node, mask.segment_id, mask.exclude) == (node, "S2", True)
    assert panel.request().moving_mask is None


def test_the_segments_listed_follow_the_segmentation(panel: Any) -> None:
    node = cases.add_segmentation("organs", ("liver",))
    panel.ui.fixedMaskNode.setCurrentNode(node)
    node.GetSegmentation().AddEmptySegment("S9", "spleen")
    assert panel.ui.fixedMaskSegment.findText("spleen") >= 0
    node.GetSegmentation().GetSegment("S9").SetName("kidney")
    assert panel.ui.fixedMaskSegment.findText("kidney") >= 0


def test_a_chosen_segment_that_is_gone_is_said_and_never_taken_for_all(panel: Any) -> None:
    cases.choose_pair(panel)
    node = cases.add_segmentation("organs", ("liver", "implant"))
    panel.ui.fixedMaskNode.setCurrentNode(node)
    choose(panel.ui.fixedMaskSegment, "S2")
    assert panel.problem() == ""
    node.GetSegmentation().RemoveSegment("S2")
    panel.parameters.flow.steps = 9
    assert "no longer in 'organs'" in panel.ui.statusLabel.text
    assert not panel.ui.applyButton.enabled
    assert panel.request().fixed_mask.segment_id == "S2"


def test_another_segmentation_begins_with_all_segments(panel: Any) -> None:
    first = cases.add_segmentation("organs", ("liver", "implant"))
    panel.ui.fixedMaskNode.setCurrentNode(first)
    choose(panel.ui.fixedMaskSegment, "S2")
    panel.ui.fixedMaskNode.setCurrentNode(cases.add_segmentation("other", ("bone",)))
    assert panel.parameters.fixedMask.segment == ""


def test_a_stiffness_for_every_region(panel: Any) -> None:
    cases.choose_pair(panel)
    choose(panel.ui.methodCombo, "regional")
    assert "needs regions" in panel.problem()
    node = cases.add_segmentation("tissue", ("bone", "muscle"))
    panel.ui.regionsNode.setCurrentNode(node)
    table = panel.ui.stiffnessTable
    names = [table.item(row, 0).text() for row in range(table.rowCount)]
    assert names == ["bone", "muscle", "Everything else"]
    table.cellWidget(0, 1).setEditText("rigid-like")
    table.cellWidget(1, 1).setEditText("0.1, 0.4, 0.5, 0")
    table.cellWidget(2, 1).setEditText("stiff")
    request = panel.request()
    assert request.stiffness == {"S1": "rigid-like", "S2": (0.1, 0.4, 0.5, 0.0)}
    assert (request.regions.node, request.rest) == (node, "stiff")


@pytest.mark.parametrize(
    ("row", "text", "words"),
    [
        (0, "hard", "bone: There is no stiffness 'hard'"),
        (0, "0.5", "bone: The stiffness (0.5,) holds the shares of 1 kernels, and there are 4"),
        (0, "0, 0, 0, 0", "bone: A stiffness is"),
        (1, "0.1, -0.4, 0.5, 0", "Everything else: A stiffness is"),
        (1, "", "Everything else: A stiffness is"),
    ],
)
def test_a_wrong_stiffness_is_said_and_not_kept(panel: Any, row: int, text: str, words: str) -> None:
    cases.choose_pair(panel)
    choose(panel.ui.methodCombo, "regional")
    panel.ui.regionsNode.setCurrentNode(cases.add_segmentation("tissue", ("bone",)))
    assert panel.problem() == ""
    panel.ui.stiffnessTable.cellWidget(row, 1).setEditText(text)
    assert panel.problem().startswith(words)
    assert panel.ui.statusLabel.text.startswith(words)
    assert not panel.ui.applyButton.enabled
    assert (panel.parameters.stiffness, panel.parameters.rest) == ("{}", "rigid-like")
    panel.ui.stiffnessTable.cellWidget(row, 1).setEditText("soft")
    assert panel.ui.applyButton.enabled


def test_shares_are_as_many_as_kernels(panel: Any) -> None:
    cases.choose_pair(panel)
    choose(panel.ui.methodCombo, "regional")
    panel.ui.regionsNode.setCurrentNode(cases.add_segmentation("tissue", ("bone",)))
    panel.ui.kernelWidthsEdit.setText("5, 10")
    assert "there are 2" in panel.problem()
    table = panel.ui.stiffnessTable
    table.cellWidget(0, 1).setEditText("1, 0")
    table.cellWidget(1, 1).setEditText("0, 1")
    choose(panel.ui.kernelUnitsCombo, "mm")
    request = panel.request()
    assert (request.settings.kernel_sigmas, request.settings.kernel_units) == ((5.0, 10.0), "mm")
    assert (request.stiffness, request.rest) == ({"S1": (1.0, 0.0)}, (0.0, 1.0))
    panel.ui.kernelWidthsEdit.setText("5, wide")
    assert "Kernel widths are numbers with commas between" in panel.problem()


def test_stiffness_of_a_segmentation_chosen_before_does_not_count(panel: Any) -> None:
    cases.choose_pair(panel)
    choose(panel.ui.methodCombo, "regional")
    panel.ui.regionsNode.setCurrentNode(cases.add_segmentation("tissue", ("bone", "muscle")))
    for row in (0, 1):
        panel.ui.stiffnessTable.cellWidget(row, 1).setEditText("soft")
    panel.ui.regionsNode.setCurrentNode(cases.add_segmentation("other", ("bone",)))
    assert panel.request().stiffness == {"S1": "soft"}


def test_stiffness_of_the_parameters_is_shown(panel: Any) -> None:
    choose(panel.ui.methodCombo, "regional")
    panel.parameters.regions.node = cases.add_segmentation("tissue", ("bone", "muscle"))
    panel.parameters.stiffness = json.dumps({"S1": "stiff"})
    panel.parameters.rest = "soft"
    table = panel.ui.stiffnessTable
    assert [table.cellWidget(row, 1).currentText for row in range(3)] == ["stiff", "normal", "soft"]


def test_ticked_nodes_are_carried(panel: Any) -> None:
    import qt
    import slicer

    cases.choose_pair(panel)
    organs, bones = cases.add_segmentation("organs", ("liver",)), cases.add_segmentation("bones", ("rib",))
    labels = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "labels")
    points = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "points")
    panel.ui.carrySegmentations.setCheckState(organs, qt.Qt.Checked)
    panel.ui.carrySegmentations.setCheckState(labels, qt.Qt.Checked)
    panel.ui.carryMarkups.setCheckState(points, qt.Qt.Checked)
    request = panel.request()
    assert (request.segmentations, request.markups, request.models) == ((organs, labels), (points,), ())
    panel.parameters.segmentations = [bones]
    assert [n.GetName() for n in panel.ui.carrySegmentations.checkedNodes()] == ["bones", "labels"]
    slicer.mrmlScene.RemoveNode(bones)
    assert panel.request().segmentations == (labels,)


def test_hidden_inputs_do_not_count(panel: Any) -> None:
    cases.choose_pair(panel)
    panel.parameters.pathology.moving.node = cases.add_segmentation("tumour", ("tumour",))
    panel.parameters.guidance.fixed.node = cases.add_segmentation("organs", ("liver",))
    panel.parameters.flow.refinement = 5
    choose(panel.ui.methodCombo, "affine")
    request = panel.request()
    assert not request.pathology
    assert not request.guidance
    assert not request.outputs.want_velocity
    assert request.settings.dense_iterations is None
    choose(panel.ui.methodCombo, "pathological")
    request = panel.request()
    assert request.pathology.moving is not None
    assert request.guidance
    assert request.settings.dense_iterations == 5


def test_an_untouched_panel_asks_for_the_defaults(panel: Any) -> None:
    from DiffeoRegLib.settings import Settings

    fixed, moving = cases.choose_pair(panel)
    request = panel.request()
    plain = Request(fixed, moving)
    assert request.settings == Settings()
    assert request.outputs == plain.outputs or vars(request.outputs) == vars(plain.outputs)


def test_all_settings_reach_the_request(panel: Any) -> None:
    cases.choose_pair(panel)
    ui = panel.ui
    for combo, value in (
        (ui.effortCombo, "fast"), (ui.initCombo, "mass"), (ui.largeCombo, "on"),
        (ui.interpolationCombo, "cubic"),
        (ui.similarityCombo, "mind"), (ui.deviceCombo, "cpu"), (ui.storageCombo, "full"),
    ):  # fmt: skip
        choose(combo, value)
    ui.workingSpin.setValue(1.5)
    ui.windowSpin.setValue(7.0)
    ui.guidanceWeightSpin.setValue(3.0)
    ui.paddingSpin.setValue(10.0)
    ui.memorySpin.setValue(4.0)
    ui.threadsSpin.setValue(2)
    ui.refinementSpin.setValue(0)
    request = panel.request()
    s = request.settings
    assert (s.effort, s.init, s.large_displacement, s.interpolation) == ("fast", "mass", True, "cubic")
    assert (s.similarity, s.device, s.threads, s.dense_iterations) == ("mind", "cpu", 2, 0)
    assert (s.working_spacing_mm, s.window_vox, s.guidance_weight) == (1.5, 7.0, 3.0)
    assert (s.padding_mm, s.memory_limit_gb, request.outputs.storage) == (10.0, 4.0, "full")


def test_kernels_and_integrator_reach_the_request_of_the_methods_that_have_them(panel: Any) -> None:
    cases.choose_pair(panel)
    ui = panel.ui
    choose(ui.methodCombo, "lddmm")
    s = panel.request().settings
    assert (s.kernel_sigmas, s.kernel_weights, s.kernel_units, s.integrator) == (None, None, "box", None)
    choose(ui.kernelUnitsCombo, "mm")
    assert panel.problem() == ""  # a unit alone says nothing
    ui.kernelWidthsEdit.setText("4, 8; 16")
    ui.kernelWeightsEdit.setText("1 2 3")
    choose(ui.integratorCombo, "dopri5")
    ui.refinementSpin.setValue(7)
    choose(ui.largeCombo, "on")
    ui.wantRegulariser.setChecked(True)
    request = panel.request()
    s = request.settings
    assert (s.kernel_sigmas, s.kernel_weights) == ((4.0, 8.0, 16.0), (1.0, 2.0, 3.0))
    assert (s.kernel_units, s.integrator) == ("mm", "dopri5")
    assert (s.dense_iterations, s.large_displacement) == (None, None)
    assert request.outputs.want_regulariser
    ui.kernelWeightsEdit.setText("1, 2")
    assert "3 kernels need as many weights" in panel.problem()
    choose(ui.methodCombo, "svf")
    request = panel.request()
    assert (request.settings.kernel_sigmas, request.settings.integrator) == (None, None)
    assert (request.settings.dense_iterations, request.settings.large_displacement) == (7, True)
    assert not request.outputs.want_regulariser


def test_every_control_explains_itself(panel: Any) -> None:
    import qt

    named = [w for w in vars(panel.ui).values() if isinstance(w, qt.QWidget) and w is not panel.top]
    containers = ("Row", "Which", "Buttons", "Section")
    bare = [w.name for w in named if not w.toolTip and not w.name.startswith("qt_") and w.name]
    assert len(named) > 100
    assert [name for name in bare if not name.endswith(containers)] == []
