"""Transform nodes against SimpleITK on a hostile pair: the numbers that say the node is right."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
import slicer
import vtk

from DiffeoRegLib.errors import GeometryError, InputError
from DiffeoRegLib.exchange import Image
from DiffeoRegPanel.nodes.grids import SLICE_COPIES, mapped
from DiffeoRegPanel.nodes.places import parent_of
from DiffeoRegPanel.nodes.transforms import (
    apply_to,
    check_output_node,
    inverse_error_mm,
    inverse_transform,
    output_transform,
    transform_from_parts,
)
from DiffeoRegPanel.nodes.volumes import world_from_voxel
from Testing.slicer import mrml_cases as cases
from Testing.slicer.mrml_cases import numeric_inverse, saved
from Testing.slicer.pair_cases import FLIP, Pair, itk_mapped, points_mm

TOLERANCE = 1e-3  # of the intensity range


@pytest.fixture
def pair(scene):
    return Pair(scene)


# -- the convention ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["displacement", "matrix", "both"])
def test_slicer_shows_what_simpleitk_resamples(pair, which):
    parts, itk = {
        "displacement": ([pair.displacement], [pair.field]),
        "matrix": ([pair.matrix], [pair.affine]),
        "both": (pair.parts(), [pair.field, pair.affine]),
    }[which]
    node = output_transform(pair.scene, parts, pair.fixed, pair.moving)
    assert pair.difference(pair.seen(node), pair.expected(*itk)) < TOLERANCE


def test_the_first_part_acts_first(pair):
    """After the affine the field is read between its nodes: cubic here, linear in ITK."""
    node = output_transform(pair.scene, [pair.matrix, pair.displacement], pair.fixed, pair.moving)
    points = points_mm(pair)
    expected = itk_mapped(cases.itk_transform(pair.affine, pair.field), points)
    assert np.abs(mapped(node.GetTransformFromParent(), points) - expected).max() < 0.05
    other = itk_mapped(cases.itk_transform(pair.field, pair.affine), points)
    assert np.abs(other - expected).max() > 0.5


def test_wrong_conventions_are_far_off(pair):
    """So the tests above cannot pass by accident."""
    expected = pair.expected()
    array, world = pair.displacement["displacement"].array, pair.displacement["displacement"].world_from_voxel
    not_flipped = [{"displacement": Image(array * FLIP, world)}, pair.matrix]
    wrong_order = [pair.matrix, pair.displacement]
    for parts in (not_flipped, wrong_order, [pair.matrix]):
        node = output_transform(pair.scene, parts, pair.fixed, pair.moving)
        assert pair.difference(pair.seen(node), expected) > 0.1
    node.SetAndObserveTransformToParent(transform_from_parts(pair.parts()))
    assert pair.difference(pair.seen(node), expected) > 0.1


def test_a_node_has_the_right_name_place_and_references(pair):
    node = output_transform(pair.scene, pair.parts(), pair.fixed, pair.moving)
    inverse = inverse_transform(pair.scene, pair.inverse_parts(), pair.fixed, pair.moving)
    assert (node.GetName(), inverse.GetName()) == ("MR -> CT", "CT -> MR")
    assert node.GetClassName() == inverse.GetClassName() == "vtkMRMLTransformNode"
    assert node.GetNodeReference("spatialRegistrationMoving") is pair.moving
    assert node.GetNodeReference("spatialRegistrationFixed") is pair.fixed
    assert inverse.GetNodeReference("spatialRegistrationMoving") is pair.fixed
    assert inverse.GetNodeReference("spatialRegistrationFixed") is pair.moving
    assert node.GetParentTransformNode() is None
    assert not node.IsAbstractTransformComputedFromInverse(node.GetTransformFromParent())
    again = output_transform(pair.scene, pair.parts(), pair.fixed, pair.moving, name="mine")
    assert again.GetName() == "mine"


def test_a_single_part_is_no_composite_and_grids_are_cubic_float(pair):
    alone = transform_from_parts([pair.displacement, {"matrix": np.eye(4).tolist()}])
    assert isinstance(alone, slicer.vtkOrientedGridTransform)
    assert alone.GetInterpolationModeAsString() == "Cubic"
    assert alone.GetDisplacementGrid().GetScalarTypeAsString() == "float"
    assert isinstance(transform_from_parts([pair.matrix, pair.matrix]), vtk.vtkTransform)
    assert isinstance(transform_from_parts([]), vtk.vtkTransform)
    assert transform_from_parts(pair.parts()).GetNumberOfConcatenatedTransforms() == 2


def test_neighbouring_matrices_are_applied_in_order():
    first, second, third = cases.some_parent(1), cases.affine_matrix(), cases.some_parent(3)
    transform = transform_from_parts([{"matrix": first}, {"matrix": second}], then=third)
    assert np.allclose(transform.TransformPoint(1, 2, 3), (third @ second @ first @ [1, 2, 3, 1])[:3])


def test_a_grid_without_right_angles_is_refused(pair):
    world = pair.displacement["displacement"].world_from_voxel.copy()
    world[:3, 0] += 0.1 * world[:3, 1]
    with pytest.raises(GeometryError, match="no right angles"):
        transform_from_parts([{"displacement": Image(pair.displacement["displacement"].array, world)}])


# -- parents -------------------------------------------------------------------------------------------------


def test_parents_of_both_volumes_are_folded_in(pair):
    """The same world as without parents: the same picture, on the fixed volume's voxels, in the world."""
    cases.under(pair.scene, pair.fixed, cases.some_parent(1))
    moving_parent = cases.under(pair.scene, pair.moving, cases.some_parent(2))
    node = output_transform(pair.scene, pair.parts(), pair.fixed, pair.moving)
    inverse = inverse_transform(pair.scene, pair.inverse_parts(), pair.fixed, pair.moving)
    assert np.array_equal(parent_of(node), moving_parent)
    points = points_mm(pair)
    expected = itk_mapped(cases.itk_transform(pair.field, pair.affine), points)
    local = mapped(node.GetTransformFromParent(), points)
    assert np.abs(local @ moving_parent[:3, :3].T + moving_parent[:3, 3] - expected).max() < 0.05
    # A fixed volume under a transform is no reference for Slicer's resampling: a copy of it at the root is.
    pair.fixed = cases.volume(pair.scene, pair.fixed_image, "same place, no parent")
    assert pair.difference(pair.seen(node), pair.expected()) < TOLERANCE
    apply_to(node, pair.moving)
    assert inverse_error_mm(node, inverse, points)["max"] < 0.1, "also while the moving volume is under it"


