"""Marks of a pathology: which classes count, and what a look at them says before a run."""

from __future__ import annotations

import time

import numpy as np
import pytest
import slicer
from vtk.util import numpy_support

from DiffeoRegLib.errors import InputError
from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.space.sample import tensor_from_array
from DiffeoRegLib.volumes.intensity import background
from DiffeoRegLib.volumes.volume import Volume
from DiffeoRegPanel.nodes.pathology import background_of, look_at, marks_of
from DiffeoRegPanel.request import Region
from Testing.slicer import region_cases as cases

SHAPE, PLACE = cases.MOVING_SHAPE, cases.MOVING_PLACE
LABEL_MAP = "vtkMRMLLabelMapVolumeNode"


@pytest.fixture
def patient(scene):
    """A head-like ball on an empty background, left out of no turn."""
    k, j, i = np.indices(SHAPE)
    array = np.zeros(SHAPE, np.float32)
    inside = ((k - 18) / 14) ** 2 + ((j - 26) / 20) ** 2 + ((i - 22) / 18) ** 2 < 1
    array[inside] = np.random.default_rng(0).uniform(50, 150, int(inside.sum()))
    node = cases.add_volume(array, PLACE, "patient")
    cases.add_parent(scene, node, cases.FIXED_TURN)
    return node


def label_map(patient, array=None, name="tumour", place=PLACE):
    node = cases.add_volume(cases.labels() if array is None else array, place, name, LABEL_MAP)
    node.SetAndObserveTransformNodeID(patient.GetTransformNodeID())
    return node


def organs(scene, patient):
    node = cases.organs(scene)
    node.SetAndObserveTransformNodeID(patient.GetTransformNodeID())
    return node


def test_the_chosen_labels_count_and_no_others(patient):
    node = label_map(patient)
    for classes, values in (((), [1, 2, 7]), (("2",), [2]), (("7", "1"), [1, 7]), (("2", "9"), [2])):
        found = marks_of(Region(node, classes=classes), patient)
        np.testing.assert_array_equal(found.array, np.isin(cases.labels(), values))
    seen = look_at(Region(node, classes=("2", "9")), patient)
    assert (seen.problem, seen.reported, seen.note) == ("", False, "Labels without a voxel in 'tumour': 9.")


def test_several_segments_of_several_layers_count(scene, patient):
    node = organs(scene, patient)
    chosen = Region(node, classes=("id-tumour", "id-ball"))
    wanted = (cases.labels() == 2) | (cases.ball() == 1)
    np.testing.assert_array_equal(marks_of(chosen, patient).array, wanted)
    np.testing.assert_array_equal(marks_of(Region(node, "id-tumour"), patient).array, cases.labels() == 2)


def test_what_cannot_be_used_is_said_in_one_sentence(scene, patient):
    node, segments = label_map(patient), organs(scene, patient)
    everything = label_map(patient, np.ones(SHAPE, np.uint8), "everything")
    head = label_map(patient, (slicer.util.arrayFromVolume(patient) > 0).astype(np.uint8), "head")
    away = PLACE.copy()
    away[:3, 3] += 400
    far = label_map(patient, name="elsewhere", place=away)
    hollow = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "hollow")
    for region, words in (
        (Region(node, classes=("3", "4")), ("none of the chosen labels (3, 4)", "it has 1, 2, 7")),
        (Region(everything), ("'everything' covers all of 'patient'", "inverted")),
        (Region(head), ("'head' covers all of 'patient'", "mask of the organ")),
        (Region(far), ("'elsewhere' does not touch 'patient'", "under a transform")),
        (Region(segments, classes=("id-liver", "gone")), ("no segment 'gone' any more",)),
        (Region(hollow), ("'hollow' has no segments",)),
        (Region(patient), ("no segmentation and no label map",)),
    ):
        seen = look_at(region, patient)
        assert all(word in seen.problem for word in words), seen.problem
        with pytest.raises(InputError, match=words[0].replace("(", r"\(").replace(")", r"\)")):
            marks_of(region, patient)


def test_large_marks_are_used_and_said(patient):
    left = (slicer.util.arrayFromVolume(patient) > 0) & (np.indices(SHAPE)[2] < 27)
    seen = look_at(Region(label_map(patient, left.astype(np.uint8))), patient)
    share = 100 * left.sum() / (slicer.util.arrayFromVolume(patient) > 0).sum()
    assert 55 < share < 80
    found = float(seen.note.partition(" covers ")[2].partition(" %")[0])
    assert found == pytest.approx(share, abs=2)
    assert (seen.problem, seen.reported) == ("", True)


