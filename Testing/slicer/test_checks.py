"""Every request that cannot be carried out is refused in one sentence that says what to do."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import slicer
import vtk

from DiffeoRegLib import catalog
from DiffeoRegLib.errors import DiffeoRegError, InputError
from DiffeoRegLib.settings import Settings
from DiffeoRegLib.volumes import checks as engine_checks
from DiffeoRegPanel import checks_images
from DiffeoRegPanel.checks import check_request, check_still_there
from DiffeoRegPanel.request import Marks, Matching, Outputs, Region, Request
from Testing.slicer import region_cases as cases


@pytest.fixture
def good(scene):
    """A request that nothing is wrong with."""
    fixed = cases.add_volume(cases.FIXED_SHAPE, cases.FIXED_PLACE, "fixed")
    moving = cases.add_volume(cases.MOVING_SHAPE, cases.MOVING_PLACE, "moving")
    return Request(fixed, moving)


def refused(request, *words, **changes):
    """The request, changed, is refused in one sentence with these words; the scene stays as it is."""
    request = dataclasses.replace(request, **changes)
    scene = slicer.mrmlScene
    before = scene.GetNumberOfNodes()
    with pytest.raises(InputError) as caught:
        check_request(request)
    sentence = str(caught.value)
    for word in words:
        assert word in sentence, sentence
    assert sentence.endswith(".")
    assert ": " in sentence, f"says nothing about what to do: {sentence}"
    assert scene.GetNumberOfNodes() == before


def volume(name, array=None, place=cases.MOVING_PLACE, kind="vtkMRMLScalarVolumeNode"):
    return cases.add_volume(cases.MOVING_SHAPE if array is None else array, place, name, kind)


def label_map(name="labels"):
    return volume(name, cases.labels(), kind="vtkMRMLLabelMapVolumeNode")


def organs(scene, name="organs"):
    names = [["liver", "tumour", "spine"], ["ball"]]
    return cases.add_segmentation(scene, [cases.labels(), cases.ball()], cases.MOVING_PLACE, names, name)


def landmarks(scene, count, name="points"):
    node = scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", name)
    for position in np.random.default_rng(0).normal(0, 9, (count, 3)):
        node.AddControlPoint(vtk.vtkVector3d(*position))
    return node


def transform(scene, name="T", kind="vtkMRMLTransformNode"):
    return scene.AddNewNodeByClass(kind, name)


def test_a_good_request_passes_without_a_word(scene, good):
    assert check_request(good) == []
    everything = dataclasses.replace(
        good,
        initial=transform(scene, "start"),
        fixed_mask=Region(organs(scene), "id-liver"),
        moving_mask=Region(label_map(), exclude=True),
        guidance=Matching(fixed_points=landmarks(scene, 5), moving_points=landmarks(scene, 5)),
        evaluation=Matching(Region(label_map("a")), Region(label_map("b"))),
        segmentations=(organs(scene), label_map()),
        markups=(landmarks(scene, 3),),
        outputs=Outputs(transform(scene), transform(scene, "inverse"), volume("out")),
    )
    assert check_request(everything) == []
    check_still_there(everything)


def test_nothing_chosen(good):
    refused(good, "No fixed volume is chosen", "choose the image", fixed=None)
    refused(good, "No moving volume is chosen", "choose the image", moving=None)


def test_the_same_volume_twice(good):
    refused(good, "'fixed' is chosen as fixed and as moving", "two different", moving=good.fixed)


def test_what_is_no_image(scene, good):
    refused(good, "'organs' is a segmentation", "choose an image as moving", "mask", moving=organs(scene))
    refused(good, "'labels' is a label map", "choose an image as fixed", fixed=label_map())
    refused(good, "'T' is not a volume", moving=transform(scene))
    refused(
        good, "'empty' has no image data", "load", moving=transform(scene, "empty", "vtkMRMLScalarVolumeNode")
    )
    colour = volume("photo", np.zeros((8, 8, 8, 3), np.uint8), kind="vtkMRMLVectorVolumeNode")
    refused(good, "'photo' has 3 values per voxel", "Vector to Scalar Volume", moving=colour)


def test_a_frame_of_a_sequence(scene, good):
    frames = scene.AddNewNodeByClass("vtkMRMLSequenceNode", "frames")
    for time in ("0", "1"):
        frames.SetDataNodeAtValue(volume(f"frame {time}"), time)
    browser = scene.AddNewNodeByClass("vtkMRMLSequenceBrowserNode", "heart beat")
    browser.SetAndObserveMasterSequenceNodeID(frames.GetID())
    slicer.vtkSlicerSequencesLogic().UpdateProxyNodesFromSequences(browser)
    proxy = browser.GetProxyNode(frames)
    words = ("shows a frame of a sequence", "'heart beat'", "clone")
    refused(good, "moving volume", *words, moving=proxy)
    refused(good, "fixed volume", *words, fixed=proxy)
    refused(good, "segmentation to transfer", *words, segmentations=(proxy,))


def test_values_that_cannot_be_aligned(good):
    flat = np.full(cases.MOVING_SHAPE, 7, np.int16)
    refused(good, "'flat' has the same value (7) everywhere", "choose another", moving=volume("flat", flat))
    broken = np.full(cases.MOVING_SHAPE, np.nan, np.float32)
    refused(good, "'broken' holds no valid value", "NaN", moving=volume("broken", broken))
    broken[3] = 5
    refused(good, "has the same value (5)", moving=volume("nearly", broken))
    broken[4] = np.random.default_rng(0).random(broken[4].shape)
    broken[5] = np.inf
    assert check_request(dataclasses.replace(good, moving=volume("usable", broken))) == []


def test_sizes(good):
    def random(*shape):
        return np.random.default_rng(0).random(shape, np.float32)

    assert checks_images.SHORTEST_AXIS == engine_checks.SHORTEST_AXIS
    refused(
        good, "'thin' (20 x 3 x 20 voxels) is too thin", "4 voxels", moving=volume("thin", random(20, 3, 20))
    )
    refused(good, "too thin", moving=volume("line", random(1, 1, 20)))
    one, other = volume("slice", random(1, 20, 20)), volume("slice 2", random(1, 20, 24))
    refused(good, "'slice' is a single slice and 'fixed' is a volume", "two volumes", moving=one)
    assert check_request(Request(one, other)) == []


def test_voxels_without_size(scene, good):
    squashed = volume("squashed")
    cases.add_parent(scene, squashed, np.diag([1.0, 1.0, 0.0, 1.0]))
    refused(good, "'squashed' have no size in one direction", "Volumes module", moving=squashed)


def test_bent_parents_of_any_input(scene, good):
    bent = volume("bent image")
    cases.add_warped_parent(scene, bent)
    refused(good, "'bent image' is under the non-linear transform 'bent'", "take it out", moving=bent)
    refused(good, "'bent image'", "non-linear", fixed=bent)
    for field, make in (
        ("fixed_mask", lambda: Region(organs(scene, "bent node"))),
        ("evaluation", lambda: Matching(Region(organs(scene, "bent node")), Region(organs(scene)))),
        ("segmentations", lambda: (organs(scene, "bent node"),)),
        ("markups", lambda: (landmarks(scene, 3, "bent node"),)),
    ):
        value = make()
        cases.add_warped_parent(scene, scene.GetFirstNodeByName("bent node"))
        refused(good, "'bent node' is under the non-linear transform", **{field: value})
        scene.RemoveNode(scene.GetFirstNodeByName("bent node"))


def test_masks(scene, good):
    hollow = transform(scene, "hollow", "vtkMRMLSegmentationNode")
    refused(good, "'hollow' has no segments", fixed_mask=Region(hollow))
    hollow.GetSegmentation().AddEmptySegment("a", "a")
    refused(good, "'hollow' is empty", "mark at least one voxel", moving_mask=Region(hollow))
    away = organs(scene, "away")
    cases.add_parent(scene, away, cases.rotation((0, 0, 0), (500, 0, 0)))
    refused(good, "'away' does not touch the volume 'moving'", "drawn on it", moving_mask=Region(away))
    refused(good, "'fixed'", "no segmentation and no label map", fixed_mask=Region(good.fixed))
    all_of_it = volume("all", np.ones(cases.MOVING_SHAPE, np.uint8), kind="vtkMRMLLabelMapVolumeNode")
    refused(good, "excludes all of 'moving'", "invert it", moving_mask=Region(all_of_it, exclude=True))
    assert check_request(dataclasses.replace(good, moving_mask=Region(all_of_it))) == []


def test_halves_of_what_corresponds(scene, good):
    organ, points = Region(organs(scene)), landmarks(scene, 4)
    refused(good, "guidance", "moving volume is missing", guidance=Matching(fixed=organ))
    refused(good, "evaluation", "fixed volume is missing", evaluation=Matching(moving=organ))
    refused(good, "landmarks of the moving", "missing", guidance=Matching(fixed_points=points))
    refused(good, "landmarks of the fixed", "missing", evaluation=Matching(moving_points=points))


def test_landmarks(scene, good):
    four, three = landmarks(scene, 4, "four"), landmarks(scene, 3, "three")
    refused(good, "'four' has 4", "'three' has 3", "same order", guidance=Matching(None, None, four, three))
    none = landmarks(scene, 0, "none")
    refused(good, "'none' has no placed points", "place them", evaluation=Matching(None, None, four, none))
    refused(good, "'fixed' is not a point list", evaluation=Matching(None, None, good.fixed, four))


def test_segmentations_with_nothing_or_little_in_common(scene, good):
    kidney = cases.add_segmentation(scene, [cases.ball()], cases.MOVING_PLACE, [["kidney"]], "kidneys")
    one = Region(organs(scene))
    refused(good, "'organs' and 'kidneys' have no segment in common", guidance=Matching(one, Region(kidney)))
    liver = cases.add_segmentation(scene, [cases.ball()], cases.MOVING_PLACE, [["Liver"]], "livers")
    notes = check_request(dataclasses.replace(good, evaluation=Matching(one, Region(liver))))
    assert len(notes) == 2
    assert "1 of the 4 segments of 'organs' exist on both sides" in notes[0]
    assert "overlap" in notes[1]


def test_what_the_method_needs(monkeypatch, scene, good):
    needy = dataclasses.replace(
        catalog.CARDS["svf"], title="Needy", needs_pathology_mask=True, needs_region_labels=True
    )
    monkeypatch.setitem(catalog.CARDS, "needy", needy)
    region = Region(organs(scene))
    request = dataclasses.replace(good, settings=Settings(method="needy"))
    marks = Marks(fixed=region, moving=region)
    refused(request, "'Needy' needs regions", "choose a segmentation", pathology=marks)
    hollow = Region(transform(scene, "hollow", "vtkMRMLSegmentationNode"))
    refused(request, "'hollow' has no segments", pathology=Marks(moving=hollow), regions=region)
    refused(request, "'hollow' has no segments", pathology=marks, regions=hollow)
    refused(request, "soft edge", "choose 0 mm or more", pathology=Marks(edge_mm=-1.0), regions=region)
    assert check_request(dataclasses.replace(request, regions=region)) != []  # no marks: the engine warns
    whole = dataclasses.replace(
        request,
        pathology=marks,
        regions=region,
        stiffness={"id-liver": "soft", "gone": (1.0, 0.0, 0.0, 0.0)},
    )
    notes = check_request(whole)
    assert any("Stiffness" in note and "gone" in note and "id-liver" not in note for note in notes)
    assert any("overlap" in note and "further down in the list" in note for note in notes)
    for given, what in (
        ({"pathology": Marks(fixed=region)}, "fixed pathology"),
        ({"pathology": Marks(moving=region)}, "moving pathology"),
        ({"regions": region}, "regions"),
    ):
        refused(good, f"does not use the {what} 'organs'", "remove it", **given)
    refused(good, "does not use a stiffness", "leave it out", stiffness={"id-liver": "soft"})
    with pytest.raises(DiffeoRegError, match="There is no method 'sfv'"):
        check_request(dataclasses.replace(good, settings=Settings(method="sfv")))


def test_regions_belong_to_the_moving_volume(scene, good):
    request = dataclasses.replace(good, settings=Settings(method="rdmm-regions"))
    refused(request, "needs regions", "a segmentation of the moving volume")
    far = cases.MOVING_PLACE.copy()
    far[:3, 3] += 500
    away = cases.add_segmentation(scene, [cases.labels()], far, [["liver", "tumour", "spine"]], "away")
    refused(request, "'away' does not touch the volume 'moving'", regions=Region(away))
    good.moving.SetOrigin(0, 0, 5000)  # the fixed volume may lie anywhere
    far[2, 3] = 5000
    far[:2, 3] = 0
    near = cases.add_segmentation(scene, [cases.labels()], far, [["liver", "tumour", "spine"]], "near")
    check_request(dataclasses.replace(request, regions=Region(near)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stiffness": {"id-liver": "hard"}}, ("Stiffness of liver", "'hard'", "soft")),
        ({"stiffness": {"id-liver": (2.0,)}}, ("Stiffness of liver", "1 kernels", "4")),
        ({"stiffness": {"id-liver": (0.0,) * 4}}, ("Stiffness of liver", "not all 0")),
        ({"rest": (1.0, -1.0, 0.0, 0.0)}, ("Stiffness of everything else", "negative")),
        ({"settings": Settings(method="rdmm-regions", kernel_sigmas=(0.1, 0.2))}, ("normal", "4", "2")),
    ],
)
def test_a_stiffness_that_means_nothing_is_refused(scene, good, changes, words):
    request = dataclasses.replace(
        good, settings=Settings(method="rdmm-regions"), regions=Region(organs(scene))
    )
    refused(request, *words, **{"stiffness": {"id-liver": "normal"}, **changes})


def test_outputs_that_are_inputs_or_each_other(scene, good):
    one = transform(scene, "one")
    refused(good, "'one' is chosen as inverse transform and as output transform", outputs=Outputs(one, one))
    refused(good, "'one'", "initial transform", "new one", initial=one, outputs=Outputs(transform=one))
    refused(
        good, "'moving' is chosen as output volume and as moving volume", outputs=Outputs(volume=good.moving)
    )
    organ = label_map()
    refused(
        good,
        "'labels'",
        "output volume",
        "fixed mask",
        fixed_mask=Region(organ),
        outputs=Outputs(volume=organ),
    )


def test_outputs_of_the_wrong_kind(scene, good):
    refused(
        good, "'labels' cannot hold the moved image", "scalar volume", outputs=Outputs(volume=label_map())
    )
    refused(good, "'out' is not a transform", outputs=Outputs(transform=volume("out")))
    linear = transform(scene, "line", "vtkMRMLLinearTransformNode")
    refused(good, "'line'", "cannot hold a deformation", outputs=Outputs(inverse=linear))
    affine = dataclasses.replace(good, settings=Settings(method="affine"))
    assert check_request(dataclasses.replace(affine, outputs=Outputs(transform=linear))) == []
    refused(good, "stored in 'double'", "choose half or full", outputs=Outputs(storage="double"))


def test_outputs_that_move_the_inputs(scene, good):
    output = transform(scene, "earlier result")
    between = cases.add_parent(scene, good.moving, np.eye(4))
    between.SetAndObserveTransformNodeID(output.GetID())
    refused(
        good, "'moving' lies under 'earlier result'", "take 'moving' out", outputs=Outputs(transform=output)
    )
    organ = organs(scene)
    organ.SetAndObserveTransformNodeID(output.GetID())
    good.moving.SetAndObserveTransformNodeID(None)
    refused(
        good, "'organs' lies under 'earlier result'", segmentations=(organ,), outputs=Outputs(inverse=output)
    )


def test_initial_transform(scene, good):
    refused(good, "'moving' is not a transform", initial=good.moving)
    parent = cases.add_parent(scene, good.moving, np.eye(4))
    refused(good, "act twice", "no initial transform", initial=parent)


def test_images_apart_are_a_note(scene, good):
    cases.add_parent(scene, good.moving, cases.rotation((0, 0, 0), (0, 400, 0)))
    (note,) = check_request(good)
    assert "'fixed' and 'moving' do not overlap" in note
    assert "brings them together" in note
    (note,) = check_request(dataclasses.replace(good, settings=Settings(init="identity")))
    assert "no initial alignment" in note


def test_what_cannot_be_transferred(scene, good):
    refused(good, "'fixed'", "cannot be transferred as markups", markups=(good.fixed,))
    refused(good, "'organs'", "cannot be transferred as model", models=(organs(scene),))
    refused(good, "model 'nothing' has no points", models=(transform(scene, "nothing", "vtkMRMLModelNode"),))
    refused(
        good,
        "'hollow' has no segments",
        segmentations=(transform(scene, "hollow", "vtkMRMLSegmentationNode"),),
    )


def test_other_scenes_and_removed_nodes(scene, good):
    elsewhere = slicer.vtkMRMLScene()
    stranger = elsewhere.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "stranger")
    stranger.SetAndObserveImageData(good.moving.GetImageData())
    refused(good, "'stranger'", "different scenes", "same scene", moving=stranger)
    lost = label_map("lost")
    scene.RemoveNode(lost)
    refused(good, "fixed mask 'lost' is no longer in the scene", "choose another", fixed_mask=Region(lost))
    gone = volume("gone")
    scene.RemoveNode(gone)
    refused(good, "'gone' is no longer in the scene", fixed=gone)


@pytest.mark.parametrize("name", ["fixed", "moving", "organs", "points", "ball", "result"])
def test_nodes_removed_during_the_run(scene, good, name):
    mesh = transform(scene, "ball", "vtkMRMLModelNode")
    request = dataclasses.replace(
        good, segmentations=(organs(scene),), markups=(landmarks(scene, 2),), models=(mesh,),
        outputs=Outputs(volume=volume("result")), fixed_mask=Region(label_map("mask")),
    )  # fmt: skip
    check_still_there(request)
    scene.RemoveNode(scene.GetFirstNodeByName("mask"))  # it has been read
    check_still_there(request)
    scene.RemoveNode(scene.GetFirstNodeByName(name))
    with pytest.raises(InputError, match=rf"'{name}' was removed .* during the run.*apply again"):
        check_still_there(request)


def test_a_closed_scene(scene, good):
    scene.Clear(0)
    with pytest.raises(InputError, match="removed from the scene"):
        check_still_there(good)
