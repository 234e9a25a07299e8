"""Metamorphosis from request to nodes, with the real worker process on the real MRML scene."""

from __future__ import annotations

import numpy as np
import pytest
import slicer

from DiffeoRegLib.errors import Cancelled, InputError
from DiffeoRegLib.settings import Settings
from DiffeoRegPanel.console import wait_for
from DiffeoRegPanel.nodes.volumes import array_of, world_from_voxel
from DiffeoRegPanel.registration import Registration
from DiffeoRegPanel.request import Marks, Outputs, Region, Request
from Testing.slicer import test_registration as runs

QUICK = Settings(
    method="metamorphosis", init="mass", device="cpu", threads=1, levels_mm=(4.0,), iterations=(4,),
    working_spacing_mm=2.0, similarity="lncc",
)  # fmt: skip
LOOK = ("appearanceChange", "metamorphicVolume", "healthyVolume")


@pytest.fixture
def pair(scene):
    return runs._volume("006"), runs._volume("138")


def patient(fixed):
    """The fixed volume with a bright block in it, and a segmentation of that block's place."""
    array = array_of(fixed).copy()
    middle = tuple(slice(n // 2 - 3, n // 2 + 3) for n in array.shape)
    array[middle] = array.max()
    slicer.util.updateVolumeFromArray(fixed, array)
    marks = np.zeros(array.shape, np.uint8)
    marks[middle] = 1
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "tumour")
    node.CopyOrientation(fixed)
    slicer.util.updateVolumeFromArray(node, marks)
    return node, marks > 0


def test_a_run_shows_what_the_lesion_adds_and_fills_the_same_nodes_again(pair, runner):
    fixed, moving = pair
    tumour, inside = patient(fixed)
    request = Request(fixed, moving, QUICK, pathology=Marks(Region(tumour)))
    result = runs.run(request, runner)
    assert result.selfCheck.ok, result.selfCheck.sentence
    change, summed, healthy = (array_of(getattr(result, name)) for name in LOOK)
    moved = array_of(result.movedVolume)
    assert np.abs(change[inside]).mean() > 5 * np.abs(change[~inside]).mean() > 0
    gap = np.abs(summed - change - moved)[inside].mean()  # the moved volume is read through the kept map
    assert gap < 0.02 * moved[inside].mean()
    assert healthy[inside].mean() < 0.8 * array_of(fixed)[inside].mean()
    names = ("images 006 appearance change", "images 138 on images 006 with change",
             "images 006 without pathology")  # fmt: skip
    for name, wanted in zip(LOOK, names, strict=True):
        node = getattr(result, name)
        assert node.GetName() == wanted
        np.testing.assert_allclose(world_from_voxel(node), world_from_voxel(fixed))
    before = runs.ids()
    outputs = Outputs(transform=result.outputTransform, inverse=result.inverseTransform,
                      volume=result.movedVolume)  # fmt: skip
    again = runs.run(Request(fixed, moving, QUICK, pathology=Marks(Region(tumour)), outputs=outputs), runner)
    assert [getattr(again, name) for name in LOOK] == [getattr(result, name) for name in LOOK]
    assert runs.ids() == before


def test_marks_of_the_moving_volume_make_that_one_the_patient(pair, runner):
    fixed, moving = pair
    tumour, inside = patient(moving)
    moving.GetDisplayNode() or moving.CreateDefaultDisplayNodes()
    moving.GetDisplayNode().AutoWindowLevelOff()
    moving.GetDisplayNode().SetWindowLevel(321, 123)
    result = runs.run(Request(fixed, moving, QUICK, pathology=Marks(moving=Region(tumour))), runner)
    assert result.selfCheck.ok, result.selfCheck.sentence
    assert result.healthyVolume.GetName() == "images 138 on images 006 without pathology"
    assert result.healthyVolume.GetDisplayNode().GetWindow() == 321
    change, moved, healthy = (
        array_of(node) for node in (result.appearanceChange, result.movedVolume, result.healthyVolume)
    )
    marked = np.abs(change) > 0.2 * np.abs(change).max()
    assert marked.any()
    assert change[marked].mean() < 0  # the bright block goes
    assert healthy[marked].mean() < 0.8 * moved[marked].mean()
    assert 0.5 * inside.sum() < result.report["pathology"]["moving_mm3"] < 2 * inside.sum()


def test_both_volumes_are_marked_with_classes_and_a_hard_edge(pair, runner):
    fixed, moving = pair
    (one, inside), (other, _) = patient(fixed), patient(moving)
    labels = array_of(one).copy()
    labels[:2, :2, :2] = 5  # of another class, which is not chosen
    slicer.util.updateVolumeFromArray(one, labels)
    marks = Marks(Region(one, classes=("1",)), Region(other), 0.0)
    result = runs.run(Request(fixed, moving, QUICK, pathology=marks), runner)
    found = result.report["pathology"]
    assert found["fixed_mm3"] == pytest.approx(inside.sum(), rel=1e-3)
    assert found["moving_mm3"] > 0
    change = array_of(result.appearanceChange)
    assert not change[:2, :2, :2].any()
    assert result.report["inputs"]["fixed_pathology"]["edge_mm"] == 0.0


def test_a_run_without_marks_is_a_plain_one_and_warns(pair, runner):
    fixed, moving = pair
    tumour, _ = patient(fixed)
    slicer.util.updateVolumeFromArray(tumour, np.zeros_like(array_of(tumour)))
    plain = runs.run(Request(fixed, moving, QUICK.with_changes(method="svf")), runner)
    for marks in (Marks(), Marks(Region(tumour))):
        result = runs.run(Request(fixed, moving, QUICK, pathology=marks), runner)
        assert array_of(result.movedVolume) == pytest.approx(array_of(plain.movedVolume), abs=0)
        assert any("taken for healthy" in note for note in result.report["notes"])


def test_marks_that_cannot_be_used_are_refused_at_once_and_leave_the_scene(pair, runner):
    fixed, moving = pair
    tumour, _ = patient(fixed)
    whole, _ = patient(moving)
    slicer.util.updateVolumeFromArray(whole, np.ones_like(array_of(whole)))
    before = runs.ids()
    for settings, marks, words in (
        (runs.FAST, Marks(Region(tumour)), "does not use the fixed pathology"),
        (QUICK, Marks(moving=Region(whole)), "covers all of 'images 138'"),
        (QUICK, Marks(Region(tumour, classes=("3",))), "none of the chosen labels"),
    ):
        with pytest.raises(InputError, match=words):
            Registration(Request(fixed, moving, settings, pathology=marks), runner)
    assert runs.ids() == before


def test_cancel_and_failure_leave_the_scene_as_it_was(pair, runner):
    fixed, moving = pair
    tumour, _ = patient(fixed)
    request = Request(fixed, moving, QUICK, pathology=Marks(Region(tumour)))
    result = runs.run(request, runner)
    change = array_of(result.appearanceChange).copy()
    before = runs.ids()
    again = Request(fixed, moving, QUICK, pathology=Marks(Region(tumour)),
                    outputs=Outputs(transform=result.outputTransform))  # fmt: skip
    run = Registration(again, runner)
    run.cancel()
    with pytest.raises(Cancelled):
        wait_for(run)
    assert runs.ids() == before
    wrong = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "in the way")
    result.outputTransform.SetNodeReferenceID("DiffeoReg.Healthy", wrong.GetID())  # no image fits into it
    before = runs.ids()
    run = Registration(again, runner)
    with pytest.raises(InputError, match="cannot hold an image"):
        wait_for(run)
    assert runs.ids() == before
    np.testing.assert_array_equal(array_of(result.appearanceChange), change)


def test_the_console_takes_nodes_segments_and_labels(pair, scene):
    from DiffeoRegPanel.console import classes_of

    fixed, _ = pair
    tumour, _ = patient(fixed)
    organs = runs.segmentation_of("006", fixed)
    ids = organs.GetSegmentation().GetSegmentIDs()
    for given, classes in (
        (tumour, ()),
        ((tumour, 1), ("1",)),
        ((tumour, [1, "4"]), ("1", "4")),
        (organs, ()),
        ((organs, "posterior"), ids[1:]),
        ((organs, ["anterior", ids[1]]), ids),
    ):
        region = classes_of(given)
        assert region.classes == tuple(classes)
    assert classes_of(None) is None
    for given, words in (
        ((tumour, "core"), "whole numbers"),
        ((organs, ["anterior", "tail"]), "no segment called 'tail'"),
        (7, "is no region"),
    ):
        with pytest.raises(InputError, match=words):
            classes_of(given)
