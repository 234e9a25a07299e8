"""Methods whose motion is a geodesic, from request to nodes: regions, momentum, widths, the way there.

With the real worker process on the real MRML scene; the shipped pair, kernels wide enough to be quick.
"""

from __future__ import annotations

import numpy as np
import pytest
import slicer

from DiffeoRegLib.errors import DiffeoRegError, InputError
from DiffeoRegLib.settings import Settings
from DiffeoRegPanel import console
from DiffeoRegPanel.nodes import momentum
from DiffeoRegPanel.nodes.sequences import show_item
from DiffeoRegPanel.nodes.volumes import image_of, world_from_voxel
from DiffeoRegPanel.path import Path as Way
from DiffeoRegPanel.path import sequence_along, shot_again
from DiffeoRegPanel.registration import Registration
from DiffeoRegPanel.request import Outputs, Region, Request
from Testing.slicer import test_registration as runs
from Testing.slicer.test_nodes_volumes import reloaded

QUICK = Settings(
    method="rdmm-regions", init="mass", device="cpu", threads=1, levels_mm=(4.0,), iterations=(4,),
    working_spacing_mm=2.0, kernel_sigmas=(0.1, 0.15, 0.2, 0.4), preweight_sigma=0.1,
)  # fmt: skip
ALL = {"want_regulariser": True, "storage": "full"}


@pytest.fixture
def pair(scene):
    fixed, moving = runs._volume("006"), runs._volume("138")
    fixed.SetName("CT")
    moving.SetName("MR")
    return fixed, moving


def request_for(pair, **changes):
    """A run with two regions of the moving volume, the first soft."""
    regions = changes.pop("regions", None) or runs.segmentation_of("138", pair[1])
    return Request(
        *pair, **{
            "settings": QUICK, "regions": Region(regions), "outputs": Outputs(**ALL),
            "stiffness": {segment(regions, "anterior"): "soft", segment(regions, "posterior"): (0, 0, 1, 0)},
            **changes,
        }
    )  # fmt: skip


def segment(node, name):
    return node.GetSegmentation().GetSegmentIdBySegmentName(name)


def named(name):
    node = slicer.mrmlScene.GetFirstNodeByName(name)
    assert node is not None, name
    return node


def cells(table):
    """Quantity -> last value of the report table."""
    text = table.GetTable()
    return {text.GetValue(row, 0).ToString(): text.GetValue(row, 3).ToString()
            for row in range(text.GetNumberOfRows())}  # fmt: skip


def hierarchy():
    return slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)


def put_in_folder(node):
    """A folder in the subject hierarchy that is named after the node, and the node in it."""
    folder = hierarchy().CreateFolderItem(hierarchy().GetSceneItemID(), f"study of {node.GetName()}")
    hierarchy().CreateItem(folder, node)


def folder_of(node):
    parent = hierarchy().GetItemParent(hierarchy().GetItemByDataNode(node))
    return hierarchy().GetItemName(parent)


