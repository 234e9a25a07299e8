"""Registration from request to nodes, with the real worker process on the real MRML scene."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import slicer
import vtk

from DiffeoRegLib.errors import Cancelled, DiffeoRegError, InputError
from DiffeoRegLib.settings import Settings
from DiffeoRegPanel.console import region_of, settings_of, wait_for
from DiffeoRegPanel.nodes.sequences import show_item
from DiffeoRegPanel.path import Path as FlowPath
from DiffeoRegPanel.path import sequence_along
from DiffeoRegPanel.registration import Registration, all_or_nothing
from DiffeoRegPanel.request import Matching, Outputs, Region, Request

SAMPLES = Path(__file__).resolve().parents[2] / "Resources" / "SampleData" / "hippocampus"
FAST = Settings(preset="brain-mr", effort="fast", device="cpu", threads=1)


@pytest.fixture
def pair(scene):
    return _volume("006"), _volume("138")


def _volume(number, *, labels=False):
    kind = "labels" if labels else "images"
    node = scene_node(
        f"{kind} {number}", "vtkMRMLLabelMapVolumeNode" if labels else "vtkMRMLScalarVolumeNode"
    )
    storage = slicer.vtkMRMLVolumeArchetypeStorageNode()
    storage.SetFileName(str(SAMPLES / kind / f"hippocampus_{number}.nii.gz"))
    assert storage.ReadData(node) == 1
    return node


def scene_node(name, kind):
    return slicer.mrmlScene.AddNewNodeByClass(kind, name)


def segmentation_of(number, volume):
    labels = _volume(number, labels=True)
    node = scene_node(f"segmentation {number}", "vtkMRMLSegmentationNode")
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    assert slicer.vtkSlicerSegmentationsModuleLogic.ImportLabelmapToSegmentationNode(labels, node)
    for index, name in enumerate(("anterior", "posterior")):
        node.GetSegmentation().GetNthSegment(index).SetName(name)
    slicer.mrmlScene.RemoveNode(labels)
    return node


def run(request, runner):
    return wait_for(Registration(request, runner))


def ids():
    scene = slicer.mrmlScene
    return [scene.GetNthNode(i).GetID() for i in range(scene.GetNumberOfNodes())]


def mapped(node, points):
    """World points that the node's from-parent direction leads to."""
    transform = vtk.vtkGeneralTransform()
    node.GetTransformFromWorld(transform)
    return np.array([transform.TransformPoint(*point) for point in points])


def some_points(volume, count=40):
    bounds = np.zeros(6)
    volume.GetRASBounds(bounds)
    low, high = bounds[::2], bounds[1::2]
    return low + (high - low) * np.random.default_rng(0).uniform(0.3, 0.7, (count, 3))


def test_everything_at_once(pair, runner):
    fixed, moving = pair
    segmentation = segmentation_of("138", moving)
    fixed_segmentation = segmentation_of("006", fixed)
    points = scene_node("points", "vtkMRMLMarkupsFiducialNode")
    places = some_points(moving, 5)
    for place in places:
        points.AddControlPoint(vtk.vtkVector3d(*place))
    request = Request(
        fixed, moving, FAST,
        evaluation=Matching(Region(fixed_segmentation), Region(segmentation)),
        segmentations=(segmentation,), markups=(points,),
        outputs=Outputs(want_jacobian=True),
    )  # fmt: skip
    result = run(request, runner)
    report = result.report
    assert result.selfCheck.ok, result.selfCheck.sentence
    assert result.selfCheck.share_of_range < 1e-3
    assert report["folds"]["folded_percent"] == 0
    assert report["labels"]["mean"]["final"]["dice"] > report["labels"]["mean"]["given"]["dice"] + 0.05
    assert result.outputTransform.GetNodeReferenceID("spatialRegistrationMoving") == moving.GetID()
    assert result.outputTransform.GetNodeReferenceID("spatialRegistrationFixed") == fixed.GetID()
    assert result.inverseTransform.GetNodeReferenceID("spatialRegistrationMoving") == fixed.GetID()
    there = mapped(result.outputTransform, some_points(fixed))
    back = mapped(result.inverseTransform, there)
    assert np.abs(back - some_points(fixed)).max() < 0.1
    carried = np.array([result.markups[0].GetNthControlPointPositionWorld(i) for i in range(5)])
    assert np.abs(mapped(result.outputTransform, carried) - places).max() < 0.1
    names = [result.segmentations[0].GetSegmentation().GetNthSegment(i).GetName() for i in range(2)]
    assert names == ["anterior", "posterior"]
    jacobian = slicer.util.arrayFromVolume(result.jacobianVolume)
    assert jacobian.min() > 0
    assert jacobian.std() > 0.01
    assert slicer.util.arrayFromVolume(result.movedVolume).shape == slicer.util.arrayFromVolume(fixed).shape
    assert result.reportTable.GetNumberOfColumns() > 2
    assert moving.GetTransformNodeID() is None
    assert segmentation.GetTransformNodeID() is None


