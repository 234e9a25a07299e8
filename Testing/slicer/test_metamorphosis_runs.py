"""Metamorphosis from request to nodes, with the real worker process on the real MRML scene."""

from __future__ import annotations

import numpy as np
import pytest
import slicer

from DiffeoRegLib.errors import InputError
from DiffeoRegLib.settings import Settings
from DiffeoRegPanel.nodes.volumes import array_of, world_from_voxel
from DiffeoRegPanel.request import Outputs, Region, Request
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
    request = Request(fixed, moving, QUICK, pathology=Region(tumour))
    result = runs.run(request, runner)
    assert result.selfCheck.ok, result.selfCheck.sentence
    change, summed, healthy = (array_of(getattr(result, name)) for name in LOOK)
    moved = array_of(result.movedVolume)
    assert np.abs(change[inside]).mean() > 5 * np.abs(change[~inside]).mean() > 0
    gap = np.abs(summed - change - moved)[inside].mean()  # the moved volume is read through the kept map
    assert gap < 0.02 * moved[inside].mean()
    assert healthy[inside].mean() < 0.8 * array_of(fixed)[inside].mean()
    for name in LOOK:
        node = getattr(result, name)
        assert node.GetName().startswith(fixed.GetName())
        np.testing.assert_allclose(world_from_voxel(node), world_from_voxel(fixed))
    before = runs.ids()
    outputs = Outputs(transform=result.outputTransform, inverse=result.inverseTransform,
                      volume=result.movedVolume)  # fmt: skip
    again = runs.run(Request(fixed, moving, QUICK, pathology=Region(tumour), outputs=outputs), runner)
    assert [getattr(again, name) for name in LOOK] == [getattr(result, name) for name in LOOK]
    assert runs.ids() == before


def test_a_missing_or_unused_mask_is_refused_at_once(pair, runner):
    fixed, moving = pair
    tumour, _ = patient(fixed)
    with pytest.raises(InputError, match="needs to know where the pathology is"):
        runs.run(Request(fixed, moving, QUICK), runner)
    with pytest.raises(InputError, match="does not use the pathology mask"):
        runs.run(Request(fixed, moving, runs.FAST, pathology=Region(tumour)), runner)
