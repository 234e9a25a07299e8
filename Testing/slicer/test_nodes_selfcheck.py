"""The check after every run: does the node move the image as the engine did?"""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk

from DiffeoRegLib.errors import InputError
from DiffeoRegLib.exchange import Image
from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.space.sample import array_from_tensor, tensor_from_array
from DiffeoRegLib.space.transform import AffineTransform, CompositeTransform, DisplacementTransform
from DiffeoRegLib.volumes.resample import warp_volume
from DiffeoRegLib.volumes.volume import Volume
from DiffeoRegPanel.nodes import selfcheck
from DiffeoRegPanel.nodes.selfcheck import check_transform
from DiffeoRegPanel.nodes.transforms import apply_to, output_transform, transform_from_parts
from Testing.slicer import mrml_cases as cases

FLIP = np.array([-1, -1, 1], dtype=np.float32)
KJI = [2, 1, 0, 3]


class Run:
    """A finished run: the node, and the moved image by SimpleITK."""

    def __init__(
        self,
        scene,
        fixed_size=(24, 20, 15),
        moving_size=(26, 30, 20),
        parents=True,
        moving_type=sitk.sitkFloat32,
    ):
        self.scene = scene
        self.fixed_image, moving = cases.fixed_image(fixed_size), cases.moving_image(moving_size)
        self.moving_image = sitk.Cast(moving + 50, moving_type)
        self.fixed = cases.volume(scene, self.fixed_image, "CT")
        self.moving = cases.volume(scene, self.moving_image, "MR")
        if parents:
            cases.under(scene, self.fixed, cases.some_parent(1))
            cases.under(scene, self.moving, cases.some_parent(2))
        field, affine = cases.field_image(self.fixed_image), cases.affine_matrix()
        image = Image(sitk.GetArrayFromImage(field) * FLIP, cases.ras_matrix(field)[:, KJI])
        self.parts = [{"displacement": image}, {"matrix": cases.LPS @ affine @ cases.LPS}]
        self.node = output_transform(scene, self.parts, self.fixed, self.moving)
        self.itk = cases.itk_transform(field, affine)

    def moved(self, outside: float = 0.0) -> np.ndarray:
        moving = sitk.Cast(self.moving_image, sitk.sitkFloat32)
        image = sitk.Resample(moving, self.fixed_image, self.itk, sitk.sitkLinear, outside)
        return sitk.GetArrayFromImage(image)

    def by_the_engine(self, mode: str) -> np.ndarray:
        moving = sitk.GetArrayFromImage(self.moving_image).astype(np.float32)
        volume = Volume(
            tensor_from_array(moving), Grid(moving.shape, cases.ras_matrix(self.moving_image)[:, KJI]), "MR"
        )
        field = self.parts[0]["displacement"]
        u = tensor_from_array(np.moveaxis(field.array, -1, 0)[None].copy())
        grid = Grid(field.array.shape[:3], field.world_from_voxel)
        transform = CompositeTransform(
            [DisplacementTransform(grid, u), AffineTransform(self.parts[1]["matrix"])]
        )
        fixed = Grid(self.fixed_image.GetSize()[::-1], cases.ras_matrix(self.fixed_image)[:, KJI])
        return array_from_tensor(
            warp_volume(volume, transform, fixed, mode=mode, fill=float(moving.min())).data
        )


@pytest.fixture
def run(scene):
    return Run(scene)


@pytest.mark.parametrize("applied", [False, True])
def test_a_right_node_passes_before_and_after_it_is_applied(run, applied):
    if applied:
        apply_to(run.node, run.moving)
    before = [run.scene.GetNthNode(i).GetID() for i in range(run.scene.GetNumberOfNodes())]
    changed = run.scene.GetSceneModifiedTime() if hasattr(run.scene, "GetSceneModifiedTime") else None
    check = check_transform(run.node, run.moving, run.fixed, Image(run.moved(-7), np.eye(4)), -7)
    assert check.ok
    assert check.share_of_range < 1e-5
    assert check.max_difference < 1e-5 * 400
    assert check.share_left_out <= 0.005
    assert "moves the image exactly as the registration did" in check.sentence
    assert [run.scene.GetNthNode(i).GetID() for i in range(run.scene.GetNumberOfNodes())] == before
    if changed is not None:
        assert run.scene.GetSceneModifiedTime() == changed


def test_integers_are_not_rounded_and_the_background_is_the_smallest_value(scene):
    run = Run(scene, moving_type=sitk.sitkInt16)
    low = float(sitk.GetArrayFromImage(run.moving_image).min())
    assert low >= 50
    check = check_transform(run.node, run.moving, run.fixed, run.moved(low))
    assert check.ok
    assert check.share_of_range < 1e-5
    assert not check_transform(run.node, run.moving, run.fixed, run.moved(0)).ok


@pytest.mark.parametrize("mode", ["linear", "nearest", "cubic"])
def test_every_interpolation_of_the_engine_is_checked_with_its_own(run, mode):
    moved = run.by_the_engine(mode)
    check = check_transform(run.node, run.moving, run.fixed, moved, interpolation=mode)
    assert check.ok, check.sentence
    other = {"linear": "cubic", "cubic": "nearest", "nearest": "linear"}[mode]
    assert not check_transform(run.node, run.moving, run.fixed, moved, interpolation=other).ok


