"""Groups through the whole module: choose, Apply, look, copy, save, load again; bad input in the panel."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import qt
import slicer

from DiffeoRegPanel.nodes.points import points_of
from DiffeoRegPanel.nodes.series import browser_of, show_frame
from DiffeoRegPanel.nodes.volumes import array_of
from Testing.slicer import region_cases as cases
from Testing.slicer.test_bad_input_panel import Lent
from Testing.slicer.test_group import COUNT, PLACE, SHAPE, blobs, ids, peak, place
from Testing.slicer.test_nodes_frames import TIMES, sequence_of

MODULE = Path(__file__).resolve().parents[2] / "DiffeoReg" / "DiffeoReg.py"
PATIENCE = 120.0


class Room:
    """The real module in its group mode, quick settings chosen."""

    def __init__(self, bench, runner):
        self.bench, self.runner = bench, runner
        self.module = bench.load(MODULE)
        self.widget = self.module.enter()
        self.widget.logic._runner = Lent(runner)
        self.panel, self.ui = self.widget.panel, self.widget.panel.ui
        self.p = self.panel.parameters
        self.p.mode, self.p.model.effort = "group", "fast"
        self.p.advanced.similarity, self.p.advanced.workingSpacing = "mse", 4.0
        self.p.group.wantUncertainty = False

    @property
    def said(self):
        return self.ui.statusLabel.text

    def apply(self):
        self.bench.click(self.ui.applyButton)
        self.bench.wait(lambda: not self.panel.run.running, PATIENCE, "the end of the run")

    def done(self):
        assert self.said.startswith("Done:"), self.said + self.ui.logText.toPlainText()
        assert not self.bench.slotErrors, self.bench.problems()


@pytest.fixture
def room(bench, runner):
    made = Room(bench, runner)
    yield made
    made.module.close()


def series(scene, nodes, times=TIMES):
    """The nodes as a sequence, and its browser; the nodes themselves are gone."""
    sequence = sequence_of(scene, nodes, times[: len(nodes)])
    for node in nodes:
        scene.RemoveNode(node)
    return sequence, browser_of(scene, [sequence], "player")


def names_of(before):
    """Names and kinds of what the user sees of the nodes that were made since."""
    scene = slicer.mrmlScene
    nodes = [scene.GetNthNode(n) for n in range(scene.GetNumberOfNodes())]
    return sorted(
        (node.GetClassName(), node.GetName().rstrip("_0123456789"))
        for node in nodes
        if node.GetID() not in before and node.IsA("vtkMRMLStorableNode") and not node.IsA("vtkMRMLColorNode")
    )


def test_choose_apply_play_copy_save_and_load_again(bench, scene, room, runner, tmp_path, monkeypatch):
    _sequence, player = series(scene, blobs())
    points = scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "tip")
    points.AddControlPoint(*place(2))
    marked = np.zeros(SHAPE, np.uint8)
    marked[2:-2, 2:-2, 2:-2] = 1
    mask = cases.add_segmentation(scene, [marked], PLACE, [["here"]], "mask")
    room.p.group.series, room.p.groupMarkups, room.p.group.marked = player, [points], 2
    room.p.group.mask.node, room.p.group.wantUncertainty = mask, True
    before = ids()
    room.apply()
    room.done()
    made = names_of(before)
    check_playing(room.p.group.browser)
    said = room.ui.resultSimilarity.text, room.ui.resultUncertainty.text, room.ui.resultCheck.text
    assert all(said)
    assert said[2].startswith("The 3 transforms move the images exactly")

    bench.click(room.ui.copyPythonButton)
    text = qt.QApplication.clipboard().text()
    check_copy(text, runner, made, monkeypatch)

    assert scene.WriteToMRB(str(tmp_path / "scene.mrb"))
    slicer.mrmlScene.Clear(0)
    assert room.panel.group.problem()
    assert scene.ReadFromMRB(str(tmp_path / "scene.mrb"))
    room.panel.enter()
    p = room.panel.parameters
    assert (p.mode, p.group.series.GetName(), p.group.marked) == ("group", "player", 2)
    assert (room.ui.resultSimilarity.text, room.ui.resultUncertainty.text, room.ui.resultCheck.text) == said
    check_playing(p.group.browser)
    bench.click(room.ui.uncertaintyButton)
    bench.click(room.ui.groupPlayButton)
    assert p.group.browser.GetPlaybackActive()
    assert not bench.slotErrors, bench.problems()


def check_playing(browser):
    """Every frame lies in the middle, its transform leads there, the points lie on the frame."""
    scene = slicer.mrmlScene
    aligned, transforms, marks = (
        browser.GetProxyNode(scene.GetFirstNodeByName(name))
        for name in ("liver aligned", "liver transforms", "tip on all frames of liver")
    )
    for number in range(COUNT):
        show_frame(browser, number)
        assert np.linalg.norm(peak(aligned) - place(1)) < 1.2
        led = np.array(transforms.GetTransformToParent().TransformPoint(*place(number)))
        assert np.linalg.norm(led - place(1)) < 1.2
        assert np.linalg.norm(points_of(marks)[0] - place(number)) < 1.2


def check_copy(text, runner, made, monkeypatch):
    """The text, run as it is, makes the same nodes once more."""
    module = sys.modules["DiffeoReg"]
    monkeypatch.setattr(module.DiffeoRegLogic, "runner", Lent(runner))
    assert "diffeoreg group" in text
    names, before = {}, ids()
    exec(compile(text, "copied", "exec"), names)
    assert names_of(before) == made
    assert names["result"].report["settings"]["similarity"] == "mse"
    for one, other in zip(*sequences("liver aligned"), strict=True):
        assert np.abs(array_of(one) - array_of(other)).max() < 1e-3


def sequences(name):
    """Data nodes of the two sequences of a name."""
    found = [n for n in slicer.util.getNodesByClass("vtkMRMLSequenceNode") if n.GetName().startswith(name)]
    assert len(found) == 2
    return [[one.GetNthDataNode(n) for n in range(COUNT)] for one in found]


def bad_series(kind):
    nodes = blobs()[: 1 if kind == "one" else COUNT]
    if kind in ("constant", "nan"):
        array_of(nodes[1])[:] = {"constant": 3.0, "nan": np.nan}[kind]
    return nodes


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("one", ("holds 1 image", "at least 2")),
        ("fixed", ("number 9", "3 frames")),
        ("mask", ("mask", "is empty")),
        ("constant", ("liver, time 1.5 s", "same value", "nothing to register")),
        ("nan", ("liver, time 1.5 s", "no finite value")),
    ],
)
def test_bad_input_is_said_in_one_sentence(scene, room, kind, words):
    sequence, _player = series(scene, bad_series(kind))
    room.p.group.series = sequence
    if kind == "fixed":
        room.p.group.target, room.p.group.frame = "frame", 9
    if kind == "mask":
        shape, what = (6, 6, 6), "vtkMRMLLabelMapVolumeNode"
        room.p.group.mask.node = cases.add_volume(np.zeros(shape, np.uint8), PLACE, "mask", what)
    before = ids()
    if kind in ("one", "fixed"):
        assert not room.ui.applyButton.enabled
    else:
        room.apply()
    assert all(word in room.said for word in words), room.said
    assert room.said[-1] in ".?"
    assert "\n" not in room.said
    assert "went wrong" not in room.said
    assert ids() == before
    assert not room.bench.slotErrors, room.bench.problems()
    if kind == "constant":
        room.ui.groupLeaveOut.setChecked(True)
        room.apply()
        room.done()
        assert room.said.startswith("Done: 2 frames.")


def test_cancel_leaves_the_scene_as_it_was(scene, room):
    sequence, _player = series(scene, blobs())
    room.p.group.series, room.p.model.effort, room.p.advanced.workingSpacing = sequence, "accurate", 1.0
    room.p.group.wantUncertainty = True
    before = ids()
    room.bench.click(room.ui.applyButton)
    room.bench.wait(lambda: room.ui.progressBar.value > 10, PATIENCE, "the middle of the run")
    room.bench.click(room.ui.applyButton)
    room.bench.wait(lambda: not room.panel.run.running, PATIENCE, "the end of the run")
    assert room.said == "Cancelled; the scene is as it was."
    assert ids() == before
