"""Groups from request to nodes, with the real worker process on the real MRML scene."""

from __future__ import annotations

import numpy as np
import pytest
import slicer
import vtk

from DiffeoRegLib.errors import Cancelled, InputError
from DiffeoRegLib.settings import Settings
from DiffeoRegPanel.console import wait_for
from DiffeoRegPanel.group import GroupRegistration, GroupRequest
from DiffeoRegPanel.nodes.places import world_from_voxel
from DiffeoRegPanel.nodes.points import points_of
from DiffeoRegPanel.nodes.series import show_frame
from DiffeoRegPanel.nodes.volumes import array_of
from Testing.slicer import region_cases as cases
from Testing.slicer.test_nodes_frames import sequence_of

QUICK = Settings(
    device="cpu", threads=1, similarity="mse", levels_mm=(4.0,), iterations=(15,), working_spacing_mm=2.0
)
PLACE = np.array([[2.0, 0, 0, 11], [0, 1.8, 0, -7], [0, 0, 2.2, 3], [0, 0, 0, 1]])
"""World from (i, j, k)."""
SHAPE, STEP_VOX, COUNT = (14, 16, 20), 1.5, 3


def centre(number):
    """Where the blob of a frame lies, (k, j, i)."""
    return np.array(SHAPE) / 2 + [0, 0, STEP_VOX * (number - 1)]


def place(number):
    """The same in the world."""
    return (PLACE @ [*centre(number)[::-1], 1])[:3]


def blobs():
    """Volumes of one blob that wanders along i."""
    places = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), -1)
    return [
        cases.add_volume(
            (100 * np.exp(-((places - centre(n)) ** 2).sum(-1) / 12)).astype(np.float32), PLACE, f"phase {n}"
        )
        for n in range(COUNT)
    ]


@pytest.fixture
def series(scene):
    nodes = blobs()
    sequence = sequence_of(scene, nodes)
    for node in nodes:
        scene.RemoveNode(node)
    return sequence


def ids():
    scene = slicer.mrmlScene
    return [scene.GetNthNode(i).GetID() for i in range(scene.GetNumberOfNodes())]


def run(runner, images, **changes):
    return wait_for(GroupRegistration(GroupRequest(images, QUICK, **changes), runner))


def peak(node):
    """Where a volume node is brightest, world, by the centre of what is bright."""
    array = np.clip(array_of(node) - 20, 0, None)
    index = [float((array * axis).sum() / array.sum()) for axis in np.indices(array.shape)]
    return (world_from_voxel(node) @ [*index, 1])[:3]


def test_a_sequence_to_its_middle(series, runner):
    points = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "tip")
    points.AddControlPoint(vtk.vtkVector3d(*place(2)))
    found = run(runner, series, carried=(points,), marked=2)
    browser, values = found.browser, [series.GetNthIndexValue(n) for n in range(COUNT)]
    sequences = (found.transforms, found.aligned, found.uncertainty, *found.carried)
    for sequence in sequences:
        assert [sequence.GetNthIndexValue(n) for n in range(COUNT)] == values
    shown, moved, marks = (browser.GetProxyNode(s) for s in (found.aligned, found.transforms, *found.carried))
    for number in range(COUNT):
        show_frame(browser, number)
        assert np.linalg.norm(peak(shown) - place(1)) < 1.0  # one voxel is 2 mm, and the ends were 3 mm off
        led = np.array(moved.GetTransformToParent().TransformPoint(*place(number)))
        assert np.linalg.norm(led - place(1)) < 1.0
        assert np.linalg.norm(points_of(marks)[0] - place(number)) < 1.0
    assert np.linalg.norm(peak(found.mean) - place(1)) < 0.5
    assert found.report["similarity"]["after"]["rmse"] < 0.5 * found.report["similarity"]["before"]["rmse"]
    table = found.reportTable.GetTable()
    rows = [table.GetValue(n, 0).ToString() for n in range(table.GetNumberOfRows())]
    assert "liver, time 1.5 s, folded cells" in rows
    assert "Difference (RMSE), mean over all pairs" in rows


