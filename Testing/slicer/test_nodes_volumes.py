"""Volume nodes to arrays and back, on a real MRML scene."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
import slicer
import vtk

from DiffeoRegLib.errors import GeometryError, InputError
from DiffeoRegLib.exchange import Image
from DiffeoRegPanel.nodes.places import parent_of
from DiffeoRegPanel.nodes.volumes import (
    grid_points,
    image_of,
    jacobian_on,
    place_of,
    velocity_node,
    velocity_of,
    velocity_volumes,
    volume_on,
    world_from_voxel,
)
from Testing.slicer import mrml_cases as cases

IJK_TO_KJI = [2, 1, 0, 3]


@pytest.fixture
def fixed(scene):
    return cases.volume(scene, cases.fixed_image(), "fixed")


def corner_mm(image: sitk.Image) -> np.ndarray:
    """RAS mm of the voxel i=2, j=3, k=5."""
    return cases.LPS[:3, :3] @ np.array(image.TransformIndexToPhysicalPoint((2, 3, 5)))


def reloaded(scene, tmp_path, kind: str) -> None:
    """The scene saved, closed and read again."""
    path = tmp_path / f"scene.{kind}"
    scene.SetRootDirectory(str(tmp_path))
    if kind == "mrb":
        assert scene.WriteToMRB(str(path))
        scene.Clear(0)
        assert scene.ReadFromMRB(str(path))
        return
    for index in range(scene.GetNumberOfNodesByClass("vtkMRMLStorableNode")):
        node = scene.GetNthNodeByClass(index, "vtkMRMLStorableNode")
        if (node.GetSaveWithScene() and node.IsA("vtkMRMLVolumeNode")) or node.GetAttribute(
            "DiffeoReg.Colours"
        ):
            assert node.AddDefaultStorageNode()
            storage = node.GetStorageNode()
            storage.SetFileName(str(tmp_path / f"{node.GetID()}.{storage.GetDefaultWriteFileExtension()}"))
            assert storage.WriteData(node)
    scene.SetURL(str(path))
    assert scene.Commit()
    scene.Clear(0)
    assert scene.Import()


def test_voxels_keep_their_place_and_are_not_copied(fixed):
    image = image_of(fixed)
    expected = cases.fixed_image()
    assert np.array_equal(image.array, sitk.GetArrayFromImage(expected))
    assert np.allclose((image.world_from_voxel @ [5, 3, 2, 1])[:3], corner_mm(expected), atol=1e-9)
    image.array[0, 0, 0] = -7
    assert fixed.GetImageData().GetScalarComponentAsDouble(0, 0, 0, 0) == -7


def test_linear_parents_are_folded_in(scene, fixed):
    inner, outer = cases.some_parent(1), cases.affine_matrix()
    alone = world_from_voxel(fixed)
    inner_node, outer_node = (
        cases.linear_node(scene, inner, "inner"),
        cases.linear_node(scene, outer, "outer"),
    )
    fixed.SetAndObserveTransformNodeID(inner_node.GetID())
    inner_node.SetAndObserveTransformNodeID(outer_node.GetID())
    assert np.allclose(world_from_voxel(fixed), outer @ inner @ alone, atol=1e-9)


def test_a_non_linear_parent_is_refused_and_left_alone(scene, fixed):
    node = scene.AddNewNodeByClass("vtkMRMLTransformNode", "warp")
    node.SetAndObserveTransformFromParent(vtk.vtkThinPlateSplineTransform())
    fixed.SetAndObserveTransformNodeID(node.GetID())
    with pytest.raises(InputError, match="'fixed' is under the non-linear transform 'warp'"):
        image_of(fixed)
    assert fixed.GetParentTransformNode() is node


def test_volumes_without_or_with_too_many_values_are_refused(scene):
    empty = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "empty")
    with pytest.raises(InputError, match="'empty' has no image data"):
        image_of(empty)
    empty.SetAndObserveImageData(vtk.vtkImageData())
    with pytest.raises(InputError, match="'empty' has no image data"):
        image_of(empty)
    field = cases.field_image(cases.fixed_image())
    colour = cases.volume(scene, field, "colour", "vtkMRMLVectorVolumeNode")
    with pytest.raises(InputError, match="'colour' has 3 values per voxel"):
        image_of(colour)


def test_a_result_lies_on_the_fixed_voxels_under_the_same_parent(scene, fixed):
    cases.under(scene, fixed, cases.some_parent(2))
    values = image_of(fixed).array.astype(np.float64) / 3
    node = volume_on(fixed, Image(values, np.eye(4)), "moved")
    assert node.GetClassName() == "vtkMRMLScalarVolumeNode"
    assert node.GetParentTransformNode() is fixed.GetParentTransformNode()
    assert np.array_equal(world_from_voxel(node), world_from_voxel(fixed))
    assert image_of(node).array.dtype == np.float32
    assert np.array_equal(image_of(node).array, values.astype(np.float32))
    values[:] = 0
    assert image_of(node).array.any(), "the node has its own copy"


def test_a_given_node_is_filled_and_a_name_is_not_used_twice(scene, fixed):
    zeros = np.zeros(image_of(fixed).array.shape)
    first = volume_on(fixed, zeros, "moved")
    assert volume_on(fixed, zeros + 1, "other", node=first) is first
    assert first.GetName() == "moved"
    assert (image_of(first).array == 1).all()
    assert volume_on(fixed, zeros, "moved").GetName() == "moved_1"


def test_a_node_of_another_kind_or_size_is_refused(scene, fixed):
    shape = image_of(fixed).array.shape
    labels = scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "labels")
    with pytest.raises(InputError, match="'labels' is a LabelMapVolume node and cannot hold an image"):
        volume_on(fixed, np.zeros(shape), "moved", node=labels)
    with pytest.raises(InputError, match="cannot hold labels"):
        volume_on(fixed, np.zeros(shape), "moved", node=fixed, label=True)
    with pytest.raises(GeometryError, match="changed during the run"):
        volume_on(fixed, np.zeros((2, *shape[1:])), "moved")


@pytest.mark.parametrize(("highest", "kind"), [(300, np.int16), (70000, np.int32)])
def test_labels_stay_whole_numbers(fixed, highest, kind):
    array = np.zeros(image_of(fixed).array.shape, dtype=np.int64)
    array[1, 2, 3] = highest
    node = volume_on(fixed, array, "regions", label=True)
    assert node.GetClassName() == "vtkMRMLLabelMapVolumeNode"
    assert image_of(node).array.dtype == kind
    assert image_of(node).array[1, 2, 3] == highest


def test_window_and_colours_are_those_of_the_moving_volume(scene, fixed):
    moving = cases.volume(scene, cases.moving_image(), "moving")
    moving.CreateDefaultDisplayNodes()
    moving.GetDisplayNode().AutoWindowLevelOff()
    moving.GetDisplayNode().SetWindowLevel(123, 45)
    moving.GetDisplayNode().SetAndObserveColorNodeID("vtkMRMLColorTableNodeWarm1")
    node = volume_on(fixed, np.zeros(image_of(fixed).array.shape), "moved", display_like=moving)
    display = node.GetDisplayNode()
    assert (display.GetWindow(), display.GetLevel(), display.GetAutoWindowLevel()) == (123, 45, 0)
    assert display.GetColorNodeID() == "vtkMRMLColorTableNodeWarm1"
    assert display is not moving.GetDisplayNode()


@pytest.mark.parametrize("kind", ["mrml", "mrb"])
def test_the_determinants_colours_say_fold_shrink_same_and_grow(scene, fixed, tmp_path, kind):
    determinant = np.ones(image_of(fixed).array.shape)
    node = jacobian_on(fixed, determinant, "determinants")
    other = jacobian_on(fixed, determinant, "more")
    assert node.GetDisplayNode().GetColorNode() is other.GetDisplayNode().GetColorNode()
    reloaded(scene, tmp_path, kind)
    display = scene.GetFirstNodeByName("determinants").GetDisplayNode()
    assert (display.GetWindowLevelMin(), display.GetWindowLevelMax()) == (0.0, 2.0)
    table, colour = display.GetColorNode().GetLookupTable(), [0.0] * 3
    seen = []
    for value in (0.0, 0.5, 1.0, 1.5):
        table.GetColor(value / 2 * 256, colour)
        seen.append(np.array(colour))
    assert np.allclose(seen[0], [1, 1, 0], atol=0.01)
    assert seen[1][2] > seen[1][0] + 0.2, "blue"
    assert np.ptp(seen[2]) < 0.01, "grey"
    assert seen[3][0] > seen[3][2] + 0.2, "red"


def velocity(scene, fixed, **more):
    field = cases.field_image(cases.fixed_image())
    array = sitk.GetArrayFromImage(field) * np.array([-1, -1, 1], dtype=np.float32)
    array[3, 14, 16] = 30, -20, 10  # no vector like it on the other side of the middle
    image = Image(array, cases.ras_matrix(field)[:, IJK_TO_KJI])
    moving = cases.volume(scene, cases.moving_image(), "moving")
    cases.under(scene, moving, cases.some_parent(3))
    matrices = [cases.affine_matrix(), cases.some_parent(1)]
    return image, velocity_node(scene, image, 16, matrices, "velocity", fixed, moving, **more)


@pytest.mark.parametrize("kind", ["mrml", "mrb"])
def test_the_velocity_survives_saving_and_loading_unturned(scene, fixed, tmp_path, kind):
    image, _ = velocity(scene, fixed)
    reloaded(scene, tmp_path, kind)
    node = scene.GetFirstNodeByName("velocity")
    job = velocity_of(node)
    assert job["velocity"].array.dtype == np.float32
    # Slicer's reader reverses the slices of a left-handed volume: the same vectors at each point.
    turned = job["velocity"].world_from_voxel @ np.array(
        [[-1, 0, 0, len(image.array) - 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    )
    assert np.linalg.det(image.world_from_voxel[:3, IJK_TO_KJI[:3]]) < 0
    assert np.allclose(turned, image.world_from_voxel, atol=1e-6)
    assert np.array_equal(job["velocity"].array[::-1], image.array)
    assert job["steps"] == 16
    assert np.array_equal(job["initial"][0]["matrix"], cases.some_parent(1) @ cases.affine_matrix())
    assert np.array_equal(parent_of(node), cases.some_parent(3))
    assert [volume.GetName() for volume in velocity_volumes(node)] == ["fixed", "moving"]


def test_vectors_that_a_reader_turned_come_back_right_and_changed_ones_are_refused(scene, fixed):
    image, node = velocity(scene, fixed)
    inside = slicer.util.arrayFromVolume(node)
    inside[:] *= np.array([-1, -1, 1], dtype=np.float32)
    assert np.array_equal(velocity_of(node)["velocity"].array, image.array)
    inside[:] *= 2
    with pytest.raises(InputError, match="The velocity in 'velocity' was changed"):
        velocity_of(node)


def test_the_volumes_of_a_velocity_may_be_gone(scene, fixed):
    with pytest.raises(InputError, match="holds no velocity"):
        velocity_of(fixed)
    _, node = velocity(scene, fixed)
    scene.RemoveNode(fixed)
    assert velocity_volumes(node)[0] is None
    node.RemoveAttribute("DiffeoReg.VelocitySteps")
    with pytest.raises(InputError, match="'velocity' was changed"):
        velocity_of(node)


def test_a_velocity_that_was_moved_is_refused(scene, fixed):
    _, node = velocity(scene, fixed)
    node.SetOrigin(1000, 0, 0)
    with pytest.raises(InputError, match=r"was changed \(it was moved\)"):
        velocity_of(node)


def test_a_given_velocity_node_is_filled(scene, fixed):
    node = scene.AddNewNodeByClass("vtkMRMLVectorVolumeNode", "mine")
    image, filled = velocity(scene, fixed, node=node)
    assert filled is node
    assert np.array_equal(velocity_of(node)["velocity"].array, image.array)
    with pytest.raises(InputError, match="'fixed' is no vector volume"):
        velocity(scene, fixed, node=fixed)


def test_points_are_spread_over_the_whole_volume(fixed):
    points = grid_points(fixed, about=500)
    place = place_of(fixed)
    index = (points - np.array(place["world_from_voxel"])[:3, 3]) @ np.linalg.inv(
        np.array(place["world_from_voxel"])[:3, :3]
    ).T
    assert 250 < len(points) < 1000
    assert np.allclose(index, index.round(), atol=1e-9)
    assert np.allclose(index.min(axis=0), 0, atol=1e-9)
    assert np.allclose(index.max(axis=0), np.array(place["shape"]) - 1, atol=1e-9)
