"""Segmentations and label maps against SimpleITK's nearest neighbour, on grids that agree in nothing."""

from __future__ import annotations

import numpy as np
import pytest
import slicer
import slicer.util
import vtk

from DiffeoRegLib.errors import InputError
from DiffeoRegPanel.nodes import layers, places, segmentations
from DiffeoRegPanel.request import Region
from Testing.slicer import region_cases as cases


@pytest.fixture
def fixed(scene):
    return cases.add_volume(cases.FIXED_SHAPE, cases.FIXED_PLACE, "fixed")


@pytest.fixture
def moving(scene):
    return cases.add_volume(cases.MOVING_SHAPE, cases.MOVING_PLACE, "moving")


def masks(node):
    return {key: cases.segment_mask(node, key) for key in node.GetSegmentation().GetSegmentIDs()}


@pytest.mark.parametrize("turned", [False, True], ids=["at the root", "under parent transforms"])
def test_transfer_equals_nearest_neighbour(scene, fixed, turned):
    source = cases.organs(scene)
    turns = {}
    if turned:
        cases.add_parent(scene, fixed, cases.FIXED_TURN)
        cases.add_parent(scene, source, cases.SEGMENTS_TURN)
        turns = {"moving_turn": cases.SEGMENTS_TURN, "fixed_turn": cases.FIXED_TURN}
    out = segmentations.transfer(source, cases.vtk_field(), fixed)
    labels = cases.expected(cases.labels(), **turns, transform=cases.sitk_field())
    ball = cases.expected(cases.ball(), **turns, transform=cases.sitk_field())
    found = masks(out)
    for key, right in {
        "id-liver": labels == 1, "id-tumour": labels == 2, "id-spine": labels == 7, "id-ball": ball == 1,
    }.items():  # fmt: skip
        assert right.sum() > 20
        assert np.count_nonzero(found[key] != right) == 0, key
    still = cases.expected(cases.labels(), **turns)
    assert np.count_nonzero((still == 1) != (labels == 1)) > 500  # the deformation matters


def test_transfer_lies_on_the_fixed_grid_in_the_world(scene, fixed):
    cases.add_parent(scene, fixed, cases.FIXED_TURN)
    out = segmentations.transfer(cases.organs(scene), cases.vtk_field(), fixed)
    assert out.GetTransformNodeID() == fixed.GetTransformNodeID()
    image = out.GetSegmentation().GetSegment("id-liver").GetRepresentation("Binary labelmap")
    matrix = vtk.vtkMatrix4x4()
    image.GetImageToWorldMatrix(matrix)
    np.testing.assert_allclose(layers.matrix_from_vtk(matrix), cases.FIXED_PLACE, atol=1e-9)
    assert image.GetDimensions() == fixed.GetImageData().GetDimensions()
    text = out.GetSegmentation().GetConversionParameter("Reference image geometry")
    geometry = slicer.vtkOrientedImageData()
    assert slicer.vtkSegmentationConverter.DeserializeImageGeometry(text, geometry, False)
    geometry.GetImageToWorldMatrix(matrix)
    np.testing.assert_allclose(layers.matrix_from_vtk(matrix), cases.FIXED_PLACE, atol=1e-4)


def test_transfer_keeps_everything_else(scene, fixed):
    source = cases.organs(scene)
    segmentation = source.GetSegmentation()
    code = "DICOM master list~SCT^123037004^Anatomical Structure~SCT^10200004^Liver~^^"
    segmentation.GetSegment("id-liver").SetTerminology(code)
    display = source.GetDisplayNode()
    display.SetSegmentOpacity3D("id-spine", 0.3)
    display.SetSegmentVisibility("id-tumour", False)
    display.SetOpacity(0.4)
    display.SetVisibility2DFill(False)
    before = masks(source)
    out = segmentations.transfer(source, cases.vtk_field(), fixed)
    carried = out.GetSegmentation()
    assert out.GetName() == "organs on fixed"
    assert list(carried.GetSegmentIDs()) == list(segmentation.GetSegmentIDs())
    for key in carried.GetSegmentIDs():
        one, other = carried.GetSegment(key), segmentation.GetSegment(key)
        assert one.GetName() == other.GetName()
        assert one.GetColor() == other.GetColor()
        assert one.GetLabelValue() == other.GetLabelValue()
        assert one.GetTerminology() == other.GetTerminology()
        assert vtk_string(one, "Sort") == f"tag of {one.GetName()}"
    assert carried.GetSegment("id-liver").GetTerminology() == code
    shared = carried.GetSegment("id-liver").GetRepresentation("Binary labelmap")
    assert carried.GetSegment("id-spine").GetRepresentation("Binary labelmap") is shared
    assert carried.GetSegment("id-ball").GetRepresentation("Binary labelmap") is not shared
    assert carried.GetNumberOfLayers() == 2
    look = out.GetDisplayNode()
    assert look is not display
    assert (look.GetOpacity(), look.GetVisibility2DFill()) == (0.4, False)
    assert look.GetSegmentOpacity3D("id-spine") == 0.3
    assert not look.GetSegmentVisibility("id-tumour")
    assert look.GetSegmentVisibility("id-liver")
    for key, mask in masks(source).items():
        np.testing.assert_array_equal(mask, before[key])