def test_the_transform_of_a_frame_shows_what_was_computed(series, runner):
    """Slicer's own resampling through the transform gives the aligned image."""
    found = run(runner, series, want_uncertainty=False, want_mean=False)
    assert (found.mean, found.uncertainty) == (None, None)
    for number in (0, 2):
        aligned, image = (s.GetNthDataNode(number) for s in (found.aligned, series))
        reslice = vtk.vtkImageReslice()
        reslice.SetInputData(image.GetImageData())
        through = vtk.vtkGeneralTransform()
        through.PostMultiply()
        ijk_to_ras, ras_to_ijk = vtk.vtkMatrix4x4(), vtk.vtkMatrix4x4()
        aligned.GetIJKToRASMatrix(ijk_to_ras)
        image.GetRASToIJKMatrix(ras_to_ijk)
        through.Concatenate(ijk_to_ras)
        through.Concatenate(found.transforms.GetNthDataNode(number).GetTransformFromParent())
        through.Concatenate(ras_to_ijk)
        reslice.SetResliceTransform(through)
        reslice.SetInterpolationModeToLinear()
        reslice.SetOutputExtent(aligned.GetImageData().GetExtent())
        reslice.SetOutputSpacing(1, 1, 1)
        reslice.SetOutputOrigin(0, 0, 0)
        reslice.Update()
        out = vtk.util.numpy_support.vtk_to_numpy(reslice.GetOutput().GetPointData().GetScalars())
        inner = (slice(3, -3),) * 3
        error = np.abs(out.reshape(SHAPE) - array_of(aligned))[inner]
        assert error.max() < 0.5


def test_volumes_to_one_of_them(scene, runner):
    nodes = blobs()
    cases.add_parent(scene, nodes[2], np.diag([1.0, 1, 1, 1]) + np.array([[0, 0, 0, 1.0]] + [[0] * 4] * 3))
    marked = (array_of(nodes[0]) > 50).astype(np.uint8)
    organ = cases.add_segmentation(scene, [marked], PLACE, [["tumour"]], "organ")
    before = [array_of(node).copy() for node in nodes]
    found = run(runner, nodes, fixed=0, carried=(organ,), marked=0)
    np.testing.assert_array_equal(array_of(found.aligned.GetNthDataNode(0)), before[0])
    for number in range(COUNT):
        assert np.linalg.norm(peak(found.aligned.GetNthDataNode(number)) - place(0)) < 1.2
    for node, array in zip(nodes, before, strict=True):
        np.testing.assert_array_equal(array_of(node), array)
        assert node.GetScene() is scene
    assert found.carried[0].GetNumberOfDataNodes() == COUNT
    assert found.report["fixed"] == 0


def test_a_cancelled_run_leaves_the_scene_as_it_was(series, runner):
    before = ids()
    long = Settings(device="cpu", threads=1, effort="accurate")
    registration = GroupRegistration(GroupRequest(series, long), runner)
    registration.cancel()
    with pytest.raises(Cancelled, match="as it was"):
        wait_for(registration)
    assert ids() == before
    assert run(runner, series, want_uncertainty=False).aligned is not None


def test_a_scene_that_changed_meanwhile_gets_nothing(series, runner):
    registration = GroupRegistration(GroupRequest(series, QUICK), runner)
    series.RemoveDataNodeAtValue("4")
    before = ids()
    with pytest.raises(InputError, match="was changed during the run"):
        wait_for(registration)
    assert ids() == before
    registration = GroupRegistration(GroupRequest(series, QUICK), runner)
    slicer.mrmlScene.RemoveNode(series)
    with pytest.raises(InputError, match="removed from the scene"):
        wait_for(registration)


def test_an_engine_that_refuses_leaves_the_scene_as_it_was(scene, runner):
    nodes = blobs()[:2]
    array_of(nodes[1])[:] = 7
    before = ids()
    with pytest.raises(InputError, match="Image 1 of the group"):
        run(runner, nodes)
    assert ids() == before


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"images": None}, "Choose a sequence"),
        ({"fixed": 3}, "frame to register to is number 3"),
        ({"marked": -1}, "marked frame is number -1"),
        ({"settings": Settings(similarity="mind")}, "not compared by 'mind'"),
        ({"settings": Settings(init="mass")}, "does not start from 'mass'"),
        ({"storage": "tiny"}, "'half' or 'full'"),
        ({"carried": "volume"}, "cannot be carried"),
    ],
)
def test_what_cannot_be_done_is_said_before_the_run(scene, runner, changes, words):
    nodes = blobs()
    if "carried" in changes:
        changes = {"carried": (nodes[0],)}
    with pytest.raises(InputError, match=words):
        GroupRegistration(GroupRequest(**({"images": nodes} | changes)), runner)


def test_the_console_registers_groups(scene, runner):
    """`logic.registerGroup`, with a callback, and without waiting."""
    from DiffeoReg import DiffeoRegLogic

    logic, nodes, seen = DiffeoRegLogic(), blobs(), []
    logic._runner = runner
    more = {"levels_mm": (4.0,), "iterations": (8,), "device": "cpu", "threads": 1, "similarity": "mse"}
    found = logic.registerGroup(
        nodes, toFrame=1, wantUncertainty=False, wantMean=False, settings=more, progressCallback=seen.append
    )
    assert (found.mean, found.uncertainty, found.report["fixed"]) == (None, None, 1)
    assert any(event.kind == "progress" and event.phase == "optimise" for event in seen)
    registration = logic.registerGroup(nodes, settings=more, waitForCompletion=False)
    assert not registration.finished
    registration.cancel()
    with pytest.raises(Cancelled):
        wait_for(registration)
