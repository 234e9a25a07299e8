"""Masks and labels on the grid of a volume, against SimpleITK's nearest neighbour."""

from __future__ import annotations

import numpy as np
import pytest

from DiffeoRegLib.errors import InputError
from DiffeoRegPanel.nodes import regions
from DiffeoRegPanel.request import Region
from Testing.slicer import region_cases as cases


@pytest.fixture
def fixed(scene):
    return cases.add_volume(cases.FIXED_SHAPE, cases.FIXED_PLACE, "fixed")


@pytest.fixture
def moving(scene):
    return cases.add_volume(cases.MOVING_SHAPE, cases.MOVING_PLACE, "moving")


@pytest.mark.parametrize("turned", [False, True], ids=["at the root", "under parent transforms"])
def test_masks_lie_on_the_grid_of_the_volume(scene, fixed, turned):
    source = cases.organs(scene)
    label_map = cases.add_volume(cases.labels(), cases.MOVING_PLACE, "atlas", "vtkMRMLLabelMapVolumeNode")
    turns, place = {}, cases.FIXED_PLACE
    if turned:
        cases.add_parent(scene, fixed, cases.FIXED_TURN)
        cases.add_parent(scene, source, cases.SEGMENTS_TURN)
        label_map.SetAndObserveTransformNodeID(source.GetTransformNodeID())
        turns, place = (
            {"moving_turn": cases.SEGMENTS_TURN, "fixed_turn": cases.FIXED_TURN},
            cases.FIXED_TURN @ cases.FIXED_PLACE,
        )
    labels, ball = cases.expected(cases.labels(), **turns), cases.expected(cases.ball(), **turns)
    for region, right in (
        (Region(source), (labels > 0) | (ball > 0)),
        (Region(source, "id-tumour"), labels == 2),
        (Region(source, "id-ball"), ball > 0),
        (Region(label_map), labels > 0),
    ):
        mask = regions.mask_of(region, fixed)
        assert mask.array.dtype == np.uint8
        assert right.sum() > 20
        assert np.count_nonzero(mask.array != right) == 0
        np.testing.assert_allclose(mask.world_from_voxel, place[:, [2, 1, 0, 3]], atol=1e-9)


def test_the_same_grid_is_not_resampled(scene, moving):
    source = cases.organs(scene)
    image, entries = regions.labels_of(Region(source), moving)
    assert [entry.name for entry in entries.values()] == ["liver", "tumour", "spine", "ball"]
    label = {entry.key: value for value, entry in entries.items()}
    assert image.array.dtype == np.int16
    np.testing.assert_array_equal(image.array == label["id-spine"], cases.labels() == 7)


def test_the_later_of_overlapping_segments_counts(scene, moving):
    """As in the list, whatever their sizes; Slicer's own label maps do the same."""
    source = cases.organs(scene)
    labels, ball = cases.labels(), cases.ball() > 0
    assert (ball & (labels == 1)).any()
    assert (ball & (labels == 2)).any()
    image, entries = regions.labels_of(Region(source), moving)
    label = {entry.name: value for value, entry in entries.items()}
    np.testing.assert_array_equal(image.array == label["ball"], ball)
    np.testing.assert_array_equal(image.array == label["tumour"], (labels == 2) & ~ball)
    source.GetSegmentation().SetSegmentIndex("id-ball", 0)
    image, entries = regions.labels_of(Region(source), moving)
    assert [entry.name for entry in entries.values()] == ["ball", "liver", "tumour", "spine"]
    np.testing.assert_array_equal(image.array == 1, ball & (labels == 0))
    np.testing.assert_array_equal(image.array == 3, labels == 2)
    (note,) = regions.overlap_notes(Region(source), moving, by_order=True)
    assert "further down in the list counts" in note


def test_the_smaller_of_overlapping_segments_counts_where_structures_match(scene, moving):
    source = cases.organs(scene)
    labels, ball = cases.labels(), cases.ball() > 0
    sizes = [(labels == 2).sum(), ball.sum(), (labels == 1).sum()]
    assert sizes == sorted(sizes)
    image, _, names = regions.matched_labels(Region(source), Region(source), moving, moving)
    label = {name: value for value, name in names.items()}
    np.testing.assert_array_equal(image.array == label["tumour"], labels == 2)
    np.testing.assert_array_equal(image.array == label["ball"], ball & (labels != 2))
    np.testing.assert_array_equal(image.array == label["liver"], (labels == 1) & ~ball)
    (note,) = regions.overlap_notes(Region(source), moving)
    assert "smaller one counts" in note
    assert "overlap" in note
    assert "'ball'" in note
    assert "'liver'" in note
    assert "'spine'" not in note
    assert regions.overlap_notes(Region(source, "id-ball"), moving) == []


def test_segments_match_by_name(scene, fixed, moving):
    here = cases.organs(scene)
    there = cases.add_segmentation(
        scene, [np.where(cases.labels() == 7, 1, np.where(cases.labels() == 1, 3, 0)).astype(np.uint8)],
        cases.MOVING_PLACE, [[" Spine", "LIVER"]], "others",
    )  # fmt: skip
    one, other, names = regions.matched_labels(Region(here), Region(there), fixed, moving)
    assert set(names.values()) == {"liver", "spine"}
    label = {name: value for value, name in names.items()}
    resampled = cases.expected(cases.labels())
    np.testing.assert_array_equal(one.array == label["spine"], resampled == 7)
    np.testing.assert_array_equal(one.array == label["liver"], resampled == 1)
    np.testing.assert_array_equal(other.array == label["spine"], cases.labels() == 7)
    np.testing.assert_array_equal(other.array == label["liver"], cases.labels() == 1)
    np.testing.assert_allclose(one.world_from_voxel, cases.FIXED_PLACE[:, [2, 1, 0, 3]])
    np.testing.assert_allclose(other.world_from_voxel, cases.MOVING_PLACE[:, [2, 1, 0, 3]])


