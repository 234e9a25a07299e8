"""Markups and models carried by the inverse registration: right in the world, everything else as it was."""

from __future__ import annotations

import numpy as np
import pytest
import slicer
import vtk
from vtk.util import numpy_support

from DiffeoRegLib.errors import InputError
from DiffeoRegPanel.nodes import points
from Testing.slicer import region_cases as cases

KINDS = {"Fiducial": 4, "Line": 2, "Angle": 3, "Curve": 5, "ClosedCurve": 4, "Plane": 1, "ROI": 1}
FIXED_TURN = cases.rotation((3, 7, -11), (2.5, -1.25, 4))
MARKUPS_TURN = cases.rotation((-6, 4, 9), (-3, 2, 1.5))


@pytest.fixture
def fixed(scene):
    node = cases.add_volume(cases.FIXED_SHAPE, cases.FIXED_PLACE, "fixed")
    cases.add_parent(scene, node, FIXED_TURN)
    return node


def markups(scene, kind, turn=MARKUPS_TURN):
    node = scene.AddNewNodeByClass(f"vtkMRMLMarkups{kind}Node", kind.lower())
    cases.add_parent(scene, node, turn)
    node.CreateDefaultDisplayNodes()
    for n, position in enumerate(np.random.default_rng(3).normal(0, 15, (KINDS[kind], 3))):
        node.AddControlPoint(vtk.vtkVector3d(*position), f"label {n}")
        node.SetNthControlPointDescription(n, f"about {n}")
        node.SetNthControlPointLocked(n, n % 2 == 0)
        node.SetNthControlPointVisibility(n, n != 1)
    node.GetDisplayNode().SetSelectedColor(0.1, 0.2, 0.3)
    node.GetDisplayNode().SetGlyphScale(4.5)
    node.GetDisplayNode().SetVisibility(False)
    return node


def moved(world):
    field = cases.vtk_field()
    return np.array([field.TransformPoint(point) for point in world])