def test_the_parent_during_the_run_counts_if_it_is_given(pair):
    parent = cases.under(pair.scene, pair.moving, cases.some_parent(2))
    pair.moving.SetAndObserveTransformNodeID(None)  # the user took it out while the worker was running
    node = output_transform(pair.scene, pair.parts(), pair.fixed, pair.moving, parent=parent)
    assert pair.difference(pair.seen(node), pair.expected()) < TOLERANCE


def test_a_non_linear_parent_is_refused_and_nothing_made(pair):
    warp = output_transform(pair.scene, pair.parts(), pair.fixed, pair.moving)
    apply_to(warp, pair.moving)
    before = pair.scene.GetNumberOfNodes()
    with pytest.raises(InputError, match="'MR' is under the non-linear transform 'MR -> CT'"):
        output_transform(pair.scene, pair.parts(), pair.fixed, pair.moving)
    assert pair.scene.GetNumberOfNodes() == before


# -- nodes given by the user ---------------------------------------------------------------------------------


def test_a_given_node_is_filled_and_taken_to_the_root(pair):
    for kind in ("vtkMRMLTransformNode", "vtkMRMLGridTransformNode"):
        given = pair.scene.AddNewNodeByClass(kind, "mine")
        given.SetAndObserveTransformNodeID(
            cases.linear_node(pair.scene, cases.some_parent(1), "outer").GetID()
        )
        given.SetAttribute("DiffeoReg.VolumeParent", "1 2 3")
        node = output_transform(pair.scene, pair.parts(), pair.fixed, pair.moving, node=given)
        assert node is given
        assert node.GetName() == "mine"
        assert node.GetParentTransformNode() is None
        assert np.array_equal(parent_of(node), np.eye(4))
        assert pair.difference(pair.seen(node), pair.expected()) < TOLERANCE
    # What modules that list grid nodes only expect to find there.
    assert slicer.util.arrayFromGridTransform(node).shape == pair.displacement["displacement"].array.shape


