"""A module loaded, shown, used and closed as the application does it; services of the application."""

from __future__ import annotations

import numpy as np
import pytest
import qt
import slicer
import slicer.util

MODULE = """
import slicer, qt
from slicer.ScriptedLoadableModule import *
from slicer.i18n import tr as _

class Demo(ScriptedLoadableModule):
    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = _("A demonstration")
        self.heard = []
        slicer.app.connect("startupCompleted()", lambda: self.heard.append(1))

class DemoWidget(ScriptedLoadableModuleWidget):
    calls = []
    def setup(self):
        ScriptedLoadableModuleWidget.setup(self)
        self.button = qt.QPushButton("Go")
        self.layout.addWidget(self.button)
        self.calls.append("setup")
    def enter(self): self.calls.append("enter")
    def exit(self): self.calls.append("exit")
    def cleanup(self): self.calls.append("cleanup")

class DemoLogic(ScriptedLoadableModuleLogic):
    pass
"""


@pytest.fixture
def demo(bench, tmp_path):
    """The module above, loaded."""
    folder = tmp_path / "Demo"
    folder.mkdir()
    (folder / "Demo.py").write_text(MODULE, encoding="utf-8")
    return bench.load(folder / "Demo.py")


def test_a_module_lives_as_in_slicer(bench, demo):
    assert demo.parent.title == "A demonstration"
    bench.app.emit("startupCompleted()")
    assert demo.module.heard == [1]
    widget = demo.enter()
    bench.click(widget.button)
    assert slicer.modules.DemoWidget is widget
    assert demo.panel.isEntered
    assert widget.resourcePath("UI/a.ui").endswith("Demo/Resources/UI/a.ui")
    calls = widget.calls
    demo.close()
    assert calls == ["setup", "enter", "exit", "cleanup"]


def test_a_module_is_reloaded(demo):
    before = demo.enter()
    before.onReload()
    assert demo.widget is not before
    assert before.calls == ["setup", "enter", "cleanup"]
    assert demo.widget.calls == ["setup"]


def test_one_parameter_node_per_module(bench, demo):
    logic = demo.python.DemoLogic()
    node = logic.getParameterNode()
    assert logic.getParameterNode() is node
    assert (node.GetAttribute("ModuleName"), node.GetSingletonTag()) == ("Demo", "Demo")
    bench.scene.Clear(0)
    assert logic.getParameterNode() is not None


def test_disabled_and_hidden_buttons_cannot_be_clicked(bench, demo):
    button = demo.enter().button
    button.enabled = False
    with pytest.raises(AssertionError, match="disabled"):
        bench.click(button)
    button.enabled = True
    button.hide()
    with pytest.raises(AssertionError, match="hidden"):
        bench.click(button)


def test_waiting_ends(bench):
    with pytest.raises(AssertionError, match="not within"):
        bench.wait(lambda: False, timeout=0.02)
    assert bench.wait(lambda: "now") == "now"


def test_unknown_signals_of_the_application_raise(bench):
    with pytest.raises(ValueError, match="has no signal"):
        slicer.app.connect("startupComplete()", print)
    with pytest.raises(AttributeError):
        slicer.app.somethingElse()
    with pytest.raises(AttributeError):
        _ = slicer.modules.brainsfit


def test_files_go_through_slicer_util(bench, tmp_path):
    values = np.arange(60, dtype=np.float32).reshape(3, 4, 5)
    volume = slicer.util.addVolumeFromArray(values, name="CT")
    path = str(tmp_path / "CT.nrrd")
    assert slicer.util.saveNode(volume, path, {})
    again = slicer.util.loadVolume(path, {})
    np.testing.assert_array_equal(slicer.util.arrayFromVolume(again), values)
    labels = slicer.util.loadLabelVolume(path, {})
    assert labels.IsA("vtkMRMLLabelMapVolumeNode")
    transform = bench.scene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "T")
    slicer.util.updateTransformMatrixFromArray(transform, np.diag([1.0, 2.0, 1.0, 1.0]))
    assert slicer.util.saveNode(transform, str(tmp_path / "T.h5"), {})
    assert slicer.util.loadTransform(str(tmp_path / "T.h5")).IsA("vtkMRMLTransformNode")
    with pytest.raises(RuntimeError, match="Failed to load"):
        slicer.util.loadVolume(str(tmp_path / "nothing.nrrd"), {})


def test_segments_as_arrays(bench):
    volume = slicer.util.addVolumeFromArray(np.zeros((3, 4, 5), np.float32), name="CT")
    node = bench.scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "seg")
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    node.GetSegmentation().AddEmptySegment("A", "liver")
    values = np.zeros((3, 4, 5), np.uint8)
    values[1, 1:3, 2:] = 1
    slicer.util.updateSegmentBinaryLabelmapFromArray(values, node, "A", volume)
    np.testing.assert_array_equal(slicer.util.arrayFromSegmentBinaryLabelmap(node, "A", volume), values)


def test_slice_views_have_real_logics(bench):
    volume = slicer.util.addVolumeFromArray(np.zeros((3, 4, 5), np.float32), name="CT")
    slicer.util.setSliceViewerLayers(background=volume, fit=True)
    slicer.util.resetSliceViews()
    manager = slicer.app.layoutManager()
    assert manager.sliceViewNames() == ("Red", "Yellow", "Green")
    node = manager.sliceWidget("Green").mrmlSliceCompositeNode()
    assert node.GetBackgroundVolumeID() == volume.GetID()


def test_the_application_does_not_outlive_the_bench(scene):
    assert not hasattr(slicer, "app")
    assert slicer.util.getNodesByClass("vtkMRMLSliceNode") == []


def test_services(bench, tmp_path):
    assert str(tmp_path) in slicer.util.tempDirectory()
    with slicer.util.WaitCursor():
        slicer.app.processEvents()
    slicer.util.delayDisplay("Done.", 10)
    with pytest.raises(ValueError, match="wrong"), slicer.util.tryWithErrorDisplay("Failed."):
        raise ValueError("wrong")
    assert [(m.kind, m.text) for m in bench.person.messages] == [("critical", "Failed.\n\nwrong")]


def test_slot_errors_that_nobody_looked_at_fail_the_test(bench):
    button = qt.QPushButton()
    button.connect("clicked()", lambda: 1 / 0)
    button.click()
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        bench.close()
    bench.slotErrors.clear()


def test_the_real_module_opens(bench, tmp_path):
    module = bench.load()
    module.enter()
    picture = qt.QImage(str(bench.grab(module.panel, tmp_path / "panel.png", width=500)))
    assert picture.width() == 500
    assert picture.height() > 300