@pytest.mark.parametrize("wrong", ["direction", "vectors", "order", "parent", "shift"])
def test_a_wrong_node_fails_and_says_so(run, wrong):
    image, matrix = run.parts[0]["displacement"], run.parts[1]
    node, fixed = run.node, run.fixed
    if wrong == "direction":
        node.SetAndObserveTransformToParent(node.GetTransformFromParent())
    elif wrong == "vectors":
        parts = [{"displacement": Image(image.array * FLIP, image.world_from_voxel)}, matrix]
        output_transform(run.scene, parts, fixed, run.moving, node=node)
    elif wrong == "order":
        output_transform(run.scene, run.parts[::-1], fixed, run.moving, node=node)
    elif wrong == "parent":
        node.SetAndObserveTransformFromParent(transform_from_parts(run.parts))
    else:
        shift = np.eye(4)
        shift[0, 3] = 0.02
        output_transform(run.scene, [*run.parts, {"matrix": shift}], fixed, run.moving, node=node)
    check = check_transform(node, run.moving, fixed, run.moved(), 0.0)
    assert not check.ok
    assert check.share_of_range > 1e-3
    assert "does not move the image as the registration did" in check.sentence


def test_a_single_wrong_voxel_is_found_and_one_at_the_border_left_out(run):
    moved = run.moved()
    inside = np.argwhere(moved > 100)[10]
    wrong = moved.copy()
    wrong[tuple(inside)] += 5
    check = check_transform(run.node, run.moving, run.fixed, wrong, 0.0)
    assert not check.ok
    assert check.max_difference == pytest.approx(5, abs=0.01)


def test_voxels_exactly_at_the_border_are_left_out_and_counted(scene):
    """Half a voxel beyond the outer centres, rounding decides what is outside."""
    image = cases.moving_image((20, 20, 20))
    image.SetDirection(np.eye(3).ravel().tolist())
    image.SetSpacing((1.0, 1.0, 1.0))
    moving = cases.volume(scene, image + 50, "MR")
    fixed = cases.volume(scene, image, "CT")
    shift = np.eye(4)
    shift[0, 3] = 0.5  # RAS: towards smaller i, so that i = 0 is read at -0.5
    node = output_transform(scene, [{"matrix": shift}], fixed, moving)
    array = sitk.GetArrayFromImage(image) + 50
    moved = (array + np.concatenate([array[:, :, :1], array[:, :, :-1]], axis=2)) / 2
    moved[:, ::2, 0] = 0
    check = check_transform(node, moving, fixed, moved, 0.0)
    assert check.max_difference < 1e-3
    assert check.share_left_out == pytest.approx(0.5 / 20)
    assert check.ok
    assert "2.5 % of the voxels" in check.sentence
    everywhere = np.zeros_like(moved)
    assert not check_transform(node, moving, fixed, everywhere, 0.0).ok


def test_voxels_without_a_number_are_left_out(run):
    moved = run.moved()
    moved[3, 4, 5] = np.nan
    check = check_transform(run.node, run.moving, run.fixed, moved, 0.0)
    assert check.ok
    assert check.share_left_out == pytest.approx(1 / moved.size)


def test_a_uniform_moving_volume_has_no_range(scene):
    run = Run(scene, parents=False)
    flat = run.moving.GetImageData()
    flat.GetPointData().GetScalars().Fill(7)
    check = check_transform(run.node, run.moving, run.fixed, np.full((15, 20, 24), 7.0))
    assert (check.ok, check.max_difference, check.share_of_range) == (True, 0.0, 0.0)
    assert not check_transform(run.node, run.moving, run.fixed, np.full((15, 20, 24), 7.1)).ok


def test_large_volumes_are_compared_on_fewer_voxels(run, monkeypatch):
    monkeypatch.setattr(selfcheck, "MOST_VOXELS", 700)
    moved = run.moved()
    assert check_transform(run.node, run.moving, run.fixed, moved, 0.0).ok
    assert not check_transform(run.node, run.moving, run.fixed, moved[:, :, ::-1], 0.0).ok


def test_slices_are_checked_in_their_plane(scene):
    """2D: both volumes a single slice, the moving one a third of its thickness away."""
    slice_ = cases.fixed_image((40, 36, 1))
    moving_image = sitk.Image(slice_)
    step = np.array(slice_.GetDirection()).reshape(3, 3)[:, 2] * 2.1
    moving_image.SetOrigin((np.array(slice_.GetOrigin()) + step / 3).tolist())
    fixed, moving = cases.volume(scene, slice_, "CT"), cases.volume(scene, moving_image, "MR")
    turn = np.eye(4)
    axis = np.array(slice_.GetDirection()).reshape(3, 3)[:, 2]
    turn[:3, :3] = cases.rotation(tuple(axis), 6)
    centre = np.array([11.0, -7, 23])
    turn[:3, 3] = centre - turn[:3, :3] @ centre
    field = cases.field_image(slice_)
    array = sitk.GetArrayFromImage(field)
    array -= (array @ axis)[..., None] * axis.astype(np.float32)  # in the plane
    in_plane = sitk.GetImageFromArray(array.astype(np.float32), isVector=True)
    in_plane.CopyInformation(field)
    image = Image(array.astype(np.float32) * FLIP, cases.ras_matrix(field)[:, KJI])
    parts = [{"displacement": image}, {"matrix": cases.LPS @ turn @ cases.LPS}]
    node = output_transform(scene, parts, fixed, moving)
    moved = cases.resampled(moving_image, slice_, cases.itk_transform(in_plane, turn))
    assert (moved > 20).mean() > 0.7
    check = check_transform(node, moving, fixed, moved, 0.0)
    assert check.ok, check.sentence
    apply_to(node, moving)
    assert np.abs(cases.slicer_resampled(moving, fixed) - moved).max() < 1e-3 * 400


def test_a_moved_image_of_another_shape_is_refused(run):
    with pytest.raises(InputError, match="does not have the voxels of 'CT'"):
        check_transform(run.node, run.moving, run.fixed, np.zeros((2, 3, 4)))
