"""MetaRegNet from request to nodes: tiny networks, the real worker, single slices as Slicer has them."""

from __future__ import annotations

import numpy as np
import pytest
import slicer

from DiffeoRegLib.errors import InputError
from DiffeoRegPanel.nodes.volumes import array_of
from DiffeoRegPanel.registration import Registration
from DiffeoRegPanel.request import Marks, Outputs, Region, Request
from Testing.metaregnet_networks import constant, network_file, settings_for
from Testing.slicer import test_registration as runs
from Testing.slicer.test_trained_models import slices

CHANGE = 0.25
"""What the network adds, in the intensities of the prepared images, 0 to 1."""
MARKED = (slice(None), slice(40, 60), slice(50, 80))


@pytest.fixture
def pair(scene):
    return slices()


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    return network_file(path, constant((3.0, -2.0), CHANGE), (1.0, 1.0))


def marks_on(volume, name="lesion"):
    array = np.zeros(array_of(volume).shape, np.uint8)
    array[MARKED] = 1
    return slicer.util.addVolumeFromArray(array, name=name, nodeClassName="vtkMRMLLabelMapVolumeNode")


def test_the_change_that_the_network_says_arrives_as_a_volume(pair, runner, weights):
    marks = Marks(Region(marks_on(pair.fixed)), edge_mm=0.0)
    request = Request(pair.fixed, pair.moving, settings_for(weights), pathology=marks)
    result = runs.run(request, runner)
    assert result.selfCheck.ok, result.selfCheck.sentence
    change = array_of(result.appearanceChange)
    inside = np.zeros(change.shape, bool)
    inside[MARKED] = True
    window = np.ptp(array_of(pair.moving))  # of images from 0 to 1
    np.testing.assert_allclose(change[inside], CHANGE * window, atol=0.03)
    assert not change[~inside].any()
    moved = array_of(result.movedVolume)
    there = array_of(pair.moving)[:, 43:63, 48:78]
    np.testing.assert_allclose(moved[MARKED], there, atol=0.02)
    np.testing.assert_allclose(array_of(result.metamorphicVolume)[MARKED], there + CHANGE * window, atol=0.05)
    fixed = array_of(pair.fixed)
    np.testing.assert_allclose(array_of(result.healthyVolume)[~inside], fixed[~inside], atol=1e-5)
    assert any("network predicts" in note for note in result.report["notes"])


def test_marks_of_the_moving_slice_and_then_none_fill_the_same_transform(pair, runner, weights):
    settings = settings_for(weights)
    first = Request(pair.fixed, pair.moving, settings, pathology=Marks(moving=Region(marks_on(pair.moving))))
    result = runs.run(first, runner)
    change = array_of(result.appearanceChange)
    assert change.min() == pytest.approx(-CHANGE * np.ptp(array_of(pair.moving)), abs=0.05)
    assert result.healthyVolume.GetName() == "slice 0010 on slice 0001 without pathology"
    outputs = Outputs(transform=result.outputTransform, inverse=result.inverseTransform,
                      volume=result.movedVolume)  # fmt: skip
    before = runs.ids()
    plain = runs.run(Request(pair.fixed, pair.moving, settings, outputs=outputs), runner)
    assert plain.appearanceChange is None
    assert any("taken for healthy" in note for note in plain.report["notes"])
    assert runs.ids() == before


def test_volumes_are_refused_by_a_network_of_slices(scene, runner, weights):
    fixed, moving = runs._volume("006"), runs._volume("138")
    before = runs.ids()
    with pytest.raises(InputError, match="works on 2D images and these are 3D"):
        runs.run(Request(fixed, moving, settings_for(weights)), runner)
    assert runs.ids() == before
    with pytest.raises(InputError, match="is a single slice and"):
        Registration(Request(fixed, slices().moving, settings_for(weights)), runner)
