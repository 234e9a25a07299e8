"""Transform nodes there and back: files, scenes, inverses, initial transforms, announced sizes."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
import vtk

from DiffeoRegPanel.nodes.grids import mapped
from DiffeoRegPanel.nodes.places import parent_of
from DiffeoRegPanel.nodes.transforms import (
    inverse_error_mm,
    inverse_transform,
    output_transform,
    parts_of,
    transform_from_parts,
)
from DiffeoRegPanel.nodes.volumes import grid_points, world_from_voxel
from Testing.slicer import mrml_cases as cases
from Testing.slicer.mrml_cases import loaded, saved
from Testing.slicer.pair_cases import Pair, itk_mapped, points_mm

TOLERANCE = 1e-3  # of the intensity range


@pytest.fixture
def pair(scene):
    return Pair(scene)


# -- files ---------------------------------------------------------------------------------------------------


def test_an_h5_file_comes_back_and_means_the_same_in_simpleitk(pair, tmp_path):
    node = output_transform(pair.scene, pair.parts(), pair.fixed, pair.moving)
    path = tmp_path / "transform.h5"
    saved(node, path)
    points = points_mm(pair)
    again = loaded(pair.scene, path)
    both = [mapped(n.GetTransformFromParent(), points) for n in (node, again)]
    assert np.abs(both[0] - both[1]).max() < 1e-4
    assert pair.difference(pair.seen(again), pair.expected()) < TOLERANCE
    transform = sitk.ReadTransform(str(path))
    assert (
        pair.difference(pair.expected(), cases.resampled(pair.moving_image, pair.fixed_image, transform))
        < TOLERANCE
    )
    far = points + 500  # outside of the grid all programs go on with the affine alone
    assert np.abs(mapped(node.GetTransformFromParent(), far) - itk_mapped(transform, far)).max() < 1e-6


def test_an_nrrd_field_comes_back_and_means_the_same_in_simpleitk(pair, tmp_path):
    node = output_transform(pair.scene, [pair.displacement], pair.fixed, pair.moving)
    path = tmp_path / "field.nrrd"
    saved(node, path)
    again = loaded(pair.scene, path)
    assert pair.difference(pair.seen(again), pair.expected(pair.field)) < TOLERANCE
    field = sitk.ReadImage(str(path))
    assert np.abs(sitk.GetArrayFromImage(field) - sitk.GetArrayFromImage(pair.field)).max() < 1e-6
    assert np.allclose(field.GetOrigin(), pair.field.GetOrigin(), atol=1e-6)


def test_a_scene_keeps_node_parent_and_references(pair, tmp_path):
    cases.under(pair.scene, pair.moving, cases.some_parent(2))
    node = output_transform(pair.scene, pair.parts(), pair.fixed, pair.moving)
    points = points_mm(pair)
    before, parent = mapped(node.GetTransformFromParent(), points), parent_of(node)
    assert pair.scene.WriteToMRB(str(tmp_path / "scene.mrb"))
    pair.scene.Clear(0)
    assert pair.scene.ReadFromMRB(str(tmp_path / "scene.mrb"))
    node = pair.scene.GetFirstNodeByName("MR -> CT")
    assert np.abs(mapped(node.GetTransformFromParent(), points) - before).max() < 1e-4
    assert np.array_equal(parent_of(node), parent)
    assert node.GetNodeReference("spatialRegistrationMoving").GetName() == "MR"


# -- inverse -------------------------------------------------------------------------------------------------


def test_the_inverse_node_undoes_the_transform(pair):
    node = output_transform(pair.scene, pair.parts(), pair.fixed, pair.moving)
    inverse = inverse_transform(pair.scene, pair.inverse_parts(), pair.fixed, pair.moving)
    points = points_mm(pair)
    error = inverse_error_mm(node, inverse, points)
    assert 0 < error["mean"] <= error["p95"] <= error["max"] < 0.1
    affine_only = inverse_transform(pair.scene, pair.inverse_parts()[:1], pair.fixed, pair.moving)
    assert inverse_error_mm(node, affine_only, points)["max"] > 1


def test_the_worse_inverse_is_reported(pair):
    """VTK's own inverse of the node is what moves points and surfaces: a good inverse node hides it not."""
    node = output_transform(pair.scene, [pair.displacement], pair.fixed, pair.moving)
    good = cases.numeric_inverse(node, "inverse")
    points = points_mm(pair)
    assert inverse_error_mm(node, good, points)["max"] < 0.02
    node.GetTransformFromParent().SetInverseTolerance(2.0)
    assert inverse_error_mm(node, good, points)["max"] > 0.1


