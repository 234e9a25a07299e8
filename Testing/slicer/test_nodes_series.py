"""What a group leaves: sequences that play together, what is drawn on one frame on all frames."""

from __future__ import annotations

import numpy as np
import pytest
import slicer

from DiffeoRegLib.errors import GeometryError, InputError
from DiffeoRegLib.exchange import Image
from DiffeoRegPanel.nodes.frames import frames_of
from DiffeoRegPanel.nodes.places import KJI, parent_of, world_from_voxel
from DiffeoRegPanel.nodes.points import points_of
from DiffeoRegPanel.nodes.series import Ways, carried_sequence, join, series_nodes, show_frame
from DiffeoRegPanel.nodes.volumes import array_of
from Testing.slicer import region_cases as cases
from Testing.slicer.test_nodes_frames import sequence_of

SHAPE, COUNT = (12, 14, 16), 3
STEP_MM = np.array([4.0, -2.0, 3.0])
"""Every frame shows the scene of the one before, moved by this."""
COMMON = np.diag([2.0, 1.0, 1.5, 1.0])
"""World from (i, j, k)."""


def image(array):
    return Image(np.ascontiguousarray(array), COMMON[:, KJI], "common")


@pytest.fixture
def frames(scene):
    """Three frames of a bright block that moves; the sequence is not shown by any browser."""
    nodes = []
    for number in range(COUNT):
        array = np.zeros(SHAPE, np.float32)
        start = 3 + number * (STEP_MM / np.diag(COMMON)[:3]).round().astype(int)
        array[start[2] : start[2] + 3, start[1] + 4 : start[1] + 7, start[0] : start[0] + 3] = 100
        nodes.append(cases.add_volume(array, COMMON, f"frame {number}"))
    sequence = sequence_of(scene, nodes)
    for node in nodes:
        scene.RemoveNode(node)
    return frames_of(sequence)


@pytest.fixture
def ways():
    """Common space = that of the first frame: a shift out, as a matrix or a field, and the way back."""
    found = []
    for number in range(COUNT):
        out, back = np.eye(4), np.eye(4)
        out[:3, 3], back[:3, 3] = number * STEP_MM, -number * STEP_MM
        found.append(Ways([{"matrix": out}], [{"matrix": back}]))
    return found


def aligned():
    return [image(np.full(SHAPE, n, np.float32)) for n in range(COUNT)]


def test_everything_plays_together(scene, frames, ways):
    spread = [image(np.full(SHAPE, 0.5 * n, np.float32)) for n in range(COUNT)]
    mean = image(np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE))
    made = series_nodes(scene, frames, ways, aligned(), mean=mean, uncertainty=spread)
    assert made.aligned.GetName() == "liver aligned"
    for sequence in (made.aligned, made.transforms, made.uncertainty):
        assert [sequence.GetNthIndexValue(n) for n in range(COUNT)] == ["0", "1.5", "4"]
        assert (sequence.GetIndexName(), sequence.GetIndexUnit()) == ("time", "s")
    browser = made.browser
    shown, moved, doubt = (browser.GetProxyNode(s) for s in (made.aligned, made.transforms, made.uncertainty))
    for number in (2, 0, 1):
        show_frame(browser, number)
        assert (array_of(shown) == number).all()
        assert (array_of(doubt) == 0.5 * number).all()
        place = np.array(moved.GetTransformFromParent().TransformPoint(1.0, 2.0, 3.0))
        np.testing.assert_allclose(place, [1, 2, 3] + number * STEP_MM, atol=1e-5)
        np.testing.assert_allclose(world_from_voxel(shown), COMMON[:, KJI])
    assert doubt.GetDisplayNode().GetWindow() == pytest.approx(1.0)
    np.testing.assert_array_equal(array_of(made.mean), mean.array)
    display = shown.GetDisplayNode()
    assert (display.GetWindow() / 2 + display.GetLevel()) == pytest.approx(2, abs=0.1)


def test_a_frame_under_its_transform_lies_on_the_common_space(scene, frames, ways):
    """Also where the series lies under a transform of its own."""
    sequence = scene.GetFirstNodeByName("liver")
    from DiffeoRegPanel.nodes.series import browser_of

    player = browser_of(scene, [sequence], "player")
    cases.add_parent(scene, player.GetProxyNode(sequence), cases.FIXED_TURN)
    made = series_nodes(scene, frames_of(sequence), ways, aligned())
    join(made.browser, sequence)
    proxy, transform = (made.browser.GetProxyNode(s) for s in (sequence, made.transforms))
    proxy.SetAndObserveTransformNodeID(transform.GetID())
    for number in range(COUNT):
        show_frame(made.browser, number)
        np.testing.assert_allclose(parent_of(transform), cases.FIXED_TURN)
        centre = array_of(proxy).nonzero()
        index = np.array([np.mean(axis) for axis in centre[::-1]])
        local = (COMMON @ [*index, 1])[:3]
        world = np.array(transform.GetTransformToParent().TransformPoint(*local))
        expected = (cases.FIXED_TURN @ [*local, 1])[:3] - number * STEP_MM
        np.testing.assert_allclose(world, expected, atol=1e-3)