def vtk_string(segment, tag):
    value = vtk.reference("")
    assert segment.GetTag(tag, value)
    return str(value)


def test_transfer_fills_the_node_it_is_given(scene, fixed):
    source, out = cases.organs(scene), cases.organs(scene, "old")
    out.GetSegmentation().GetSegment("id-liver").SetName("stale")
    count = scene.GetNumberOfNodes()
    assert segmentations.transfer(source, cases.vtk_field(), fixed, node=out) is out
    assert scene.GetNumberOfNodes() == count
    assert out.GetName() == "old"
    assert out.GetSegmentation().GetSegment("id-liver").GetName() == "liver"
    fresh = segmentations.transfer(source, cases.vtk_field(), fixed)
    for key, mask in masks(fresh).items():
        np.testing.assert_array_equal(masks(out)[key], mask)
    with pytest.raises(InputError, match="onto itself"):
        segmentations.transfer(source, cases.vtk_field(), fixed, node=source)


@pytest.mark.parametrize("applied", [False, True], ids=["beside the node", "under the node"])
def test_transfer_through_the_output_node(scene, fixed, applied):
    """The node leads to the space in which the moving volume, here under a parent, is defined."""
    source = cases.organs(scene)
    cases.add_parent(scene, source, cases.SEGMENTS_TURN)
    by_world = segmentations.transfer(source, cases.vtk_field(), fixed)
    over = scene.AddNewNodeByClass("vtkMRMLTransformNode", "over")
    moving_turn = cases.SEGMENTS_TURN if applied else cases.rotation((9, -4, 2), (1, 5, -2))
    over.SetAndObserveTransformFromParent(layers.chain(cases.vtk_field(), np.linalg.inv(moving_turn)))
    places.remember_parent(over, moving_turn)
    if applied:
        source.SetAndObserveTransformNodeID(over.GetID())
    by_node = segmentations.transfer(source, over, fixed)
    for key, mask in masks(by_world).items():
        assert mask.any()
        np.testing.assert_array_equal(masks(by_node)[key], mask)


def test_empty_segments_stay_in_the_list(scene, fixed):
    source = cases.organs(scene)
    shared = source.GetSegmentation().AddEmptySegment("", "nothing yet")
    alone = slicer.vtkSegment()
    alone.AddRepresentation("Binary labelmap", slicer.vtkOrientedImageData())
    source.GetSegmentation().AddSegment(alone, "alone")
    carried = segmentations.transfer(source, cases.vtk_field(), fixed)
    out = carried.GetSegmentation()
    assert out.GetSegment(shared).GetName() == "nothing yet"
    assert not cases.segment_mask(carried, shared).any()
    assert out.GetSegment("alone").GetRepresentation("Binary labelmap").IsEmpty()
    assert list(out.GetSegmentIDs()) == list(source.GetSegmentation().GetSegmentIDs())
    assert {entry.key for entry in segmentations.labels_of(Region(source), fixed)[1].values()} == {
        "id-liver", "id-tumour", "id-spine", "id-ball",
    }  # fmt: skip


def surfaces(scene, radius=9.0):
    """A segmentation that holds a ball as a surface, and no voxels."""
    ball = vtk.vtkSphereSource()
    ball.SetRadius(radius)
    ball.SetCenter(4, -3, 6)
    ball.SetThetaResolution(60)
    ball.SetPhiResolution(60)
    ball.Update()
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "drawn")
    node.GetSegmentation().SetSourceRepresentationName("Closed surface")
    node.AddSegmentFromClosedSurfaceRepresentation(ball.GetOutput(), "sphere", [1, 0, 0], "sphere")
    assert not node.GetSegmentation().ContainsRepresentation("Binary labelmap")
    return node


def test_surfaces_are_filled_on_a_copy(scene, fixed):
    node = surfaces(scene)
    cases.add_parent(scene, fixed, cases.FIXED_TURN)
    cases.add_parent(scene, node, cases.SEGMENTS_TURN)
    points = cases.positions(cases.FIXED_SHAPE, cases.FIXED_TURN @ cases.FIXED_PLACE)
    centre = (cases.SEGMENTS_TURN @ [4, -3, 6, 1])[:3]
    right = np.linalg.norm(points - centre, axis=-1)
    mask = segmentations.mask_of(Region(node), fixed).array == 1
    assert mask[right < 8.7].all()
    assert not mask[right > 9.2].any()
    moved = segmentations.transfer(node, cases.vtk_field(), fixed)
    field = cases.vtk_field()
    there = [field.TransformPoint(point) for point in points[::3, ::3, ::3].reshape(-1, 3)]
    right = np.linalg.norm(np.array(there) - centre, axis=1)
    carried = cases.segment_mask(moved, "sphere")[::3, ::3, ::3].ravel()
    assert carried[right < 8].all()
    assert not carried[right > 10].any()
    assert (right < 8).sum() > 10
    assert not node.GetSegmentation().ContainsRepresentation("Binary labelmap")