# -- initial transforms --------------------------------------------------------------------------------------


def test_a_linear_initial_transform_is_its_matrix_from_the_world(pair):
    inner, outer = cases.some_parent(1), cases.some_parent(2)
    node, above = cases.linear_node(pair.scene, inner, "inner"), cases.linear_node(pair.scene, outer, "outer")
    node.SetAndObserveTransformNodeID(above.GetID())
    (part,) = parts_of(node, pair.fixed)
    assert np.allclose(part["matrix"], np.linalg.inv(outer @ inner), atol=1e-9)


def test_any_other_initial_transform_is_sampled_over_the_fixed_volume(pair):
    """Put the moving volume under the node: the parts say where fixed points then are in it."""
    node = output_transform(pair.scene, pair.parts(), pair.fixed, pair.moving)
    outer = cases.some_parent(1)
    node.SetAndObserveTransformNodeID(cases.linear_node(pair.scene, outer, "outer").GetID())
    cases.under(pair.scene, pair.fixed, cases.some_parent(2))
    (part,) = parts_of(node, pair.fixed)
    points = points_mm(pair)
    inside = points @ np.linalg.inv(outer)[:3, :3].T + np.linalg.inv(outer)[:3, 3]
    expected = mapped(transform_from_parts(pair.parts()), inside)
    assert np.abs(mapped(transform_from_parts([part]), points) - expected).max() < 0.02
    steps = part["displacement"].world_from_voxel[:3, :3]
    assert np.allclose(steps, world_from_voxel(pair.fixed)[:3, :3]), "directions and spacing of the volume"
    corners = (
        np.linalg.inv(part["displacement"].world_from_voxel) @ np.c_[grid_points(pair.fixed), np.ones(7200)].T
    )
    assert corners[:3].min() > 0.4
    assert (np.array(part["displacement"].array.shape[:3]) - 1.4 > corners[:3].T).all()


def test_a_large_or_sheared_volume_is_covered_by_a_coarser_upright_grid(pair, monkeypatch):
    monkeypatch.setattr("DiffeoRegPanel.nodes.grids.MOST_VOXELS", 1000)
    matrix = vtk.vtkMatrix4x4()
    pair.fixed.GetIJKToRASMatrix(matrix)
    matrix.SetElement(0, 2, matrix.GetElement(0, 2) + 0.6)
    pair.fixed.SetIJKToRASMatrix(matrix)
    node = output_transform(pair.scene, [pair.displacement], pair.fixed, pair.moving)
    (part,) = parts_of(node, pair.fixed)
    world, shape = part["displacement"].world_from_voxel, part["displacement"].array.shape[:3]
    step = world[:3, :3]
    spacing = np.linalg.norm(step, axis=0)
    assert np.allclose((step / spacing).T @ (step / spacing), np.eye(3), atol=1e-9)
    assert np.allclose(spacing, 2 * np.linalg.norm(world_from_voxel(pair.fixed)[:3, :3], axis=0))
    index = (np.linalg.inv(world) @ np.c_[grid_points(pair.fixed), np.ones(7200)].T)[:3].T
    assert (index > 0).all()
    assert (index < np.array(shape) - 1).all()
