"""The panel on the bench: Apply and Cancel, errors as sentences, results, setup, scenes closed and loaded."""

from __future__ import annotations

from typing import Any

import pytest

from DiffeoRegLib.errors import Cancelled, InputError, MemoryLimitError
from Testing.slicer import panel_cases as cases

pytestmark = pytest.mark.usefixtures("bench")


@pytest.fixture
def panel(bench: Any, monkeypatch: Any) -> Any:
    """A panel; nothing may have gone wrong in a slot."""
    import qt

    cases.add_cards(monkeypatch)
    made = cases.make_panel()
    yield made
    made.cleanup()
    assert [str(error) for error in qt.slotErrors] == []


def start(panel: Any) -> cases.FakeRegistration:
    """Choose a pair and press Apply."""
    cases.choose_pair(panel)
    panel.ui.applyButton.click()
    return panel.logic.runs[-1]


def finish(panel: Any, run: cases.FakeRegistration) -> Any:
    """The run succeeds."""
    run.result = cases.result_nodes(run.request.fixed, run.request.moving)
    run.events = [cases.event("result", result={})]
    panel.run.poll()
    return run.result


def test_apply_says_what_is_missing(panel: Any) -> None:
    ui = panel.ui
    assert not ui.applyButton.enabled
    assert "Choose a fixed and a moving volume" in ui.statusLabel.text
    assert ui.applyButton.toolTip == ui.statusLabel.text
    volume = cases.add_volume("CT")
    ui.fixedSelector.setCurrentNode(volume)
    ui.movingSelector.setCurrentNode(volume)
    assert "the same" in ui.statusLabel.text
    ui.movingSelector.setCurrentNode(cases.add_volume("MR"))
    assert ui.applyButton.enabled
    assert ui.statusLabel.text == "Ready."


def test_apply_becomes_cancel_and_back(panel: Any) -> None:
    ui = panel.ui
    assert (ui.applyButton.text, ui.progressBar.isHidden()) == ("Apply", True)
    run = start(panel)
    assert (ui.applyButton.text, ui.progressBar.isHidden()) == ("Cancel", False)
    assert not ui.inputsSection.enabled
    run.events = [cases.event("log", "level 1"), cases.event("progress", "Refining", 0.42, eta_seconds=125.0)]
    panel.run.poll()
    assert ui.progressBar.value == 42
    assert ui.statusLabel.text == "Refining, 2 min left"
    assert "level 1" in ui.logText.toPlainText()
    ui.applyButton.click()
    assert run.cancelled
    assert not ui.applyButton.enabled
    run.error = Cancelled("Cancelled; the scene is as it was.")
    run.events = [cases.event("cancelled")]
    panel.run.poll()
    assert (ui.applyButton.text, ui.applyButton.enabled) == ("Apply", True)
    assert ui.inputsSection.enabled
    assert ui.statusLabel.text == "Cancelled; the scene is as it was."


def test_the_timer_polls(panel: Any) -> None:
    import slicer

    run = start(panel)
    run.events = [cases.event("progress", "Aligning", 0.1)]
    for _ in range(200):
        slicer.app.processEvents()
        if panel.ui.progressBar.value == 10:
            break
        __import__("time").sleep(0.005)
    assert panel.ui.statusLabel.text == "Aligning"


def test_a_request_that_is_refused_is_said(panel: Any) -> None:
    panel.logic.refuse = InputError("'MR' has no voxels: load it again.")
    cases.choose_pair(panel)
    panel.ui.applyButton.click()
    assert panel.ui.statusLabel.text == "'MR' has no voxels: load it again."
    assert panel.ui.applyButton.text == "Apply"
    assert panel.ui.applyButton.enabled


def test_a_run_that_fails_is_said_and_the_next_one_works(panel: Any) -> None:
    run = start(panel)
    run.error = MemoryLimitError("Not enough memory: choose a larger working voxel.")
    run.events = [cases.event("error", "x")]
    panel.run.poll()
    assert panel.ui.statusLabel.text == "Not enough memory: choose a larger working voxel."
    assert "worker says hello" in panel.ui.logText.toPlainText()
    panel.ui.applyButton.click()
    assert len(panel.logic.runs) == 2
    finish(panel, panel.logic.runs[-1])
    assert panel.ui.statusLabel.text.startswith("Done.")


def test_something_unforeseen_is_a_sentence_with_the_details_in_the_log(panel: Any) -> None:
    run = start(panel)
    run.events = [ZeroDivisionError("division by zero")]
    panel.run.poll()
    assert "division by zero" in panel.ui.statusLabel.text
    assert "report it" in panel.ui.statusLabel.text
    assert "Traceback" in panel.ui.logText.toPlainText()
    assert panel.ui.applyButton.text == "Apply"
    assert run.cancelled


