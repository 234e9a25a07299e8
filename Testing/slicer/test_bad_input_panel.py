"""Bad input and broken computers, met by the real module: one sentence that says what to do, nothing else.

After every refusal the scene is as it was, no temporary folder and no process is left; the next Apply works.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import slicer
import slicer.util
import vtk

from DiffeoRegPanel.runner import Runner

REPOSITORY = Path(__file__).resolve().parents[2]
SIZE = 16
PATIENCE = 60.0


@pytest.fixture(scope="module")
def worker(tmp_path_factory):
    """One warm worker for all tests of this file, and the folder in which it exchanges."""
    folder = tmp_path_factory.mktemp("exchange")
    runner = Runner(temporary=folder)
    yield SimpleNamespace(runner=runner, folder=folder)
    runner.close()
    assert list(folder.iterdir()) == []


class Lent:
    """The warm worker in the hands of one panel, which may not end it."""

    def __init__(self, runner):
        self.start, self.pid = runner.start, runner.pid

    def close(self):
        """It is needed by the next test."""


class Room:
    """The real module with two volumes chosen."""

    def __init__(self, bench, worker):
        self.bench, self.worker = bench, worker
        self.widget = bench.load(REPOSITORY / "DiffeoReg" / "DiffeoReg.py").enter()
        self.panel, self.ui = self.widget.panel, self.widget.panel.ui
        self.choose()
        self.use(Lent(worker.runner))

    def choose(self):
        """Two small volumes, chosen as fixed and moving."""
        self.fixed, self.moving = volume("CT", 7.5), volume("MR", 9.0)
        self.panel.parameters.model.method, self.panel.parameters.model.effort = "affine", "fast"
        self.panel.parameters.fixed, self.panel.parameters.moving = self.fixed, self.moving

    def use(self, runner):
        """Compute with this worker from now on."""
        self.widget.logic._runner = runner
        return runner

    @property
    def said(self):
        return self.ui.statusLabel.text

    def apply(self):
        """Press Apply and wait for the end."""
        self.bench.click(self.ui.applyButton)
        self.bench.wait(lambda: not self.panel.run.running, PATIENCE, "the end of the run")

    def refuses(self, *words):
        """Apply is refused with a sentence that has these words, and leaves no trace."""
        before = node_ids()
        self.apply()
        self.check_trace(before, *words)

    def check_trace(self, before, *words):
        check_sentence(self.said, *words)
        assert node_ids() == before
        assert list(self.worker.folder.iterdir()) == []
        assert self.ui.applyButton.text == "Apply"
        assert self.ui.progressBar.isHidden()
        assert not self.bench.slotErrors, self.bench.problems()
        assert self.bench.person.messages == []

    def works(self):
        """A good run goes through."""
        self.panel.parameters.fixed, self.panel.parameters.moving = self.fixed, self.moving
        self.apply()
        assert self.said.startswith("Done."), self.said + self.ui.logText.toPlainText()
        assert self.panel.parameters.outputs.transform is not None
        assert list(self.worker.folder.iterdir()) == []
        assert not self.bench.slotErrors, self.bench.problems()


@pytest.fixture
def room(bench, worker):
    return Room(bench, worker)


def check_sentence(said, *words):
    """One thing is said, in words for a user."""
    assert all(word in said for word in words), said
    assert said.endswith(".")
    assert "\n" not in said
    for alarm in ("Traceback", "went wrong", "Unexpected "):
        assert alarm not in said


def node_ids():
    scene = slicer.mrmlScene
    return sorted(scene.GetNthNode(i).GetID() for i in range(scene.GetNumberOfNodes()))


def volume(name, centre, kind="vtkMRMLScalarVolumeNode"):
    """A bright ball around x = centre."""
    k, j, i = np.mgrid[:SIZE, :SIZE, :SIZE].astype(np.float32)
    radius = np.sqrt((k - 7.5) ** 2 + (j - 7.5) ** 2 + (i - centre) ** 2)
    array = (100 / (1 + np.exp(radius - 4))).astype(np.float32)
    if kind == "vtkMRMLVectorVolumeNode":
        array = np.repeat(array[..., None], 3, axis=-1)
    return slicer.util.addVolumeFromArray(array, name=name, nodeClassName=kind)


def add(kind, name):
    return slicer.mrmlScene.AddNewNodeByClass(kind, name)


# --- input that cannot be registered ------------------------------------------------------------------------


def test_the_same_volume_twice(room):
    room.panel.parameters.moving = room.fixed
    before = node_ids()
    assert not room.ui.applyButton.enabled
    room.ui.applyButton.click()
    room.check_trace(before, "the same", "choose two different")
    room.works()


def without_image_data(room):
    room.panel.parameters.moving = add("vtkMRMLScalarVolumeNode", "hollow")
    return "'hollow'", "no image data", "load"


def vector_volume(room):
    room.panel.parameters.moving = volume("colours", 8, "vtkMRMLVectorVolumeNode")
    return "'colours'", "3 values per voxel", "Vector to Scalar"


def sequence_proxy(room):
    sequence, browser = add("vtkMRMLSequenceNode", "frames"), add("vtkMRMLSequenceBrowserNode", "player")
    for value in ("0", "1"):
        sequence.SetDataNodeAtValue(room.moving, value)
    browser.SetAndObserveMasterSequenceNodeID(sequence.GetID())
    browser.AddProxyNode(room.moving, sequence, False)
    return "'MR'", "sequence browser 'player'", "clone"


def empty_segmentation(room):
    room.panel.parameters.fixedMask.node = segmentation(room.fixed, "nothing", np.s_[0:0])
    return "'nothing'", "choose"


def segmentation_elsewhere(room):
    """Drawn on another volume, 1 m away."""
    far = volume("far", 8)
    far.SetOrigin(1000.0, 0.0, 0.0)
    room.panel.parameters.fixedMask.node = segmentation(far, "elsewhere", np.s_[2:6])
    return "'elsewhere'", "'CT'", "choose"


def no_common_segment(room):
    room.panel.parameters.model.method, known = "svf", room.panel.parameters.guidance
    known.fixed.node = segmentation(room.fixed, "left", np.s_[2:8], "liver")
    known.moving.node = segmentation(room.moving, "right", np.s_[2:8], "spleen")
    return "'left'", "'right'"


def non_linear_parent(room):
    field = vtk.vtkImageData()
    field.SetDimensions(4, 4, 4)
    field.SetSpacing(5, 5, 5)
    field.AllocateScalars(vtk.VTK_DOUBLE, 3)
    field.GetPointData().GetScalars().Fill(1.0)
    grid = slicer.vtkOrientedGridTransform()
    grid.SetDisplacementGridData(field)
    node = add("vtkMRMLTransformNode", "bend")
    node.SetAndObserveTransformFromParent(grid)
    room.moving.SetAndObserveTransformNodeID(node.GetID())
    return "'MR'", "non-linear transform 'bend'", "take it out"


def segmentation(reference, name, rows, segment="organ"):
    node = add("vtkMRMLSegmentationNode", name)
    node.SetReferenceImageGeometryParameterFromVolumeNode(reference)
    node.GetSegmentation().AddEmptySegment("S", segment)
    marked = np.zeros((SIZE,) * 3, np.uint8)
    marked[rows, 4:12, 4:12] = 1
    if marked.any():
        slicer.util.updateSegmentBinaryLabelmapFromArray(marked, node, "S", reference)
    return node


BAD_INPUT = (
    without_image_data, vector_volume, sequence_proxy, empty_segmentation, segmentation_elsewhere,
    no_common_segment, non_linear_parent,
)  # fmt: skip


@pytest.mark.parametrize("spoil", BAD_INPUT, ids=lambda spoil: spoil.__name__)
def test_what_cannot_be_registered_is_refused_in_a_sentence(room, spoil):
    words = spoil(room)
    room.refuses(*words)
    assert room.worker.runner.state != "busy"
    repair(room)
    room.works()


def repair(room):
    """What the sentences ask for."""
    parameters = room.panel.parameters
    parameters.fixedMask.node = None
    parameters.guidance.fixed.node = parameters.guidance.moving.node = None
    room.moving.SetAndObserveTransformNodeID(None)
    for browser in slicer.util.getNodesByClass("vtkMRMLSequenceBrowserNode"):
        slicer.mrmlScene.RemoveNode(browser)


# --- the scene changes under a run --------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["fixed", "moving"])
def test_a_node_deleted_during_the_run(room, which):
    room.bench.click(room.ui.applyButton)
    slicer.mrmlScene.RemoveNode(getattr(room, which))
    before = node_ids()
    room.bench.wait(lambda: not room.panel.run.running, PATIENCE)
    room.check_trace(before, "removed from the scene during the run", "choose another")
    assert not room.ui.applyButton.enabled
    setattr(room, which, volume("again", 8.5))
    room.works()


@pytest.mark.parametrize("which", ["fixed", "moving"])
def test_a_volume_moved_during_the_run(room, which):
    room.bench.click(room.ui.applyButton)
    before = node_ids()
    getattr(room, which).SetOrigin(50.0, 0.0, 0.0)
    room.bench.wait(lambda: not room.panel.run.running, PATIENCE)
    room.check_trace(before, "was moved during the run", "apply again")


def test_the_scene_is_closed_during_the_run(room):
    room.bench.click(room.ui.applyButton)
    slicer.mrmlScene.Clear()
    before = node_ids()
    room.bench.wait(lambda: not list(room.worker.folder.iterdir()), 10, "the folder gone")
    room.bench.spin(0.1)
    room.check_trace(before, "Cancelled", "scene was closed", "Choose a fixed and a moving volume")
    room.choose()
    room.works()


# --- the computer is at fault -------------------------------------------------------------------------------


def test_the_temporary_folder_cannot_be_written(room, tmp_path):
    file = tmp_path / "a file"
    file.write_text("", encoding="utf-8")
    runner = room.use(Runner(temporary=file))
    room.refuses("No temporary folder", str(file), "choose another temporary folder")
    assert runner.state == "stopped"
    room.use(Lent(room.worker.runner))
    room.works()


def test_the_disk_is_full_while_the_images_are_written(room, monkeypatch):
    def full(*_arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("DiffeoRegLib.exchange._without_arrays", full)
        room.refuses("No space left on device", "Free some space")
    room.works()


BROKEN = "import sys; sys.exit('ImportError: libc10.so: cannot open shared object file')"
COMMANDS = {
    "not there": (["/nowhere/PythonSlicer"], ("/nowhere/PythonSlicer", "could not be started", "Check")),
    "leaves at once": ([sys.executable, "-c", "pass"], ("ended", "apply again", "log")),
    "fails at once": ([sys.executable, "-c", BROKEN], ("ended", "libc10.so", "apply again", "log")),
}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_the_worker_cannot_start(room, command):
    runner = room.use(Runner(command[0], temporary=room.worker.folder))
    room.refuses(*command[1])
    room.bench.wait(lambda: runner.state == "stopped")
    runner.close()
    room.use(Lent(room.worker.runner))
    room.works()


def test_slicers_python_is_missing(room):
    room.widget.logic.close()
    room.refuses("PythonSlicer", "not found", "reinstall")
    room.use(Lent(room.worker.runner))
    room.works()


@pytest.mark.parametrize(
    "failure", ["raise OSError('undefined symbol: cuModuleGetFunction')", "zeros = None"]
)
def test_torch_is_there_but_broken(room, tmp_path, monkeypatch, failure):
    (tmp_path / "torch.py").write_text(failure + "\n", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    runner = room.use(Runner(temporary=room.worker.folder))
    room.refuses("PyTorch is installed but cannot be loaded", "PyTorch Utils", "Uninstall it")
    assert failure.partition("'")[2] in room.ui.logText.toPlainText()
    assert "Traceback" in room.ui.logText.toPlainText()
    room.bench.wait(lambda: runner.state == "stopped")
    runner.close()
    room.use(Lent(room.worker.runner))
    room.works()


OPEN_WITHOUT_TORCH = """
import sys, tempfile
from pathlib import Path
sys.modules["torch"] = None
import numpy as np
import slicer
from Testing.slicer import conftest
from Testing.slicer.bench import core
from Testing.slicer.bench.slicerbench import Bench
from DiffeoRegPanel import install
install.installed_version = lambda name: None
install.find_torch = lambda: None
with tempfile.TemporaryDirectory() as folder:
    bench = Bench(core.boot(), Path(folder))
    try:
        ui = bench.load().enter().panel.ui
        print(ui.torchState.text)
        print(ui.setupSection.collapsed, ui.installButton.enabled, ui.applyButton.enabled)
        for selector in (ui.fixedSelector, ui.movingSelector):
            selector.setCurrentNode(slicer.util.addVolumeFromArray(np.random.rand(8, 8, 8)))
        print(ui.statusLabel.text, ui.applyButton.enabled)
    finally:
        bench.close()
"""


def test_without_torch_the_module_opens_and_explains():
    done = subprocess.run(
        [sys.executable, "-c", OPEN_WITHOUT_TORCH],
        cwd=REPOSITORY, capture_output=True, encoding="utf-8", check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    missing = "Not installed yet: PyTorch, nibabel, safetensors. Press Install."
    assert done.stdout.splitlines()[-3:] == [missing, "False True False", f"{missing} False"]
