"""A series as a list of images: frames of a sequence, several volumes, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import slicer

from DiffeoRegLib.errors import InputError
from DiffeoRegPanel.nodes.frames import frames_of, proxy_of
from DiffeoRegPanel.nodes.places import world_from_voxel
from DiffeoRegPanel.nodes.series import browser_of
from DiffeoRegPanel.nodes.volumes import array_of
from Testing.slicer import region_cases as cases

TIMES = ("0", "1.5", "4")


def volumes(count=3):
    return [
        cases.add_volume(np.full((6, 7, 8), n + np.arange(8), np.float32), cases.FIXED_PLACE, f"phase {n}")
        for n in range(count)
    ]


def sequence_of(scene, nodes, times=TIMES):
    sequence = scene.AddNewNodeByClass("vtkMRMLSequenceNode", "liver")
    sequence.SetIndexName("time")
    sequence.SetIndexUnit("s")
    for node, time in zip(nodes, times, strict=True):
        sequence.SetDataNodeAtValue(node, time)
    return sequence


def test_several_volumes_are_a_series_in_their_order(scene):
    nodes = volumes()
    cases.add_parent(scene, nodes[1], cases.FIXED_TURN)
    found = frames_of([nodes[2], nodes[0], nodes[1]])
    assert [frame.name for frame in found.frames] == ["phase 2", "phase 0", "phase 1"]
    assert [frame.value for frame in found.frames] == ["0", "1", "2"]
    assert (found.index_name, found.index_unit, found.numeric, len(found)) == ("frame", "", True, 3)
    for image, node in zip(found.images, (nodes[2], nodes[0], nodes[1]), strict=True):
        assert np.shares_memory(image.array, array_of(node))
        np.testing.assert_allclose(image.world_from_voxel, world_from_voxel(node))
    np.testing.assert_allclose(found.frames[2].parent, cases.FIXED_TURN)


def test_the_frames_of_a_sequence_lie_where_it_is_shown(scene):
    nodes = volumes()
    sequence = sequence_of(scene, nodes)
    assert proxy_of(sequence) is None
    plain = frames_of(sequence)
    assert [frame.value for frame in plain.frames] == list(TIMES)
    assert (plain.name, plain.index_name, plain.index_unit) == ("liver", "time", "s")
    assert plain.frames[1].name == "liver, time 1.5 s"
    np.testing.assert_array_equal(plain.images[2].array, array_of(nodes[2]))
    np.testing.assert_allclose(plain.images[2].world_from_voxel, world_from_voxel(nodes[2]))
    browser = browser_of(scene, [sequence], "player")
    cases.add_parent(scene, browser.GetProxyNode(sequence), cases.FIXED_TURN)
    for found in (frames_of(sequence), frames_of(browser)):
        expected = cases.FIXED_TURN @ world_from_voxel(nodes[2])
        np.testing.assert_allclose(found.images[2].world_from_voxel, expected)
        np.testing.assert_allclose(found.frames[2].parent, cases.FIXED_TURN)
    assert found.display is browser.GetProxyNode(sequence).GetDisplayNode()


def test_what_is_no_series_is_said(scene):
    nodes = volumes()
    sequence = sequence_of(scene, nodes)
    browser = browser_of(scene, [sequence], "player")
    labels = cases.add_volume(
        np.ones((6, 7, 8), np.uint8), cases.FIXED_PLACE, "L", "vtkMRMLLabelMapVolumeNode"
    )
    mixed = scene.AddNewNodeByClass("vtkMRMLSequenceNode", "mixed")
    mixed.SetDataNodeAtValue(nodes[0], "0")
    mixed.SetDataNodeAtValue(slicer.vtkMRMLTransformNode(), "1")
    blank = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "blank")
    empty = scene.AddNewNodeByClass("vtkMRMLSequenceBrowserNode", "idle")
    bent = cases.add_volume((6, 7, 8), cases.FIXED_PLACE, "bent")
    cases.add_warped_parent(scene, bent)
    for given, words in (
        (nodes[:1], "holds 1 image, and a group needs at least 2"),
        (nodes[0], "holds 1 image"),
        ([], "holds 0 images"),
        (scene.AddNewNodeByClass("vtkMRMLSequenceNode", "new"), "'new' holds 0 images"),
        ([nodes[0], nodes[1], nodes[0]], "'phase 0' is chosen twice"),
        ([nodes[0], browser.GetProxyNode(sequence)], "choose the sequence"),
        ([nodes[0], labels], "'L' is not an image"),
        (mixed, "'mixed, time 1 s' is not an image"),
        ([nodes[0], blank], "'blank' has no image data"),
        ([nodes[0], bent], "non-linear transform"),
        (empty, "'idle' plays no sequence"),
    ):
        with pytest.raises(InputError, match=words):
            frames_of(given)