def test_a_result_is_selected_and_shown(panel: Any) -> None:
    ui = panel.ui
    assert ui.resultSection.collapsed
    result = finish(panel, start(panel))
    outputs = panel.parameters.outputs
    assert outputs.transform is result.outputTransform
    assert outputs.inverse is result.inverseTransform
    assert ui.volumeSelector.currentNode() is result.movedVolume
    assert not ui.resultSection.collapsed
    assert ui.resultFolds.text == "0 %, volume change 0.41 to 2.20"
    assert ui.resultInverse.text == "0.0123 mm on average, at most 0.2 mm"
    assert ui.resultSimilarity.text == "0.412 before, 0.800 aligned, 0.957 registered"
    assert ui.resultDice.text == "0.500 before, 0.880 registered"
    assert ui.resultLandmarks.text == "8.00 mm before, 1.25 mm registered"
    assert ui.resultCheck.text == cases.CHECK
    assert ui.statusLabel.text == f"Done. {cases.CHECK}"
    assert ui.blendButton.checked
    assert panel.services.setup.probes[-1] == {"device": cases.REPORT["device"]}


def test_the_next_run_fills_the_same_nodes(panel: Any) -> None:
    result = finish(panel, start(panel))
    assert panel.request().outputs.transform is result.outputTransform
    assert panel.request().outputs.volume is result.movedVolume


def test_rows_without_numbers_are_hidden(panel: Any) -> None:
    run = start(panel)
    run.result = cases.result_nodes(run.request.fixed, run.request.moving)
    run.result.report = {**cases.REPORT, "labels": None, "landmarks": None}
    run.events = [cases.event("result")]
    panel.run.poll()
    assert panel.ui.resultDice.isHidden()
    assert panel.ui.resultLandmarksLabel.isHidden()
    assert not panel.ui.resultFolds.isHidden()


def test_the_slider_follows_the_flow(panel: Any) -> None:
    finish(panel, start(panel))
    slider = panel.ui.pathSlider
    slider.value = 40.0
    slider.value = 60.0
    (path,) = panel.logic.paths
    assert path.asked == [0.4, 0.6]
    path.events = [cases.event("error", "The worker could not start: free some memory.")]
    panel.result.poll()
    assert panel.ui.statusLabel.text == "The worker could not start: free some memory."
    panel.ui.restoreButton.click()
    assert path.closed
    assert slider.value == 100.0
    assert len(path.asked) == 2


def test_apply_ends_the_preview(panel: Any) -> None:
    finish(panel, start(panel))
    panel.ui.pathSlider.value = 40.0
    panel.ui.applyButton.click()
    assert panel.logic.paths[0].closed
    assert not panel.ui.pathSlider.enabled
    finish(panel, panel.logic.runs[-1])
    assert panel.ui.pathSlider.enabled


def test_copy_as_python(panel: Any) -> None:
    import qt

    cases.choose_pair(panel)
    panel.ui.copyPythonButton.click()
    assert qt.QApplication.clipboard().text() == "register CT"


def test_closing_the_scene_cancels_the_run(panel: Any) -> None:
    import slicer

    run = start(panel)
    slicer.mrmlScene.Clear()
    assert run.cancelled
    assert not panel.run.running
    assert panel.parameters is not None
    assert panel.parameters.fixed is None
    assert panel.ui.applyButton.text == "Apply"
    assert not panel.ui.applyButton.enabled
    cases.choose_pair(panel)
    assert panel.ui.applyButton.enabled


def test_a_saved_scene_brings_everything_back(panel: Any, tmp_path: Any) -> None:
    import slicer

    finish(panel, start(panel))
    mask = cases.add_segmentation("organs", ("liver", "implant"))
    panel.ui.fixedMaskNode.setCurrentNode(mask)
    panel.ui.fixedMaskSegment.setCurrentIndex(2)
    panel.ui.stepsAuto.setChecked(False)
    panel.ui.stepsSpin.setValue(32)
    panel.parameters.model.method = "pathological"
    panel.parameters.segmentations = [mask]
    text = save_text(slicer.mrmlScene)
    slicer.mrmlScene.Clear()
    assert panel.ui.stepsSpin.value != 32
    load_text(slicer.mrmlScene, text)
    ui, parameters = panel.ui, panel.parameters
    assert ui.fixedSelector.currentNode().GetName() == "CT"
    assert ui.stepsSpin.value == 32
    assert ui.methodCombo.itemData(ui.methodCombo.currentIndex) == "pathological"
    assert not ui.pathologyGroup.isHidden()
    assert ui.fixedMaskSegment.itemData(ui.fixedMaskSegment.currentIndex) == parameters.fixedMask.segment
    assert [node.GetName() for node in parameters.segmentations] == ["organs"]
    assert ui.transformSelector.currentNode().GetName() == "MR -> CT"
    assert ui.resultDice.text == "0.500 before, 0.880 registered"
    assert not ui.resultSection.collapsed


def save_text(scene: Any) -> str:
    """The scene's .mrml as text, without files."""
    scene.SetSaveToXMLString(1)
    scene.Commit()
    text = scene.GetSceneXMLString()
    scene.SetSaveToXMLString(0)
    return text