def test_a_run_with_regions_saved_loaded_and_followed(pair, runner, scene, tmp_path):
    fixed, moving = pair
    for volume in pair:
        put_in_folder(volume)
    result = runs.run(request_for(pair), runner)
    assert result.selfCheck.ok, result.selfCheck.sentence
    assert result.velocity is None
    assert result.way is result.momentum
    report = cells(result.reportTable)
    assert report["Region anterior, stiffness"] == "soft"
    assert report["Region posterior, stiffness"] == "0, 0, 1, 0"
    assert report["Region everything else, stiffness"] == "rigid-like"
    assert float(report["Region anterior, displacement, mean"]) > 0
    assert_widths(result, pair)
    points = runs.some_points(fixed)
    whole, back = (runs.mapped(node, points) for node in (result.outputTransform, result.inverseTransform))
    assert np.abs(whole - points).max() > 1.0

    reloaded(scene, tmp_path, "mrb")
    fixed, moving = named("CT"), named("MR")
    node = named("Momentum, MR -> CT")
    assert [other.GetName() for other in momentum.other_nodes(node)] == [
        "Pre-weights 1-3, MR -> CT", "Pre-weights 4-4, MR -> CT"
    ]  # fmt: skip
    again, inverse = shot_again(node, runner)
    assert np.abs(runs.mapped(again, points) - whole).max() < 0.02  # kept at half the resolution of the run's
    assert np.abs(runs.mapped(inverse, points) - back).max() < 0.05
    assert again.GetNodeReference("spatialRegistrationMoving") is moving
    way = Way(node, runner)
    half = runs.mapped(runs._position(way, 0.5), points)
    assert moving.GetTransformNodeID() == way.node.GetID()
    assert np.abs(half - (points + whole) / 2).max() < 0.3
    assert np.abs(half - whole).max() > 0.3
    way.close()
    assert moving.GetTransformNodeID() is None
    sequence, browser = sequence_along(node, runner, 3)
    assert [sequence.GetNthIndexValue(n) for n in range(3)] == ["0", "50", "100"]
    proxy = browser.GetProxyNode(sequence)
    assert np.abs(runs.mapped(proxy, points) - whole).max() < 0.02
    show_item(browser, 1)
    assert np.abs(runs.mapped(proxy, points) - half).max() < 1e-3
    show_item(browser, 0)
    assert np.abs(runs.mapped(proxy, points) - points).max() < 1e-3
    slicer.mrmlScene.RemoveNode(momentum.other_nodes(node)[0])
    with pytest.raises(InputError, match="a part of it was removed"):
        Way(node, runner)


def assert_widths(result, pair):
    """The soft region is softer than what surrounds it, on both volumes, in one window of colours."""
    fixed, moving = pair
    start, end = result.movingRegulariser, result.fixedRegulariser
    assert (start.GetName(), end.GetName()) == ("MR regulariser t=0 (mm)", "CT regulariser t=1 (mm)")
    assert np.array_equal(world_from_voxel(start), world_from_voxel(moving))
    assert np.array_equal(world_from_voxel(end), world_from_voxel(fixed))
    widths, labels = image_of(start).array, slicer.util.arrayFromVolume(runs._volume("138", labels=True))
    assert widths[labels == 1].mean() < widths[labels == 0].mean() - 2.0  # mm
    displays = [node.GetDisplayNode() for node in (start, end)]
    assert displays[0].GetWindowLevelMax() == displays[1].GetWindowLevelMax() >= widths.max()
    assert displays[0].GetColorNode() is displays[1].GetColorNode()
    others = momentum.other_nodes(result.momentum)
    assert {folder_of(node) for node in (end, result.momentum, *others)} == {"study of CT"}
    assert folder_of(start) == "study of MR"


def test_regions_deleted_during_the_run_were_read_already(pair, runner):
    regions = runs.segmentation_of("138", pair[1])
    registration = Registration(request_for(pair, regions=regions), runner)
    slicer.mrmlScene.RemoveNode(regions)
    assert runs._end(registration) is None
    assert "Region anterior, stiffness" in cells(registration.result.reportTable)


def test_another_run_fills_the_same_nodes_and_drops_what_is_left_over(pair, runner):
    outputs = {"want_inverse": False, "want_volume": True, **ALL}
    first = runs.run(request_for(pair, outputs=Outputs(**outputs)), runner)
    parts, before = {part.GetID() for part in momentum.other_nodes(first.momentum)}, set(runs.ids())
    assert len(parts) == 2
    filled = Outputs(transform=first.outputTransform, volume=first.movedVolume, **outputs)
    settings = QUICK.with_changes(method="lddmm", kernel_sigmas=(0.1, 0.2))
    second = runs.run(Request(*pair, settings, outputs=filled), runner)
    assert second.momentum is first.momentum
    assert second.movingRegulariser is first.movingRegulariser
    assert before - set(runs.ids()) == parts
    assert set(runs.ids()) <= before
    assert momentum.other_nodes(second.momentum) == []
    assert len(momentum.geodesic_of(second.momentum)["arrays"]) == 1


