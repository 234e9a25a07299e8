"""Where the images of a group count: one mask for all, one for each, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from DiffeoRegLib.errors import InputError
from DiffeoRegPanel.console import masks_from
from DiffeoRegPanel.nodes.frame_masks import check_masks, masks_of
from DiffeoRegPanel.nodes.frames import frames_of
from DiffeoRegPanel.nodes.series import browser_of, show_frame
from DiffeoRegPanel.request import Region
from Testing.slicer import region_cases as cases
from Testing.slicer.test_nodes_frames import TIMES, sequence_of, volumes

SHAPE = (6, 7, 8)


def marked(start):
    array = np.zeros(SHAPE, np.uint8)
    array[1:3, 2:5, start : start + 2] = 1
    return array


@pytest.fixture
def frames(scene):
    return frames_of(sequence_of(scene, volumes()))


@pytest.fixture
def organ(scene):
    return cases.add_segmentation(scene, [marked(3)], cases.FIXED_PLACE, [["liver"]], "organ")


def mask_sequence(scene, starts):
    """A sequence of segmentations at the times of the frames, and the node that shows its items."""
    nodes = [
        cases.add_segmentation(scene, [marked(start)], cases.FIXED_PLACE, [["liver"]], f"mask {start}")
        for start in starts
    ]
    sequence = sequence_of(scene, nodes, TIMES[: len(nodes)])
    for node in nodes:
        scene.RemoveNode(node)
    browser = browser_of(scene, [sequence], "masks")
    return sequence, browser


def test_one_mask_counts_for_all_frames(frames, organ):
    found = masks_of(Region(organ), frames)
    assert len(found) == 3
    for image, frame in zip(found, frames.frames, strict=True):
        np.testing.assert_array_equal(image.array, marked(3))
        np.testing.assert_allclose(image.world_from_voxel, frame.image.world_from_voxel)
    left_out = masks_of(Region(organ, exclude=True), frames)
    np.testing.assert_array_equal(left_out[1].array, 1 - marked(3))


def test_a_mask_is_read_where_it_lies_in_each_volume(scene):
    """The second volume lies elsewhere, and so other voxels of it are marked."""
    nodes = volumes(2)
    shift = np.eye(4)
    shift[:3, 3] = cases.FIXED_PLACE[:3, 0]  # one voxel along i
    cases.add_parent(scene, nodes[1], shift)
    organ = cases.add_segmentation(scene, [marked(3)], cases.FIXED_PLACE, [["liver"]], "organ")
    found = masks_of(Region(organ), frames_of(nodes))
    np.testing.assert_array_equal(found[0].array, marked(3))
    np.testing.assert_array_equal(found[1].array, marked(2))


@pytest.mark.parametrize("given", ["sequence", "shown", "list"])
def test_every_frame_may_have_its_own(scene, frames, organ, given):
    sequence, browser = mask_sequence(scene, (0, 2, 5))
    masks = {
        "sequence": Region(sequence),
        "shown": Region(browser.GetProxyNode(sequence), "id-liver"),
        "list": [Region(organ), None, Region(organ, exclude=True)],
    }[given]
    show_frame(browser, 1)
    check_masks(masks, frames)
    found = masks_of(masks, frames)
    wanted = [marked(3), None, 1 - marked(3)] if given == "list" else [marked(n) for n in (0, 2, 5)]
    for image, array in zip(found, wanted, strict=True):
        if array is None:
            assert image is None
        else:
            np.testing.assert_array_equal(image.array, array)


def test_a_sequence_of_masks_lies_where_it_is_shown(scene, frames):
    sequence, browser = mask_sequence(scene, (2, 2, 2))
    shift = np.eye(4)
    shift[:3, 3] = cases.FIXED_PLACE[:3, 0]
    cases.add_parent(scene, browser.GetProxyNode(sequence), shift)
    np.testing.assert_array_equal(masks_of(Region(sequence), frames)[1].array, marked(3))


def test_what_is_no_mask_is_refused(scene, frames, organ):
    kind = "vtkMRMLLabelMapVolumeNode"
    empty = cases.add_volume(np.zeros(SHAPE, np.uint8), cases.FIXED_PLACE, "empty", kind)
    everything = cases.add_segmentation(
        scene, [np.ones(SHAPE, np.uint8)], cases.FIXED_PLACE, [["all"]], "everything"
    )
    volume = volumes(1)[0]
    short, _browser = mask_sequence(scene, (1, 2))
    for masks, words in (
        ([Region(organ)] * 2, "3 frames, and there are 2 masks"),
        (Region(volume), "is no segmentation and no label map"),
        (Region(short), "has no mask for 'liver, time 4 s'"),
    ):
        with pytest.raises(InputError, match=words):
            check_masks(masks, frames)
    for masks, words in (
        (Region(empty), "is empty"),
        (Region(everything, exclude=True), "'everything' excludes all of 'liver, time 0 s'"),
    ):
        with pytest.raises(InputError, match=words):
            masks_of(masks, frames)
    assert masks_of(None, frames) is None
    assert masks_of([None] * 3, frames) is None


def test_masks_of_the_console(organ):
    assert masks_from(None) is None
    one = masks_from((organ, "liver"), exclude=True)
    assert (one.node, one.segment_id, one.exclude) == (organ, "id-liver", True)
    several = masks_from([organ, None])
    assert (several[0].node, several[1]) == (organ, None)
    with pytest.raises(InputError, match="no segment called 'spleen'"):
        masks_from((organ, "spleen"))