def test_without_a_moved_volume_the_transform_is_applied(pair, runner):
    fixed, moving = pair
    outputs = Outputs(want_volume=False, want_inverse=False, want_velocity=False)
    result = run(Request(fixed, moving, FAST, outputs=outputs), runner)
    assert moving.GetTransformNodeID() == result.outputTransform.GetID()
    assert (result.movedVolume, result.inverseTransform, result.velocity) == (None, None, None)


def test_the_users_nodes_are_filled(pair, runner):
    transform = scene_node("mine", "vtkMRMLTransformNode")
    volume = scene_node("also mine", "vtkMRMLScalarVolumeNode")
    result = run(Request(*pair, FAST, outputs=Outputs(transform=transform, volume=volume)), runner)
    assert result.outputTransform is transform
    assert result.movedVolume is volume
    assert transform.GetName() == "mine"
    assert volume.GetImageData().GetNumberOfPoints() == pair[0].GetImageData().GetNumberOfPoints()


def put_under_parents(fixed, moving):
    """Each volume under a linear transform of its own."""
    parents = []
    for volume, angle in ((fixed, 20), (moving, -15)):
        turn = vtk.vtkTransform()
        turn.Translate(30, -20, 10)
        turn.RotateWXYZ(angle, 0.3, 0.2, 0.9)
        parent = scene_node(f"parent of {volume.GetName()}", "vtkMRMLLinearTransformNode")
        parent.SetMatrixTransformToParent(turn.GetMatrix())
        volume.SetAndObserveTransformNodeID(parent.GetID())
        parents.append(parent)
    return parents


def test_parent_transforms_of_the_inputs_are_respected(pair, runner):
    """Both volumes under linear transforms: the same anatomy must meet, and the parents stay as they are."""
    fixed, moving = pair
    plain = run(Request(fixed, moving, FAST), runner)
    parents = put_under_parents(fixed, moving)
    result = run(Request(fixed, moving, FAST), runner)
    assert result.selfCheck.ok, result.selfCheck.sentence
    assert fixed.GetTransformNodeID() == parents[0].GetID()
    assert moving.GetTransformNodeID() == parents[1].GetID()
    same = [report["similarity"]["final"]["lncc"] for report in (plain.report, result.report)]
    assert same[1] == pytest.approx(same[0], abs=0.03)


@pytest.mark.parametrize("at", [0.0, 0.1, 0.5, 0.9])
def test_cancel_leaves_everything_as_it_was(pair, runner, at):
    before = ids()
    registration = Registration(Request(*pair, FAST.with_changes(effort="accurate")), runner)
    _until(registration, at)
    registration.cancel()
    assert isinstance(_end(registration), Cancelled)
    assert ids() == before
    assert run(Request(*pair, FAST, outputs=Outputs(want_velocity=False)), runner).selfCheck.ok


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="POSIX signals")
def test_a_killed_worker_is_reported_and_the_next_run_works(pair, runner):
    before = ids()
    registration = Registration(Request(*pair, FAST.with_changes(effort="accurate")), runner)
    _until(registration, 0.3)
    os.kill(runner.pid, signal.SIGKILL)
    error = _end(registration)
    assert isinstance(error, DiffeoRegError)
    assert "memory" in str(error)
    assert ids() == before
    assert run(Request(*pair, FAST), runner).selfCheck.ok


def test_a_node_deleted_during_the_run(pair, runner):
    fixed, moving = pair
    registration = Registration(Request(fixed, moving, FAST), runner)
    slicer.mrmlScene.RemoveNode(moving)
    before = ids()
    error = _end(registration)
    assert isinstance(error, InputError)
    assert "removed" in str(error) or "deleted" in str(error)
    assert ids() == before


