"""The path of a registration as a sequence of transforms."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk

from DiffeoRegLib.errors import GeometryError, InputError
from DiffeoRegLib.exchange import Image
from DiffeoRegPanel.nodes.grids import mapped
from DiffeoRegPanel.nodes.places import parent_of
from DiffeoRegPanel.nodes.sequences import path_sequence, show_item
from Testing.slicer import mrml_cases as cases

TIMES = (0.0, 0.25, 1.0)


@pytest.fixture
def volumes(scene):
    fixed = cases.volume(scene, cases.fixed_image(), "CT")
    moving = cases.volume(scene, cases.moving_image(), "MR")
    return fixed, moving


def path():
    """Three transforms, (fraction, parts): half an affine, and a growing displacement before it."""
    field = cases.field_image(cases.fixed_image())
    array = sitk.GetArrayFromImage(field) * np.array([-1, -1, 1], dtype=np.float32)
    world = cases.ras_matrix(field)[:, [2, 1, 0, 3]]
    matrix = cases.LPS @ cases.affine_matrix() @ cases.LPS
    return [
        (
            t,
            [
                {"displacement": Image(array * np.float32(t), world)},
                {"matrix": matrix * t + np.eye(4) * (1 - t)},
            ],
        )
        for t in TIMES
    ]


def scaled(t: float) -> sitk.Transform:
    affine = cases.affine_matrix() * t + np.eye(4) * (1 - t)
    field = cases.field_image(cases.fixed_image())
    part = sitk.GetImageFromArray(sitk.GetArrayFromImage(field) * np.float32(t), isVector=True)
    part.CopyInformation(field)
    return cases.itk_transform(part, affine)


def test_each_item_moves_the_volume_so_far(scene, volumes):
    fixed, moving = volumes
    sequence, browser = path_sequence(scene, path(), fixed, moving, "path")
    assert (sequence.GetName(), browser.GetName()) == ("path", "path browser")
    assert [sequence.GetNthIndexValue(i) for i in range(3)] == ["0", "25", "100"]
    assert sequence.GetIndexUnit() == "%"
    proxy = browser.GetProxyNode(sequence)
    moving.SetAndObserveTransformNodeID(proxy.GetID())
    for number, t in enumerate(TIMES):
        show_item(browser, number)
        assert browser.GetProxyNode(sequence) is proxy
        assert moving.GetParentTransformNode() is proxy
        expected = cases.resampled(cases.moving_image(), cases.fixed_image(), scaled(t))
        difference = np.abs(cases.slicer_resampled(moving, fixed) - expected).max()
        assert difference < 1e-3 * 400, t
    assert np.abs(expected - cases.resampled(cases.moving_image(), cases.fixed_image(), scaled(0))).max() > 40


def test_the_proxy_knows_its_volumes_and_parent(scene, volumes):
    fixed, moving = volumes
    parent = cases.under(scene, moving, cases.some_parent(2))
    sequence, browser = path_sequence(scene, path(), fixed, moving, "path")
    proxy = browser.GetProxyNode(sequence)
    moving.SetAndObserveTransformNodeID(proxy.GetID())
    show_item(browser, 2)
    assert np.array_equal(parent_of(proxy), parent)
    assert proxy.GetNodeReference("spatialRegistrationMoving") is moving
    assert proxy.GetNodeReference("spatialRegistrationFixed") is fixed
    expected = cases.resampled(cases.moving_image(), cases.fixed_image(), scaled(1))
    assert np.abs(cases.slicer_resampled(moving, fixed) - expected).max() < 1e-3 * 400


def test_a_saved_scene_keeps_the_path(scene, volumes, tmp_path):
    sequence, browser = path_sequence(scene, path(), *volumes, "path")
    show_item(browser, 1)
    points = np.random.default_rng(0).uniform(-10, 20, (50, 3))
    before = mapped(browser.GetProxyNode(sequence).GetTransformFromParent(), points)
    assert scene.WriteToMRB(str(tmp_path / "scene.mrb"))
    scene.Clear(0)
    assert scene.ReadFromMRB(str(tmp_path / "scene.mrb"))
    sequence, browser = scene.GetFirstNodeByName("path"), scene.GetFirstNodeByName("path browser")
    assert sequence.GetNumberOfDataNodes() == 3
    show_item(browser, 2)
    show_item(browser, 1)
    after = mapped(browser.GetProxyNode(sequence).GetTransformFromParent(), points)
    assert np.abs(after - before).max() < 1e-4


def test_nothing_is_left_of_a_path_that_cannot_be_made(scene, volumes):
    before = scene.GetNumberOfNodes()
    with pytest.raises(InputError, match="no path to show"):
        path_sequence(scene, [], *volumes, "path")
    sheared = path()
    sheared[2][1][0]["displacement"].world_from_voxel[0, 1] += 3
    with pytest.raises(GeometryError):
        path_sequence(scene, sheared, *volumes, "path")
    assert scene.GetNumberOfNodes() == before
