"""Kinds of groups, with the real worker process: slices, masks, frames without use, a trained network."""

from __future__ import annotations

import numpy as np
import pytest
import slicer

from DiffeoRegLib.errors import InputError, SettingsError
from DiffeoRegPanel.group import GroupRequest, check_group
from DiffeoRegPanel.nodes.series import show_frame
from DiffeoRegPanel.nodes.volumes import array_of
from DiffeoRegPanel.request import Region
from Testing.groupmorph_networks import network_file, random
from Testing.slicer import region_cases as cases
from Testing.slicer.test_group import COUNT, PLACE, SHAPE, blobs, ids, peak, place, run
from Testing.slicer.test_nodes_frames import sequence_of

SIDE, STEP_VOX = 24, 2.0
SLICE_PLACE = np.array([[0.0, 0, 3.0, 11], [2.0, 0, 0, -7], [0, 2.0, 0, 3], [0, 0, 0, 1]])
"""A sagittal slice 3 mm thick; world from (i, j, k)."""


def slices(count=COUNT):
    """Volumes of one slice with a spot that wanders along j."""
    j, i = np.indices((SIDE, SIDE))
    return [
        cases.add_volume(
            (100 * np.exp(-((j - SIDE / 2 - STEP_VOX * (n - 1)) ** 2 + (i - SIDE / 2) ** 2) / 12)).astype(
                np.float32
            )[None],
            SLICE_PLACE, f"slice {n}",
        )
        for n in range(count)
    ]  # fmt: skip


def test_slices_are_registered_within_their_plane(scene, runner):
    nodes = slices()
    sequence = sequence_of(scene, nodes)
    points = scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "tip")
    points.AddControlPoint(*peak(nodes[0]))
    found = run(runner, sequence, carried=(points,), marked=0)
    assert found.selfCheck.ok, found.selfCheck.sentence
    middle = peak(nodes[1])
    for number in range(COUNT):
        aligned, deviation = (s.GetNthDataNode(number) for s in (found.aligned, found.uncertainty))
        assert array_of(aligned).shape == (1, SIDE, SIDE)
        assert np.linalg.norm(peak(aligned) - middle) < 1.0  # the ends were 4 mm off
        assert array_of(deviation).shape[0] == 1
        show_frame(found.browser, number)
        tip = found.browser.GetProxyNode(found.carried[0]).GetNthControlPointPositionVector(0)
        assert np.linalg.norm(np.array(tip) - peak(nodes[number])) < 1.5  # from 4 or 8 mm off
        assert tip[0] == pytest.approx(middle[0], abs=1e-3)
    assert array_of(found.mean).shape == (1, SIDE, SIDE)


def test_what_a_mask_leaves_out_does_not_move_anything(scene, runner):
    """A second blob moves the other way; where the mask ends, nothing follows it."""
    nodes = blobs()[:2]
    for node, shift in zip(nodes, (2, -2), strict=True):
        array = array_of(node)
        array[:] = np.maximum(array, np.roll(array[::-1], (0, 5, shift), (0, 1, 2)))
    counts = np.zeros(SHAPE, np.uint8)
    counts[:, :10] = 1
    mask = cases.add_segmentation(scene, [counts], PLACE, [["here"]], "mask")
    beyond = [(PLACE @ [i, 14, k, 1])[:3] for k in (5, 7, 9) for i in (8, 10, 12)]

    def moved(**masks):
        """Along i, mm, where the second blob is in the first frame and around it."""
        found = run(runner, nodes, fixed=0, want_uncertainty=False, **masks)
        assert found.selfCheck.ok
        transform = found.transforms.GetNthDataNode(1).GetTransformFromParent()
        return np.mean([np.array(transform.TransformPoint(*p))[0] - p[0] for p in beyond])

    assert moved() < -1.0  # 5 mm the other way
    assert moved(masks=Region(mask)) > -0.2
    assert moved(masks=Region(mask, exclude=True)) < -1.0