def test_both_volumes_under_transforms(pair, runner):
    """The widths lie under the transform of their volume, and the momentum leads to the same transform."""
    fixed, moving = pair
    parents = runs.put_under_parents(fixed, moving)
    regions = runs.segmentation_of("138", moving)
    regions.SetAndObserveTransformNodeID(parents[1].GetID())
    result = runs.run(request_for(pair, regions=regions), runner)
    assert result.selfCheck.ok, result.selfCheck.sentence
    assert result.movingRegulariser.GetTransformNodeID() == parents[1].GetID()
    assert result.fixedRegulariser.GetTransformNodeID() == parents[0].GetID()
    again, inverse = shot_again(result.momentum, runner)
    points = runs.some_points(fixed)
    for node, given in ((again, result.outputTransform), (inverse, result.inverseTransform)):
        assert np.abs(runs.mapped(node, points) - runs.mapped(given, points)).max() < 0.05


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"kernel_sigmas": (0.01, 0.02, 0.03, 0.04)}, "narrowest kernel"),
        ({"levels_mm": (4.0, 2.0)}, "do not match"),
    ],
)
def test_what_the_engine_refuses_leaves_the_scene_alone(pair, runner, settings, words):
    request = request_for(pair, settings=QUICK.with_changes(**settings))
    before = runs.ids()
    with pytest.raises(DiffeoRegError, match=words):
        runs.run(request, runner)
    assert runs.ids() == before


def call(pair, **given):
    """The request of a call from the console."""
    defaults = {name: None for name in (
        "initialTransform", "fixedMask", "movingMask", "fixedPathology", "movingPathology", "pathologyEdge",
        "regionSegmentation", "stiffness",
        "movingSegmentation", "movingMarkups", "movingModels", "outputTransform", "inverseTransform",
        "outputVolume",
        *(f"{side}{use}{kind}" for side in ("fixed", "moving") for use in ("Guidance", "Evaluation")
          for kind in ("", "Points")),
    )}  # fmt: skip
    flags = {"excludeFixedMask": False, "excludeMovingMask": False, "wantInverse": True, "wantVolume": True,
             "wantVelocity": True, "wantJacobian": False, "wantRegulariser": True, "storage": "half",
             "rest": "rigid-like"}  # fmt: skip
    return console.request_from_call(*pair, QUICK, **{**defaults, **flags, **given})


def test_a_call_names_segments_and_says_stiffness_in_any_form(pair):
    regions = runs.segmentation_of("138", pair[1])
    stiffness = {"anterior": "0.1, 0.4, 0.5, 0", "posterior": [1, 0, 0, 0]}
    request = call(pair, regionSegmentation=regions, stiffness=stiffness, rest="stiff")
    assert request.regions.node is regions
    found = [request.stiffness[segment(regions, name)] for name in ("anterior", "posterior")]
    assert found == [(0.1, 0.4, 0.5, 0.0), (1.0, 0.0, 0.0, 0.0)]
    assert (request.rest, request.outputs.want_regulariser) == ("stiff", True)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"stiffness": {"anterior": "hard"}}, "'hard'"),
        ({"stiffness": {"anterior": 0.5}}, "0.5 is no stiffness"),
        ({"stiffness": {"tail": "soft"}}, "no segment called 'tail'"),
        ({"rest": None}, "None is no stiffness"),
    ],
)
def test_a_call_with_a_wrong_stiffness_is_refused(pair, given, words):
    with pytest.raises(InputError, match=words):
        call(pair, regionSegmentation=runs.segmentation_of("138", pair[1]), **given)


def test_a_method_with_regions_asks_for_them(pair, runner):
    with pytest.raises(InputError, match="needs regions: choose a segmentation of the moving volume"):
        Registration(call(pair), runner)
    with pytest.raises(InputError, match="This node holds no momentum"):
        shot_again(pair[0], runner)
