"""The pathology part of the panel on the bench: classes to tick, sentences beside them, the result."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from Testing.slicer import panel_cases as cases

pytestmark = pytest.mark.usefixtures("bench")
SHAPE = (8, 10, 12)


@pytest.fixture
def panel(bench: Any, monkeypatch: Any) -> Any:
    """A panel with a pair and a method that takes marks; nothing may have gone wrong in a slot."""
    import qt

    cases.add_cards(monkeypatch)
    made = cases.make_panel()
    cases.choose_pair(made)
    made.parameters.model.method = "pathological"
    yield made
    made.cleanup()
    assert [str(error) for error in qt.slotErrors] == []


def label_map(name: str = "tumour", values: tuple[int, ...] = (1, 2, 4)) -> Any:
    """Slices of labels on the voxels of the pair."""
    import slicer

    array = np.zeros(SHAPE, np.uint8)
    for slice_number, value in enumerate(values):
        array[slice_number, 2:6, 2:6] = value
    return slicer.util.addVolumeFromArray(array, name=name, nodeClassName="vtkMRMLLabelMapVolumeNode")


def ticks(widget: Any) -> dict[str, bool]:
    import qt

    items = [widget.item(row) for row in range(widget.count)]
    return {item.text(): item.checkState() == qt.Qt.Checked for item in items}


def tick(widget: Any, row: int, on: bool) -> None:
    """What a click into the box of a row does."""
    import qt

    widget.item(row).setCheckState(qt.Qt.Checked if on else qt.Qt.Unchecked)


def test_without_marks_the_panel_warns_and_the_run_may_start(panel: Any) -> None:
    ui = panel.ui
    assert panel.problem() == ""
    assert ui.applyButton.enabled
    assert not ui.pathologyState.isHidden()
    assert "both volumes are taken for healthy" in ui.pathologyState.text
    assert ui.pathologyFixedClasses.isHidden()
    assert not panel.request().pathology
    ui.pathologyMovingNode.setCurrentNode(label_map())
    assert ui.pathologyState.isHidden()
    assert panel.request().pathology.moving.node.GetName() == "tumour"
    panel.parameters.model.method = "svf"
    assert ui.pathologyGroup.isHidden()
    assert not panel.request().pathology


def test_labels_are_ticked_by_name_and_all_of_them_at_first(panel: Any) -> None:
    ui, node = panel.ui, label_map()
    ui.pathologyFixedNode.setCurrentNode(node)
    assert list(ticks(ui.pathologyFixedClasses).values()) == [True, True, True]
    assert [text.partition(":")[0] for text in ticks(ui.pathologyFixedClasses)] == ["1", "2", "4"]
    assert panel.request().pathology.fixed.classes == ()
    tick(ui.pathologyFixedClasses, 1, False)
    assert panel.request().pathology.fixed.classes == ("1", "4")
    tick(ui.pathologyFixedClasses, 0, False)
    tick(ui.pathologyFixedClasses, 2, False)
    assert ui.pathologyFixedState.text == "Tick at least one class of 'tumour'."
    assert not ui.applyButton.enabled
    assert not ui.copyPythonButton.enabled
    tick(ui.pathologyFixedClasses, 2, True)
    assert panel.request().pathology.fixed.classes == ("4",)
    assert ui.applyButton.enabled
    ui.pathologyFixedNode.setCurrentNode(label_map("other", (4, 5)))
    assert panel.request().pathology.fixed.classes == ("4",)  # it has this one, too
    ui.pathologyFixedNode.setCurrentNode(label_map("new", (6, 7)))
    assert panel.request().pathology.fixed.classes == ()
    assert all(ticks(ui.pathologyFixedClasses).values())
    ui.pathologyFixedNode.setCurrentNode(label_map("single", (6,)))
    assert ui.pathologyFixedClasses.isHidden()


def test_segments_are_ticked_too_and_follow_their_names(panel: Any) -> None:
    ui = panel.ui
    node = cases.add_segmentation("lesions", ("core", "oedema"))
    ui.pathologyMovingNode.setCurrentNode(node)
    assert ticks(ui.pathologyMovingClasses) == {"core": True, "oedema": True}
    tick(ui.pathologyMovingClasses, 1, False)
    assert panel.request().pathology.moving.classes == ("S1",)
    node.GetSegmentation().GetSegment("S2").SetName("swelling")
    node.GetSegmentation().AddEmptySegment("S3", "cavity")
    assert ticks(ui.pathologyMovingClasses) == {"core": True, "swelling": False, "cavity": False}
    assert "marks nothing" in ui.pathologyMovingState.text  # nothing is painted
    assert panel.problem() == ""
    node.GetSegmentation().RemoveSegment("S1")
    assert "no segment 'S1' any more" in ui.pathologyMovingState.text
    assert not ui.applyButton.enabled
    tick(ui.pathologyMovingClasses, 0, True)
    assert panel.request().pathology.moving.classes == ("S2",)
    assert ui.applyButton.enabled


@pytest.mark.parametrize("side", ["Fixed", "Moving"])
def test_marks_that_cannot_be_used_are_said_beside_them_before_the_run(panel: Any, side: str) -> None:
    import slicer

    ui = panel.ui
    node, state = label_map(), getattr(ui, f"pathology{side}State")
    getattr(ui, f"pathology{side}Node").setCurrentNode(node)
    assert state.isHidden()
    for change, words in (
        (lambda: slicer.util.updateVolumeFromArray(node, np.ones(SHAPE, np.uint8)), "covers all of"),
        (lambda: node.SetOrigin(500, 0, 0), "does not touch"),
    ):
        change()
        panel.enter()  # as when the user comes back from the module in which it was changed
        assert words in state.text
        assert not state.isHidden()
        assert words in ui.statusLabel.text
        assert not ui.applyButton.enabled
    panel.parameters.model.method = "svf"
    assert ui.applyButton.enabled


def test_a_similarity_that_compares_no_intensities_is_said_before_the_run(panel: Any) -> None:
    from DiffeoRegLib.methods import metamorphosis
    from DiffeoRegPanel.checks_regions import COMPARABLE

    assert COMPARABLE == metamorphosis.COMPARABLE
    panel.parameters.model.preset = "multimodal"
    assert panel.problem() == ""  # without marks there is no change to search for
    panel.ui.pathologyFixedNode.setCurrentNode(label_map())
    assert "'mind' does not compare" in panel.ui.statusLabel.text
    assert not panel.ui.applyButton.enabled
    panel.parameters.advanced.similarity = "lncc"
    assert panel.problem() == ""
    panel.parameters.advanced.similarity = "nmi"
    assert "'nmi' does not compare" in panel.problem()


def test_the_edge_and_both_sides_reach_the_request(panel: Any) -> None:
    ui = panel.ui
    assert panel.request().pathology.edge_mm == 4.0
    ui.pathologyEdgeSpin.setValue(1.5)
    ui.pathologyFixedNode.setCurrentNode(label_map("left"))
    ui.pathologyMovingNode.setCurrentNode(label_map("right"))
    marks = panel.request().pathology
    assert (marks.fixed.node.GetName(), marks.moving.node.GetName(), marks.edge_mm) == ("left", "right", 1.5)


def test_a_saved_scene_brings_the_marks_back(panel: Any, tmp_path: Any) -> None:
    import slicer

    ui = panel.ui
    ui.pathologyMovingNode.setCurrentNode(label_map())
    tick(ui.pathologyMovingClasses, 1, False)
    ui.pathologyEdgeSpin.setValue(2.5)
    file = str(tmp_path / "scene.mrb")
    assert slicer.mrmlScene.WriteToMRB(file)
    slicer.mrmlScene.Clear()
    assert panel.parameters.pathology.edge == 4.0
    assert slicer.mrmlScene.ReadFromMRB(file)
    panel.enter()
    marks = panel.request().pathology
    assert (marks.moving.node.GetName(), marks.moving.classes, marks.edge_mm) == ("tumour", ("1", "4"), 2.5)
    assert list(ticks(ui.pathologyMovingClasses).values()) == [True, False, True]
    assert ui.pathologyEdgeSpin.value == 2.5


def test_unreadable_classes_of_an_edited_scene_are_none(panel: Any) -> None:
    panel.parameters.pathology.fixed.node = label_map()
    for text in ("1,2", '{"a": 1}'):
        panel.parameters.pathology.fixed.classes = text
        assert panel.request().pathology.fixed.classes == ()
        assert "Tick at least one class" in panel.problem()


def finished(panel: Any, **nodes: Any) -> Any:
    """A run that has succeeded, and left these nodes besides the usual ones."""
    panel.ui.applyButton.click()
    run = panel.logic.runs[-1]
    run.result = cases.result_nodes(run.request.fixed, run.request.moving)
    vars(run.result).update(nodes)
    run.result.report = cases.REPORT | {
        "pathology": {
            "fixed_mm3": 2345.0, "moving_mm3": None, "change": {"mean": 41.0, "min": -3.0, "max": 120.0}
        }
    }  # fmt: skip
    run.events = [cases.event("result", result={})]
    panel.run.poll()
    return run.result


def test_what_a_lesion_changes_is_shown_and_comes_back_with_the_scene(panel: Any, tmp_path: Any) -> None:
    import slicer

    view = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSliceCompositeNode", "Red layers")
    ui = panel.ui
    buttons = (ui.changeButton, ui.metamorphicButton, ui.healthyButton)
    assert all(button.isHidden() for button in buttons)
    names = ("appearanceChange", "metamorphicVolume", "healthyVolume")
    nodes = {name: cases.add_volume(name, seed) for seed, name in enumerate(names, 10)}
    result = finished(panel, **nodes)
    assert not any(button.isHidden() for button in buttons)
    assert ui.resultPathology.text == "2.35 ml marked, change +41 on average (-3 to 120)"
    fixed, moved = panel.parameters.fixed.GetID(), result.movedVolume.GetID()
    for button, background, foreground, opacity in zip(
        buttons, (moved, fixed, fixed), nodes.values(), (0.6, 0.5, 1.0), strict=True
    ):
        button.click()
        assert button.checked
        assert view.GetBackgroundVolumeID() == background
        assert view.GetForegroundVolumeID() == foreground.GetID()
        assert view.GetForegroundOpacity() == opacity
    ui.healthyButton.click()
    assert view.GetForegroundVolumeID() is None
    file = str(tmp_path / "scene.mrb")
    assert slicer.mrmlScene.WriteToMRB(file)
    slicer.mrmlScene.Clear()
    assert all(button.isHidden() for button in buttons)
    assert slicer.mrmlScene.ReadFromMRB(file)
    panel.enter()
    assert not any(button.isHidden() for button in buttons)
    assert ui.resultPathology.text.startswith("2.35 ml marked")
    assert panel.parameters.healthy.GetName() == "healthyVolume"


def test_a_plain_result_takes_the_views_of_a_lesion_away(panel: Any) -> None:
    finished(panel, appearanceChange=cases.add_volume("change", 11))
    assert not panel.ui.changeButton.isHidden()
    assert panel.ui.healthyButton.isHidden()
    finished(panel)
    assert panel.ui.changeButton.isHidden()


@pytest.mark.parametrize(("found", "words"), [
    ({"fixed_mm3": 100.0, "moving_mm3": 2000.0, "change": None}, "0.1 ml marked and 2 ml marked"),
    ({"fixed_mm3": None, "moving_mm3": None, "change": None}, ""),
    (None, ""),
])  # fmt: skip
def test_the_numbers_of_a_pathology_are_those_there_are(found: Any, words: str) -> None:
    from DiffeoRegPanel.panel_numbers import sentences

    assert sentences({"pathology": found})[-2] == words