@pytest.mark.parametrize("turned", [False, True], ids=["at the root", "under parent transforms"])
def test_label_map_transfer_equals_nearest_neighbour(scene, fixed, turned):
    source = cases.add_volume(cases.labels(), cases.MOVING_PLACE, "atlas", "vtkMRMLLabelMapVolumeNode")
    colours = scene.AddNewNodeByClass("vtkMRMLColorTableNode", "colours")
    source.CreateDefaultDisplayNodes()
    source.GetDisplayNode().SetAndObserveColorNodeID(colours.GetID())
    turns = {}
    if turned:
        cases.add_parent(scene, fixed, cases.FIXED_TURN)
        cases.add_parent(scene, source, cases.SEGMENTS_TURN)
        turns = {"moving_turn": cases.SEGMENTS_TURN, "fixed_turn": cases.FIXED_TURN}
    out = segmentations.transfer_label_map(source, cases.vtk_field(), fixed)
    right = cases.expected(cases.labels(), **turns, transform=cases.sitk_field())
    assert set(np.unique(right)) == {0, 1, 2, 7}
    assert np.count_nonzero(slicer.util.arrayFromVolume(out) != right) == 0
    assert out.GetImageData().GetSpacing() == (1, 1, 1)
    matrix = vtk.vtkMatrix4x4()
    out.GetIJKToRASMatrix(matrix)
    np.testing.assert_allclose(layers.matrix_from_vtk(matrix), cases.FIXED_PLACE, atol=1e-9)
    assert out.GetTransformNodeID() == fixed.GetTransformNodeID()
    assert out.GetDisplayNode().GetColorNodeID() == colours.GetID()
    assert out.IsA("vtkMRMLLabelMapVolumeNode")


def test_bent_parents_are_refused(scene, fixed):
    source = cases.organs(scene)
    cases.add_warped_parent(scene, source)
    with pytest.raises(InputError, match="'organs' is under the non-linear transform 'bent'"):
        segmentations.transfer(source, cases.vtk_field(), fixed)
    with pytest.raises(InputError, match="non-linear"):
        segmentations.mask_of(Region(source), fixed)


def test_layers_on_different_lattices_and_extents(scene, fixed):
    """Segments drawn on two images, and cropped ones: no voxel may be mistaken for another."""
    shifted = cases.MOVING_PLACE @ np.diag([0.8, 1.1, 1.3, 1])
    source = cases.add_segmentation(scene, [cases.labels()], cases.MOVING_PLACE, [["a", "b", "c"]])
    extent = (10, 40, 12, 50, 3, 33)
    for key, place in (("id-d", shifted), ("id-e", cases.MOVING_PLACE)):
        whole = layers.oriented_image(cases.ball().astype(np.int16), layers.Grid(cases.MOVING_SHAPE, place))
        cropped = slicer.vtkOrientedImageData()
        assert slicer.vtkOrientedImageDataResample.CopyImage(whole, cropped, extent)
        assert cropped.GetExtent() == extent
        segment = slicer.vtkSegment()
        segment.AddRepresentation("Binary labelmap", cropped)
        source.GetSegmentation().AddSegment(segment, key)
    out = segmentations.transfer(source, cases.vtk_field(), fixed)
    for key, place in (("id-d", shifted), ("id-e", cases.MOVING_PLACE)):
        right = cases.nearest(cases.ball(), place, cases.FIXED_SHAPE, cases.FIXED_PLACE, cases.sitk_field())
        assert right.sum() > 20
        assert np.count_nonzero(cases.segment_mask(out, key) != right) == 0
    labels = cases.expected(cases.labels(), transform=cases.sitk_field())
    assert np.count_nonzero(cases.segment_mask(out, "id-c") != (labels == 7)) == 0


def test_a_transferred_segmentation_comes_back_from_its_file(scene, fixed, tmp_path):
    out = segmentations.transfer(cases.organs(scene), cases.vtk_field(), fixed)
    before = masks(out)  # writing crops the layers
    storage = slicer.vtkMRMLSegmentationStorageNode()
    storage.SetFileName(str(tmp_path / "out.seg.nrrd"))
    assert storage.WriteData(out) == 1
    back = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "back")
    assert storage.ReadData(back) == 1
    assert back.GetSegmentation().GetNumberOfLayers() == 2
    for key, mask in before.items():
        segment = back.GetSegmentation().GetSegment(key)
        assert vtk_string(segment, "Sort") == f"tag of {segment.GetName()}"
        assert mask.any()
        np.testing.assert_array_equal(segmentations.mask_of(Region(back, key), fixed).array, mask)