def test_a_failure_half_way_takes_the_new_nodes_back(scene):
    mine = scene_node("mine", "vtkMRMLTransformNode")
    with all_or_nothing(scene, []):
        pass  # the end of a batch lets slice views of earlier tests add nodes of their own
    before = ids()

    def fill():
        with all_or_nothing(scene, [mine]):
            scene_node("new", "vtkMRMLScalarVolumeNode")
            shift = vtk.vtkTransform()
            shift.Translate(1, 2, 3)
            mine.SetAndObserveTransformFromParent(shift)
            raise InputError("half way")

    with pytest.raises(InputError, match="half way"):
        fill()
    assert ids() == before
    assert np.allclose(mapped(mine, [(0, 0, 0)]), 0)


def test_the_way_to_the_result(pair, runner):
    """At 100 % the slider shows the result, at 0 % nothing has moved, and closing it leaves no trace."""
    fixed, moving = pair
    result = run(Request(fixed, moving, FAST), runner)
    before = ids()
    way = FlowPath(result.velocity, runner)
    points = some_points(fixed)
    shown = {fraction: mapped(_position(way, fraction), points) for fraction in (0.0, 0.5, 1.0)}
    assert moving.GetTransformNodeID() == way.node.GetID()
    assert np.abs(shown[0.0] - points).max() < 1e-3
    whole = mapped(result.outputTransform, points)
    assert np.abs(shown[1.0] - whole).max() < 0.05
    assert np.abs(shown[0.5] - points).max() < np.abs(whole - points).max()
    assert np.abs(shown[0.5] - points).max() > 0.2 * np.abs(whole - points).max()
    kept = way.keep()
    way.close()
    assert moving.GetTransformNodeID() is None
    assert sorted(ids()) == sorted([*before, kept.GetID()])


def test_the_way_as_a_sequence_to_play(pair, runner):
    fixed, _ = pair
    result = run(Request(*pair, FAST), runner)
    sequence, browser = sequence_along(result.velocity, runner, 3)
    assert [sequence.GetNthIndexValue(n) for n in range(3)] == ["0", "50", "100"]
    points = some_points(fixed)
    whole = mapped(result.outputTransform, points)
    assert np.abs(mapped(browser.GetProxyNode(sequence), points) - whole).max() < 0.05
    show_item(browser, 0)
    assert np.abs(mapped(browser.GetProxyNode(sequence), points) - points).max() < 1e-3
    with pytest.raises(InputError, match="at least 2 positions"):
        sequence_along(result.velocity, runner, 1)


def test_another_run_into_the_same_transform_leaves_no_second_report(pair, runner):
    first = run(Request(*pair, FAST, outputs=Outputs(want_jacobian=True)), runner)
    before = ids()
    outputs = Outputs(first.outputTransform, first.inverseTransform, first.movedVolume, want_jacobian=True)
    second = run(Request(*pair, FAST.with_changes(regularity=2.0), outputs=outputs), runner)
    assert ids() == before
    assert (second.reportTable, second.velocity) == (first.reportTable, first.velocity)
    assert second.report["displacement_mm"] != first.report["displacement_mm"]
    assert FlowPath(second.velocity, runner).node is None


def test_a_call_says_what_is_wrong_with_it(pair):
    fixed, _ = pair
    with pytest.raises(InputError, match="No such setting: spline"):
        settings_of("svf", "general", "fast", "auto", {"spline": 3})
    segmentation = segmentation_of("006", fixed)
    with pytest.raises(InputError, match="no segment called 'tail'"):
        region_of((segmentation, "tail"))
    region = region_of((segmentation, "anterior"), exclude=True)
    assert region.segment_id == segmentation.GetSegmentation().GetNthSegmentID(0)
    assert region.exclude
    assert region_of(None) is None
    assert region_of(segmentation).segment_id == ""


def _position(way, fraction):
    way.set(fraction)
    deadline = time.monotonic() + 60
    while way.busy and time.monotonic() < deadline:
        way.poll()
        time.sleep(0.01)
    assert way.fraction == fraction
    return way.node


def _until(registration, fraction):
    deadline = time.monotonic() + 60
    while fraction > 0 and time.monotonic() < deadline:
        for event in registration.poll():
            if event.kind == "progress" and event.fraction >= fraction:
                return
        assert not registration.finished, registration.error
        time.sleep(0.01)


def _end(registration):
    deadline = time.monotonic() + 60
    while not registration.finished and time.monotonic() < deadline:
        registration.poll()
        time.sleep(0.01)
    return registration.error