def test_a_grid_node_takes_an_inverse_too(pair):
    """Its grid lies where the moving points are, far from where the displacements were."""
    far = {"matrix": cases.some_parent(3)}
    parts = [{"matrix": np.linalg.inv(far["matrix"])}, pair.inverse_parts()[1]]
    given = pair.scene.AddNewNodeByClass("vtkMRMLGridTransformNode", "mine")
    inverse = inverse_transform(pair.scene, parts, pair.fixed, pair.moving, node=given)
    points = points_mm(pair)
    there = mapped(transform_from_parts([pair.displacement, far]), points)
    assert np.abs(there - points).max() > 30
    assert np.abs(mapped(inverse.GetTransformFromParent(), there) - points).max() < 0.1


def test_a_linear_node_takes_a_linear_result_only(pair):
    given = pair.scene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "mine")
    output_transform(pair.scene, [pair.matrix], pair.fixed, pair.moving, node=given)
    assert pair.difference(pair.seen(given), pair.expected(pair.affine)) < TOLERANCE
    with pytest.raises(InputError, match="'mine' is a LinearTransform node and cannot hold a deformation"):
        output_transform(pair.scene, pair.parts(), pair.fixed, pair.moving, node=given)
    grid = pair.scene.AddNewNodeByClass("vtkMRMLGridTransformNode", "grid")
    with pytest.raises(InputError, match="cannot hold a linear transform"):
        check_output_node(grid, deformable=False)
    spline = pair.scene.AddNewNodeByClass("vtkMRMLBSplineTransformNode", "spline")
    with pytest.raises(InputError, match="cannot hold a deformation"):
        check_output_node(spline, deformable=True)


def test_a_transform_that_moves_the_fixed_volume_is_no_output(pair):
    cases.under(pair.scene, pair.fixed, cases.some_parent(1))
    outer = cases.linear_node(pair.scene, np.eye(4), "outer")
    pair.fixed.GetParentTransformNode().SetAndObserveTransformNodeID(outer.GetID())
    with pytest.raises(InputError, match="'outer' moves 'CT'"):
        output_transform(pair.scene, pair.parts(), pair.fixed, pair.moving, node=outer)


# -- a single slice ------------------------------------------------------------------------------------------


def test_a_single_slice_is_moved_as_in_simpleitk_and_has_a_thickness(scene, tmp_path):
    pair = Pair(scene, fixed_size=(40, 36, 1), moving_size=(44, 40, 9))
    assert pair.displacement["displacement"].array.shape[0] == 1
    node = output_transform(scene, pair.parts(), pair.fixed, pair.moving)
    inside = pair.expected()
    assert (inside > 0).mean() > 0.3
    assert pair.difference(pair.seen(node), inside) < TOLERANCE
    saved(node, tmp_path / "slice.h5")
    transform = sitk.ReadTransform(str(tmp_path / "slice.h5"))
    grid = world_from_voxel(pair.fixed)
    middle = grid[:3, 3] + grid[:3, 1] * 18 + grid[:3, 2] * 20
    turn, through = pair.matrix["matrix"][:3, :3], grid[:3, 0]
    points = middle + np.outer([0, 0.5, -0.5, 1], through)
    moved = mapped(node.GetTransformFromParent(), points) - (points - middle) @ turn.T
    assert np.abs(moved - moved[0]).max() < 1e-6, "the same motion throughout its thickness"
    for t in (0.0, 1.0, SLICE_COPIES + 1.0, SLICE_COPIES + 20.0):
        point = middle[None] + t * grid[:3, 0]
        assert (
            np.abs(mapped(node.GetTransformFromParent(), point) - itk_mapped(transform, point)).max() < 1e-5
        )
    back = numeric_inverse(node, "back")
    points = middle + np.random.default_rng(1).uniform(-5, 5, (50, 2)) @ grid[:3, 1:3].T
    there = mapped(node.GetTransformFromParent(), points)
    assert np.abs(mapped(back.GetTransformFromParent(), there) - points).max() < 0.02