def test_marks_without_a_voxel_are_those_of_a_healthy_volume(scene, patient):
    blank = label_map(patient, np.zeros(SHAPE, np.uint8), "blank")
    segments = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "unpainted")
    segments.GetSegmentation().AddEmptySegment("S1", "tumour")
    for region in (Region(blank), Region(segments)):
        seen = look_at(region, patient)
        assert seen.empty
        assert seen.reported
        assert seen.problem == ""
        assert "'patient' is taken for healthy" in seen.note
        assert not marks_of(region, patient).array.any()


def test_a_small_mark_is_seen_in_any_geometry(scene, patient):
    """One voxel of a finer, turned and shifted map, which a sparse look at the volume would miss."""
    fine = np.zeros((60, 60, 60), np.uint8)
    fine[31, 17, 40] = 1
    place = cases.rotation((11, -7, 23), (1, 2, -3)) @ np.diag([0.4, 0.4, 0.4, 1])
    seen = look_at(Region(label_map(patient, fine, "dot", place)), patient)
    assert (seen.problem, seen.note, seen.empty) == ("", "", False)


def cropped(scene, patient, array, start, place=PLACE):
    """A segmentation whose only segment keeps no more than its surroundings, as Slicer's do."""
    image = slicer.vtkOrientedImageData()
    first = np.array(start)[::-1]
    last = first + np.array(array.shape)[::-1] - 1
    image.SetExtent(*np.stack([first, last], axis=1).ravel().tolist())
    image.SetGeometryFromImageToWorldMatrix(cases.vtk_matrix(place))
    image.GetPointData().SetScalars(numpy_support.numpy_to_vtk(array.ravel(), deep=True))
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "cropped")
    segment = slicer.vtkSegment()
    segment.SetName("lesion")
    segment.AddRepresentation("Binary labelmap", image)
    node.GetSegmentation().AddSegment(segment, "id")
    node.SetAndObserveTransformNodeID(patient.GetTransformNodeID())
    return Region(node)


def test_segments_that_begin_anywhere_are_looked_at_where_they_are(scene, patient):
    head = (slicer.util.arrayFromVolume(patient) > 0).astype(np.uint8)
    box = (slice(3, 34), slice(5, 48), slice(3, 42))
    assert head[box].sum() == head.sum()
    whole = cropped(scene, patient, np.ascontiguousarray(head[box]), (3, 5, 3))
    assert "covers all of 'patient'" in look_at(whole, patient).problem
    away = PLACE @ np.array([[1, 0, 0, -500], [0, 1, 0, -600], [0, 0, 1, -700], [0, 0, 0, 1]], float)
    small = cropped(scene, patient, np.ones((3, 3, 3), np.uint8), (712, 620, 520), away)
    seen = look_at(small, patient)
    assert (seen.problem, seen.note, seen.empty) == ("", "", False)
    assert marks_of(small, patient).array.sum() == 27


def test_the_background_is_that_of_the_engine():
    random = np.random.default_rng(2)
    for array in (
        np.pad(random.uniform(50, 100, (8, 9, 10)), 3),
        np.pad(random.uniform(50, 100, (8, 9, 10)), 3, constant_values=-1024.0),
        random.uniform(0, 1, (12, 13, 14)),
        np.pad(random.normal(300, 50, (20, 9, 10)), 4) + random.normal(0, 2, (28, 17, 18)),
        np.zeros((5, 6, 7)),
    ):
        engine = background(
            Volume(tensor_from_array(array.astype(np.float32)), Grid(array.shape, np.eye(4)), "x")
        )
        found = background_of(array.astype(np.float32))
        assert (found is None) == (engine is None)
        if engine is not None:
            assert found == pytest.approx((engine.value, engine.tolerance), rel=1e-3, abs=1e-6)
    assert background_of(np.full((4, 5, 6), np.nan)) is None


def test_a_look_takes_no_time_that_a_user_would_notice(scene):
    array = np.pad(np.random.default_rng(0).random((150, 150, 150), np.float32), 5)
    volume = cases.add_volume(array, np.eye(4), "large")
    marks = np.zeros(array.shape, np.uint8)
    marks[60:80, 60:90, 60:90] = 4
    node = cases.add_volume(marks, np.eye(4), "marks", LABEL_MAP)
    started = time.perf_counter()
    assert look_at(Region(node), volume).problem == ""
    assert time.perf_counter() - started < 2.0  # 0.1 s measured; the machine may be busy