def test_label_maps_match_by_value(scene, fixed, moving):
    labels = cases.labels()
    maps = [
        cases.add_volume(array.astype(np.int16), cases.MOVING_PLACE, name, "vtkMRMLLabelMapVolumeNode")
        for name, array in (("a", labels), ("b", np.where(labels == 2, 9, labels)))
    ]
    one, other, names = regions.matched_labels(Region(maps[0]), Region(maps[1]), fixed, moving)
    assert len(names) == 2
    for label, value in zip(sorted(names), (1, 7), strict=True):
        np.testing.assert_array_equal(one.array == label, cases.expected(labels) == value)
        np.testing.assert_array_equal(other.array == label, labels == value)


def test_label_map_and_segmentation_match_by_colour_name_then_by_value(scene, fixed, moving):
    source = cases.add_volume(cases.labels(), cases.MOVING_PLACE, "atlas", "vtkMRMLLabelMapVolumeNode")
    source.CreateDefaultDisplayNodes()
    table = scene.AddNewNodeByClass("vtkMRMLColorTableNode", "colours")
    table.SetTypeToUser()
    table.SetNumberOfColors(8)
    table.SetColor(7, "tumour", 1, 0, 0, 1)
    source.GetDisplayNode().SetAndObserveColorNodeID(table.GetID())
    there = cases.organs(scene)
    one, other, names = regions.matched_labels(Region(source), Region(there), fixed, moving)
    assert names == {1: "tumour"}
    np.testing.assert_array_equal(one.array == 1, cases.expected(cases.labels()) == 7)
    np.testing.assert_array_equal(other.array == 1, cases.labels() == 2)
    table.SetColor(7, "something else", 1, 0, 0, 1)
    one, other, names = regions.matched_labels(Region(source), Region(there, "id-spine"), fixed, moving)
    np.testing.assert_array_equal(one.array == 1, cases.expected(cases.labels()) == 7)
    np.testing.assert_array_equal(other.array == 1, cases.labels() == 7)


def test_two_chosen_segments_match_whatever_their_names(scene, fixed, moving):
    source = cases.organs(scene)
    one, other, names = regions.matched_labels(
        Region(source, "id-liver"), Region(source, "id-ball"), fixed, moving
    )
    assert names == {1: "liver"}
    np.testing.assert_array_equal(one.array == 1, cases.expected(cases.labels()) == 1)
    np.testing.assert_array_equal(other.array == 1, cases.ball() > 0)


def test_nothing_in_common_is_refused(scene, fixed, moving):
    here = cases.organs(scene)
    there = cases.add_segmentation(scene, [cases.ball()], cases.MOVING_PLACE, [["kidney"]], "others")
    with pytest.raises(InputError, match=r"'organs' and 'others' have no segment in common.*same name"):
        regions.matched_labels(Region(here), Region(there), fixed, moving)


def test_empty_regions_are_refused(scene, fixed):
    empty = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "hollow")
    with pytest.raises(InputError, match=r"'hollow' has no segments.*add one"):
        regions.mask_of(Region(empty), fixed)
    empty.GetSegmentation().AddEmptySegment("a", "a")
    with pytest.raises(InputError, match=r"'hollow' is empty"):
        regions.mask_of(Region(empty), fixed)
    blank = cases.add_volume(
        np.zeros(cases.FIXED_SHAPE, np.uint8), cases.FIXED_PLACE, "blank", "vtkMRMLLabelMapVolumeNode"
    )
    with pytest.raises(InputError, match=r"label map 'blank' is empty"):
        regions.mask_of(Region(blank), fixed)
    source = cases.organs(scene)
    with pytest.raises(InputError, match=r"no segment 'gone' any more"):
        regions.mask_of(Region(source, "gone"), fixed)
    cases.add_parent(scene, source, cases.rotation((0, 0, 0), (900, 0, 0)))
    with pytest.raises(InputError, match=r"'organs' does not touch the volume 'fixed'"):
        regions.mask_of(Region(source), fixed)
    with pytest.raises(InputError, match="no segmentation and no label map"):
        regions.mask_of(Region(fixed), fixed)


def test_label_maps_of_floats_and_images_loaded_as_label_maps(scene, moving):
    labels = cases.labels().astype(np.float32)
    labels[0, 0, 0] = np.nan
    floats = cases.add_volume(labels, cases.MOVING_PLACE, "floats", "vtkMRMLLabelMapVolumeNode")
    image, entries = regions.labels_of(Region(floats), moving)
    assert [entry.key for entry in entries.values()] == ["1", "2", "7"]
    for label, entry in entries.items():
        np.testing.assert_array_equal(image.array == label, cases.labels() == entry.value)
    many = np.arange(np.prod(cases.MOVING_SHAPE), dtype=np.int32).reshape(cases.MOVING_SHAPE)
    picture = cases.add_volume(many, cases.MOVING_PLACE, "picture", "vtkMRMLLabelMapVolumeNode")
    with pytest.raises(InputError, match=r"'picture' has 82367 different values.*not an image"):
        regions.labels_of(Region(picture), moving)