@pytest.mark.parametrize("value", [7.0, np.nan])
def test_a_frame_without_use_is_named_or_left_out(scene, runner, value):
    nodes = blobs()
    array_of(nodes[1])[:] = value
    sequence = sequence_of(scene, nodes)
    before = ids()
    words = "'liver, time 1.5 s' (has the same value|holds no finite value)"
    with pytest.raises(InputError, match=words):
        run(runner, sequence, want_uncertainty=False)
    assert ids() == before
    found = run(runner, sequence, want_uncertainty=False, leave_out=True)
    values = [found.aligned.GetNthIndexValue(n) for n in range(found.aligned.GetNumberOfDataNodes())]
    assert values == ["0", "4"]
    assert found.selfCheck.ok
    assert any("was left out" in note and "time 1.5 s" in note for note in found.report["notes"])
    for number in (0, 1):  # to the middle of the two that are left
        assert np.linalg.norm(peak(found.aligned.GetNthDataNode(number)) - place(1)) < 1.2
    points = scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "tip")
    with pytest.raises(InputError, match=r"'liver, time 1\.5 s', on which 'tip' lies"):
        check_group(GroupRequest(sequence, carried=(points,), marked=1, leave_out=True))
    with pytest.raises(InputError, match="to stay fixed and cannot be used"):
        run(runner, sequence, fixed=1, leave_out=True)


def test_frames_of_other_sizes_and_single_bad_voxels_are_taken_in(scene, runner):
    nodes = blobs()[:2]
    array_of(nodes[0])[2, 3, 4] = np.nan
    other = cases.add_volume(np.ascontiguousarray(array_of(nodes[1])[1:, :-2, 1:]), PLACE, "phase, smaller")
    shift = np.eye(4)
    shift[:3, 3] = PLACE[:3, 0] + PLACE[:3, 2]
    cases.add_parent(scene, other, shift)
    found = run(runner, [nodes[0], other], fixed=0, want_uncertainty=False)
    assert found.selfCheck.ok, found.selfCheck.sentence
    assert np.linalg.norm(peak(found.aligned.GetNthDataNode(1)) - place(0)) < 1.2
    notes = " ".join(found.report["notes"])
    assert "have another size or geometry" in notes
    assert "1 voxels of the group's image 'phase 0' are NaN" in notes


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    return network_file(folder / "net.safetensors", random(dim=3, largest=0.5), (2.0, 1.8, 2.2))


def test_own_weights_of_a_groupmorph_run_from_the_console(scene, runner, weights):
    from DiffeoReg import DiffeoRegLogic

    logic, nodes = DiffeoRegLogic(), blobs()
    logic._runner = runner
    more = {"weights": str(weights), "device": "cpu", "threads": 1, "extras": {"precision": "float32"}}
    found = logic.registerGroup(nodes, method="groupmorph", effort="fast", settings=more)
    assert found.report["settings"]["method"] == "groupmorph"
    assert found.selfCheck.ok, found.selfCheck.sentence
    assert found.uncertainty.GetNumberOfDataNodes() == COUNT
    assert any("GroupMorph" in source or "group-wise" in source for source in found.report["citations"])
    before = ids()
    with pytest.raises(SettingsError, match="weights that you trained"):
        logic.registerGroup(nodes, method="groupmorph")
    with pytest.raises(InputError, match="registers a pair, not a group"):
        logic.registerGroup(nodes, method="lddmm")
    assert ids() == before
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLSequenceBrowserNode") == 1


def test_no_uncertainty_and_no_mean_leave_no_nodes_for_them(scene, runner):
    found = run(runner, blobs()[:2], want_uncertainty=False, want_mean=False)
    assert (found.uncertainty, found.mean) == (None, None)
    assert found.report["deviation_mm"] is None
    names = [slicer.mrmlScene.GetNthNode(n).GetName() for n in range(slicer.mrmlScene.GetNumberOfNodes())]
    assert not any("uncertainty" in name or "mean" in name for name in names)
    assert found.report["inverse_in_slicer_mm"]["mean"] < 0.15