def test_points_are_in_the_world_and_only_those_placed(scene):
    node = markups(scene, "Fiducial")
    local = np.random.default_rng(3).normal(0, 15, (4, 3))
    node.UnsetNthControlPointPosition(2)
    right = (local @ MARKUPS_TURN[:3, :3].T + MARKUPS_TURN[:3, 3])[[0, 1, 3]]
    np.testing.assert_allclose(points.points_of(node), right, atol=1e-9)
    node.RemoveAllControlPoints()
    assert points.points_of(node).shape == (0, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_markups_is_carried(scene, fixed, kind):
    node = markups(scene, kind)
    before = points.points_of(node)
    out = points.transfer_markups(node, cases.vtk_field(), fixed)
    assert out.GetClassName() == node.GetClassName()
    assert out.GetName() == f"{kind.lower()} on fixed"
    assert out.GetTransformNodeID() == fixed.GetTransformNodeID()
    assert np.abs(before - moved(before)).max() > 1
    np.testing.assert_allclose(points.points_of(out), moved(before), atol=1e-7)
    np.testing.assert_array_equal(points.points_of(node), before)
    for n in range(KINDS[kind]):
        assert out.GetNthControlPointLabel(n) == f"label {n}"
        assert out.GetNthControlPointDescription(n) == f"about {n}"
        assert out.GetNthControlPointLocked(n) == (n % 2 == 0)
        assert out.GetNthControlPointVisibility(n) == (n != 1)
    look = out.GetDisplayNode()
    assert look is not node.GetDisplayNode()
    assert look.GetSelectedColor() == (0.1, 0.2, 0.3)
    assert (look.GetGlyphScale(), look.GetVisibility()) == (4.5, False)


def test_a_plane_turns_with_the_anatomy(scene, fixed):
    node = markups(scene, "Plane", np.eye(4))
    node.SetNormalWorld(0, 0.6, 0.8)
    turn = vtk.vtkTransform()
    turn.RotateX(30)
    out = points.transfer_markups(node, turn, fixed)
    normal = np.zeros(3)
    out.GetNormalWorld(normal)
    np.testing.assert_allclose(normal, turn.TransformVector(0, 0.6, 0.8), atol=1e-6)


def test_unplaced_points_stay_unplaced(scene, fixed):
    node = markups(scene, "Fiducial")
    node.UnsetNthControlPointPosition(1)
    out = points.transfer_markups(node, cases.vtk_field(), fixed)
    assert out.GetNumberOfControlPoints() == 4
    assert out.GetNumberOfDefinedControlPoints() == 3
    np.testing.assert_allclose(points.points_of(out), moved(points.points_of(node)), atol=1e-9)


def test_a_given_node_is_filled(scene, fixed):
    node, out = markups(scene, "Fiducial"), markups(scene, "Fiducial")
    out.SetName("old")
    out.RemoveNthControlPoint(0)
    count = scene.GetNumberOfNodes()
    assert points.transfer_markups(node, cases.vtk_field(), fixed, node=out) is out
    assert scene.GetNumberOfNodes() == count
    assert out.GetName() == "old"
    np.testing.assert_allclose(points.points_of(out), moved(points.points_of(node)), atol=1e-9)
    with pytest.raises(InputError, match=r"cannot be carried into 'line'"):
        points.transfer_markups(node, cases.vtk_field(), fixed, node=markups(scene, "Line"))
    with pytest.raises(InputError, match=r"cannot be carried into"):
        points.transfer_markups(node, cases.vtk_field(), fixed, node=node)


def model(scene):
    ball = vtk.vtkSphereSource()
    ball.SetRadius(14)
    ball.SetThetaResolution(24)
    ball.SetPhiResolution(24)
    ball.Update()
    mesh = ball.GetOutput()
    depth = numpy_support.numpy_to_vtk(np.arange(mesh.GetNumberOfPoints(), dtype=float), deep=True)
    depth.SetName("depth")
    mesh.GetPointData().AddArray(depth)
    node = scene.AddNewNodeByClass("vtkMRMLModelNode", "ball")
    node.SetAndObservePolyData(mesh)
    cases.add_parent(scene, node, MARKUPS_TURN)
    node.CreateDefaultDisplayNodes()
    look = node.GetDisplayNode()
    look.SetColor(0.1, 0.2, 0.3)
    look.SetOpacity(0.5)
    look.SetActiveScalarName("depth")
    look.SetAndObserveColorNodeID("vtkMRMLColorTableNodeRainbow")
    return node


def world_points(node):
    local = numpy_support.vtk_to_numpy(node.GetMesh().GetPoints().GetData()).astype(float)
    matrix = vtk.vtkMatrix4x4()
    node.GetParentTransformNode().GetMatrixTransformToWorld(matrix)
    m = np.array([[matrix.GetElement(r, c) for c in range(4)] for r in range(4)])
    return local @ m[:3, :3].T + m[:3, 3]


def test_a_model_is_carried(scene, fixed):
    node = model(scene)
    before = world_points(node)
    mesh = node.GetMesh()
    out = points.transfer_model(node, cases.vtk_field(), fixed)
    np.testing.assert_allclose(world_points(out), moved(before), atol=1e-5)  # float32 points
    np.testing.assert_array_equal(world_points(node), before)
    assert node.GetMesh() is mesh
    assert out.GetMesh().GetNumberOfCells() == mesh.GetNumberOfCells()
    depth = out.GetMesh().GetPointData().GetArray("depth")
    np.testing.assert_array_equal(numpy_support.vtk_to_numpy(depth), np.arange(len(before)))
    assert out.GetTransformNodeID() == fixed.GetTransformNodeID()
    look = out.GetDisplayNode()
    assert look is not node.GetDisplayNode()
    assert (look.GetColor(), look.GetOpacity()) == ((0.1, 0.2, 0.3), 0.5)
    assert (look.GetActiveScalarName(), look.GetColorNodeID()) == ("depth", "vtkMRMLColorTableNodeRainbow")


def test_normals_stand_on_the_carried_surface(scene, fixed):
    node = model(scene)
    out = points.transfer_model(node, cases.vtk_field(), fixed)
    carried = numpy_support.vtk_to_numpy(out.GetMesh().GetPointData().GetNormals())
    bare = vtk.vtkPolyData()
    bare.DeepCopy(out.GetMesh())
    bare.GetPointData().SetNormals(None)
    again = vtk.vtkPolyDataNormals()  # from the moved triangles alone
    again.SetInputData(bare)
    again.SplittingOff()
    again.Update()
    right = numpy_support.vtk_to_numpy(again.GetOutput().GetPointData().GetNormals())
    stale = numpy_support.vtk_to_numpy(node.GetMesh().GetPointData().GetNormals())
    assert (carried * right).sum(axis=1).min() > 0.98
    assert (stale * right).sum(axis=1).min() < 0.9


def test_an_empty_model_and_bent_parents_are_refused(scene, fixed):
    empty = scene.AddNewNodeByClass("vtkMRMLModelNode", "nothing")
    count = scene.GetNumberOfNodes()
    with pytest.raises(InputError, match=r"model 'nothing' has no points"):
        points.transfer_model(empty, cases.vtk_field(), fixed)
    assert scene.GetNumberOfNodes() == count
    node = markups(scene, "Fiducial")
    cases.add_warped_parent(scene, node)
    count = scene.GetNumberOfNodes()
    with pytest.raises(InputError, match="non-linear"):
        points.transfer_markups(node, cases.vtk_field(), fixed)
    assert scene.GetNumberOfNodes() == count


def test_an_unstructured_mesh_is_carried(scene, fixed):
    convert = vtk.vtkAppendFilter()
    convert.AddInputData(model(scene).GetPolyData())
    convert.Update()
    node = scene.AddNewNodeByClass("vtkMRMLModelNode", "mesh")
    node.SetAndObserveMesh(convert.GetOutput())
    cases.add_parent(scene, node, np.eye(4))
    out = points.transfer_model(node, cases.vtk_field(), fixed)
    assert isinstance(out.GetMesh(), vtk.vtkUnstructuredGrid)
    np.testing.assert_allclose(world_points(out), moved(world_points(node)), atol=1e-5)
    assert slicer.mrmlScene is scene