def test_a_segmentation_of_one_frame_is_carried_to_all(scene, frames, ways):
    middle = (frames.images[1].array > 0).astype(np.uint8)
    organs = cases.add_segmentation(scene, [middle], COMMON, [["block"]], "organs")
    made = series_nodes(scene, frames, ways, aligned())
    before = scene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode")
    sequence = carried_sequence(scene, organs, frames, ways, 1, browser=made.browser)
    assert scene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode") == before
    proxy = made.browser.GetProxyNode(sequence)
    for number in range(COUNT):
        show_frame(made.browser, number)
        marked = slicer.vtkOrientedImageData()
        assert proxy.GetBinaryLabelmapRepresentation("id-block", marked)
        extent = marked.GetExtent()
        found = cases.segment_mask(proxy, "id-block")
        wanted = frames.images[number].array > 0
        assert found.sum() == wanted.sum()
        assert found.shape == wanted.shape, extent
        np.testing.assert_array_equal(found, wanted)
    assert proxy.GetSegmentation().GetSegment("id-block").GetName() == "block"


def test_markups_and_label_maps_of_one_frame_are_carried_to_all(scene, frames, ways):
    points = scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "tip")
    points.AddControlPoint(5.0, 6.0, 7.0, "apex")
    labels = cases.add_volume(
        7 * (frames.images[0].array > 0).astype(np.uint8), COMMON, "liver labels", "vtkMRMLLabelMapVolumeNode"
    )
    made = series_nodes(scene, frames, ways, aligned())
    tips = carried_sequence(scene, points, frames, ways, 2, browser=made.browser)
    maps = carried_sequence(scene, labels, frames, ways, 0, browser=made.browser)
    for number in range(COUNT):
        show_frame(made.browser, number)
        tip, shown = (made.browser.GetProxyNode(s) for s in (tips, maps))
        np.testing.assert_allclose(points_of(tip), [[5, 6, 7] + (number - 2) * STEP_MM], atol=1e-4)
        assert tip.GetNthControlPointLabel(0) == "apex"
        np.testing.assert_array_equal(array_of(shown), 7 * (frames.images[number].array > 0))
    assert tips.GetNumberOfDataNodes() == maps.GetNumberOfDataNodes() == COUNT


def test_a_saved_scene_plays_on(scene, frames, ways, tmp_path):
    series_nodes(scene, frames, ways, aligned())
    assert scene.WriteToMRB(str(tmp_path / "scene.mrb"))
    scene.Clear(0)
    assert scene.ReadFromMRB(str(tmp_path / "scene.mrb"))
    browser = scene.GetFirstNodeByName("liver browser")
    show_frame(browser, 2)
    shown, moved = (
        browser.GetProxyNode(scene.GetFirstNodeByName(f"liver {w}")) for w in ("aligned", "transforms")
    )
    assert (array_of(shown) == 2).all()
    place = np.array(moved.GetTransformFromParent().TransformPoint(0.0, 0.0, 0.0))
    np.testing.assert_allclose(place, 2 * STEP_MM, atol=1e-4)


def test_nothing_is_left_of_what_cannot_be_made(scene, frames, ways):
    before = scene.GetNumberOfNodes()
    with pytest.raises(InputError, match="has 3 frames, and there are 2 transforms"):
        series_nodes(scene, frames, ways[:2], aligned())
    sheared = COMMON.copy()
    sheared[0, 1] = 3
    field = Image(np.zeros((*SHAPE, 3), np.float32), sheared[:, KJI], "field")
    bad = [*ways[:2], Ways([{"displacement": field}], [{"displacement": field}])]
    with pytest.raises(GeometryError):
        series_nodes(scene, frames, bad, aligned())
    points = scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "tip")
    points.AddControlPoint(5.0, 6.0, 7.0)
    with pytest.raises(GeometryError):
        carried_sequence(scene, points, frames, bad, 0)
    for given, words in (
        ((points, frames, ways, 3), "has no frame 3"),
        ((points, frames, ways[1:], 0), "2 trans"),
    ):
        with pytest.raises(InputError, match=words):
            carried_sequence(scene, *given)
    model = scene.AddNewNodeByClass("vtkMRMLModelNode", "skin")
    with pytest.raises(InputError, match="'skin' cannot be carried to the frames"):
        carried_sequence(scene, model, frames, ways, 0)
    for node in (model, points.GetDisplayNode(), points):
        scene.RemoveNode(node)
    assert scene.GetNumberOfNodes() == before