def load_text(scene: Any, text: str) -> None:
    """Read a scene from text."""
    scene.SetLoadFromXMLString(1)
    scene.SetSceneXMLString(text)
    scene.Import()
    scene.SetLoadFromXMLString(0)


def test_a_scene_from_a_newer_version_is_explained(panel: Any) -> None:
    cases.choose_pair(panel)
    panel.parameters.model.method = "telepathy"
    assert "telepathy" in panel.ui.statusLabel.text
    assert not panel.ui.applyButton.enabled
    assert panel.ui.methodCombo.currentIndex == -1


def test_another_module_does_not_stop_the_run(panel: Any) -> None:
    run = start(panel)
    panel.exit()
    assert not run.cancelled
    finish(panel, run)
    panel.enter()
    assert panel.ui.resultCheck.text == cases.CHECK


def test_without_torch_the_setup_box_is_open_and_says_so(bench: Any) -> None:
    panel = cases.make_panel(
        setup=cases.FakeSetup(ok=False, sentence="Not installed yet: PyTorch. Press Install.")
    )
    cases.choose_pair(panel)
    assert not panel.ui.setupSection.collapsed
    assert not panel.ui.applyButton.enabled
    assert panel.ui.statusLabel.text == "Not installed yet: PyTorch. Press Install."
    panel.ui.installButton.click()
    assert panel.ui.applyButton.enabled
    assert panel.ui.torchState.text == "Ready."
    assert "Installing" in panel.ui.setupLog.toPlainText()
    panel.cleanup()


def test_a_failed_installation_is_said(bench: Any) -> None:
    setup = cases.FakeSetup(ok=False, error=InputError("The extension 'PyTorch' is missing: install it."))
    panel = cases.make_panel(setup=setup)
    panel.ui.installButton.click()
    assert "The extension 'PyTorch' is missing: install it." in panel.ui.logText.toPlainText()
    assert panel.ui.installButton.enabled
    panel.cleanup()


def test_the_setup_log_can_be_copied(panel: Any) -> None:
    import qt

    panel.ui.setupSection.collapsed = False
    panel.ui.copySetupLogButton.click()
    copied = qt.QApplication.clipboard().text()
    assert copied.startswith("installed\ntorch: 2.9\n")
    assert copied.endswith("PythonSlicer -m pip install torch")


def test_when_all_is_well_the_setup_box_is_closed(panel: Any) -> None:
    assert panel.ui.setupSection.collapsed


def test_the_device_is_tested_on_request(panel: Any) -> None:
    from types import SimpleNamespace

    found = {"device": {"device": "cuda:0", "why": "it works"}}
    panel.logic.probe = SimpleNamespace(poll=lambda: [cases.event("result", result=found)], finished=True)
    panel.ui.testButton.click()
    panel.setup_box.poll()
    assert panel.services.setup.probes == [found]
    assert panel.setup_box.device == "cuda:0"


def test_weights_are_fetched_after_the_licence_is_accepted(panel: Any) -> None:
    panel.services.weights.kind = "missing"
    cases.choose_pair(panel)
    panel.parameters.model.method = "direct"
    ui = panel.ui
    assert "are under CC-BY-NC-4.0" in ui.statusLabel.text
    assert "spdx.org/licenses/CC-BY-NC-4.0.html" in ui.licenceCheck.toolTip
    assert not ui.licenceCheck.isHidden()
    assert ui.licenceCheck.text == "I accept: CC-BY-NC-4.0"
    ui.licenceCheck.click()
    assert panel.services.machine.accepted == {"CC-BY-NC-4.0"}
    assert ui.licenceCheck.isHidden()
    assert ui.statusLabel.text == "Weights are missing."
    ui.downloadWeightsButton.click()
    assert panel.services.weights.done == ["download direct"]
    assert ui.applyButton.enabled
    ui.clearWeightsButton.click()
    assert not ui.applyButton.enabled


def test_shipped_weights_are_applied_once_their_licence_is_accepted(panel: Any) -> None:
    cases.choose_pair(panel)
    panel.parameters.model.method = "shipped"
    ui = panel.ui
    assert not ui.applyButton.enabled
    assert "tick under Setup" in ui.statusLabel.text
    assert "Trained on ten spheres (CC0-1.0)" in ui.licenceText.text
    ui.licenceCheck.click()
    assert ui.applyButton.enabled
    assert ui.licenceCheck.isHidden()


def test_choices_of_this_computer_stay_out_of_the_scene(panel: Any) -> None:
    import slicer

    from Testing.slicer.bench import dialogs

    panel.ui.threadsSpin.setValue(3)
    assert panel.services.machine.threads == 3
    assert "threads" not in save_text(slicer.mrmlScene)
    dialogs.person.answers.append("/somewhere")
    panel.ui.temporaryButton.click()
    assert panel.services.machine.temporary_folder == "/somewhere"
    assert panel.logic.closed > 0
