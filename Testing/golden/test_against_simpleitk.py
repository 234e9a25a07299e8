"""SimpleITK as the judge: our geometry, our transforms and the files we write mean what ITK takes them for.

Fixed and moving grids are oblique, anisotropic, of different size, one of them left-handed. Every positive
result has its negatives: the usual mistakes (signs, axis order, direction) must be far outside the tolerance.
"""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch

from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.space.sample import array_from_tensor, tensor_from_array
from DiffeoRegLib.space.transform import (
    AffineTransform,
    CompositeTransform,
    DisplacementTransform,
    InverseTransform,
    displacement_on,
)
from DiffeoRegLib.volumes.files import read_volume, write_volume
from DiffeoRegLib.volumes.resample import warp_labels, warp_volume
from DiffeoRegLib.volumes.transform_files import read_transform, write_transform
from DiffeoRegLib.volumes.volume import Volume

INTENSITY_RANGE = 400.0
OUTSIDE = -57.0
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def rotation(axis: int, degrees: float) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    i, j = [a for a in range(3) if a != axis]
    out = np.eye(3)
    out[i, i], out[j, j], out[i, j], out[j, i] = c, c, -s, s
    return out


def placed_grid(shape, spacing, axes, center):
    """Grid of `shape` with given unit axes (columns, per tensor axis) around a centre, RAS."""
    world = np.eye(4)
    world[:3, :3] = axes * np.array(spacing)
    index = np.zeros(3)
    index[: len(shape)] = (np.array(shape) - 1) / 2
    world[:3, 3] = np.array(center) - world[:3, :3] @ index
    return Grid(shape, world)


def pattern(grid: Grid, seed: int) -> torch.Tensor:
    """Smooth values of the full intensity range with structure in every direction, fixed in voxels."""
    rng = np.random.default_rng(seed)
    index = np.stack(np.meshgrid(*[np.arange(n, dtype=float) for n in grid.shape], indexing="ij"), -1)
    waves = rng.uniform(0.15, 0.55, (5, grid.dim)) * rng.choice([-1, 1], (5, grid.dim))
    values = sum(np.sin(index @ wave + n) for n, wave in enumerate(waves))
    values = (values - values.min()) / np.ptp(values) * INTENSITY_RANGE
    return tensor_from_array(values, torch.float32)


def wavy_field(grid: Grid, amplitude_mm: float, *, in_plane: np.ndarray | None = None) -> torch.Tensor:
    """Displacement with different, unsymmetric components, RAS mm."""
    index = np.stack(np.meshgrid(*[np.linspace(0, 1, n) for n in grid.shape], indexing="ij"), 0)
    k, i = index[0], index[-1]
    u = np.stack(
        [
            0.9 * np.sin(3 * k + 1) + 0.3 * i,
            -0.7 * np.cos(4 * i + k) + 0.5,
            0.8 * np.sin(5 * i * k + 0.5) - 0.4 * index[1],
        ]
    )
    if in_plane is not None:
        u = np.einsum("ab,b...->a...", in_plane, u)
    return tensor_from_array(u[None] * amplitude_mm, torch.float32)


@pytest.fixture(params=["3d", "2d"])
def case(request):
    """fixed grid, moving volume, field on a coarse grid over the fixed space, affine moving_from_fixed."""
    turned = rotation(2, 25) @ rotation(0, -20) @ rotation(1, 15)
    other = rotation(1, -30) @ rotation(2, 40)
    if request.param == "3d":
        fixed = placed_grid((30, 40, 48), (2.1, 1.3, 0.9), turned[:, [2, 1, 0]] * [1, 1, -1], (12, -34, 56))
        grid = placed_grid((36, 52, 44), (1.7, 0.8, 1.2), other[:, [0, 2, 1]] * [-1, 1, 1], (15, -30, 52))
        linear = rotation(0, 8) @ rotation(2, -6) @ np.diag([1.05, 0.94, 1.02])
        project = None
    else:
        plane = turned[:, [1, 0, 2]] * [1, -1, 1]  # rows, columns, normal
        in_plane = np.column_stack([plane[:, 1], -plane[:, 0], plane[:, 2]])
        fixed = placed_grid((40, 48), (1.3, 0.9, 2.0), plane, (12, -34, 56))
        grid = placed_grid((52, 44), (0.8, 1.2, 3.0), in_plane, (12, -34, 56) + 3 * plane[:, 0])
        turn = plane @ rotation(2, 7) @ plane.T
        linear = turn @ (np.eye(3) + 0.05 * np.outer(plane[:, 0], plane[:, 0]))
        project = np.eye(3) - np.outer(plane[:, 2], plane[:, 2])
    field_grid = fixed.coarsened([2] * fixed.dim)
    field = DisplacementTransform(field_grid, wavy_field(field_grid, 5.0, in_plane=project))
    matrix = np.eye(4)
    matrix[:3, :3] = linear
    center = np.array([12.0, -34.0, 56.0])
    shift = np.array([2.5, -1.5, 2.0])
    matrix[:3, 3] = center - linear @ center + (shift if project is None else project @ shift)
    moving = Volume(pattern(grid, 3), grid, "moving")
    return fixed, moving, CompositeTransform([field, AffineTransform(matrix)])


def to_itk(volume: Volume, tmp_path, name: str):
    """The volume as SimpleITK reads it from a NRRD file that we wrote."""
    path = tmp_path / name
    write_volume(volume, path)
    return sitk.ReadImage(str(path))


def empty(grid: Grid) -> Volume:
    return Volume(torch.zeros(grid.shape), grid, "fixed")


def itk_resampled(moving, fixed, transform, interpolator=sitk.sitkLinear):
    out = sitk.Resample(moving, fixed, transform, interpolator, OUTSIDE, sitk.sitkFloat32)
    array = sitk.GetArrayFromImage(out)
    return array[0] if array.shape[0] == 1 else array


def disagreement(ours: Volume, theirs) -> float:
    """Largest difference in parts of the intensity range, but for 1 in 500 voxels that touch the outside.

    A position on the very edge of the moving image may fall to either side by rounding.
    """
    difference = np.abs(array_from_tensor(ours.data) - theirs)
    edge = (theirs == OUTSIDE) != (array_from_tensor(ours.data) == OUTSIDE)
    assert edge.mean() < 2e-3
    assert (theirs != OUTSIDE).mean() > 0.3, "the images hardly overlap: nothing is compared"
    return float(difference[~edge].max() / INTENSITY_RANGE)


def itk_reference(transform: CompositeTransform):
    """The composite built by hand in SimpleITK, LPS, not through our writers."""
    field, affine = transform.parts
    lps = LPS @ affine.moving_from_fixed @ LPS
    linear = sitk.AffineTransform(3)
    linear.SetMatrix(lps[:3, :3].ravel().tolist())
    linear.SetTranslation(lps[:3, 3].tolist())
    u = array_from_tensor(field.u_mm[0]).astype(float) * np.array([-1.0, -1, 1]).reshape(
        3, *[1] * field.grid.dim
    )
    u = np.moveaxis(u, 0, -1)
    order = [2, 1, 0] if field.grid.dim == 3 else [1, 0, 2]
    image = sitk.GetImageFromArray(u if field.grid.dim == 3 else u[None], isVector=True)
    world = LPS @ field.grid.world_from_voxel
    steps = world[:3, order]
    spacing = np.linalg.norm(steps, axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((steps / spacing).ravel().tolist())
    image.SetOrigin(world[:3, 3].tolist())
    return sitk.CompositeTransform([linear, sitk.DisplacementFieldTransform(image)])


@pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".nii.gz"])
def test_volume_files_lie_where_we_say(case, tmp_path, suffix):
    _, moving, _ = case
    image = to_itk(moving, tmp_path, f"moving{suffix}")
    points = np.random.default_rng(0).uniform(0, 1, (50, moving.grid.dim)) * (np.array(moving.grid.shape) - 1)
    for index in points:
        ijk = [*index[::-1], 0.0][:3]
        itk_point = image.TransformContinuousIndexToPhysicalPoint([float(x) for x in ijk])
        assert np.allclose(np.array(itk_point) * [-1, -1, 1], moving.grid.world_from_index(index), atol=2e-4)
    again = read_volume(tmp_path / f"moving{suffix}")
    assert again.grid.same_as(moving.grid)
    assert torch.equal(again.data, moving.data)


def test_resampling_agrees(case, tmp_path):
    fixed, moving, transform = case
    images = to_itk(moving, tmp_path, "moving.nrrd"), to_itk(empty(fixed), tmp_path, "fixed.nrrd")
    theirs = itk_resampled(*images, itk_reference(transform))
    assert disagreement(warp_volume(moving, transform, fixed, fill=OUTSIDE), theirs) < 1e-3


def test_cubic_resampling_agrees(case, tmp_path):
    fixed, moving, transform = case
    images = to_itk(moving, tmp_path, "moving.nrrd"), to_itk(empty(fixed), tmp_path, "fixed.nrrd")
    ours = warp_volume(moving, transform, fixed, mode="cubic", fill=OUTSIDE)
    theirs = itk_resampled(*images, itk_reference(transform), sitk.sitkBSpline)
    index = transform.map_points(fixed.world_from_index(np.argwhere(np.ones(fixed.shape)).astype(float)))
    # ITK lets the spline swing on in the outer half voxel, where we repeat its edge value.
    vox = moving.grid.index_from_world(index)
    core = ((vox >= 0) & (vox <= np.array(moving.grid.shape) - 1)).all(axis=1).reshape(fixed.shape)
    assert core.mean() > 0.3
    difference = np.abs(array_from_tensor(ours.data) - theirs)[core]
    assert difference.max() < 1e-3 * INTENSITY_RANGE
    linear = warp_volume(moving, transform, fixed, fill=OUTSIDE)
    assert np.abs(array_from_tensor(linear.data) - theirs)[core].max() > 0.01 * INTENSITY_RANGE


def test_nearest_labels_agree(case, tmp_path):
    fixed, moving, transform = case
    labels = Volume((moving.data / 100).int(), moving.grid, "labels", is_labels=True)
    images = to_itk(labels, tmp_path, "labels.nrrd"), to_itk(empty(fixed), tmp_path, "fixed.nrrd")
    theirs = sitk.GetArrayFromImage(
        sitk.Resample(*images, itk_reference(transform), sitk.sitkNearestNeighbor, 0, sitk.sitkInt32)
    ).reshape(fixed.shape)
    ours = array_from_tensor(warp_labels(labels, transform, fixed).data)
    assert (ours != theirs).mean() < 1e-4  # a position may lie within rounding of the middle of two voxels
    assert len(np.unique(theirs)) >= 4


@pytest.mark.parametrize("name", ["t.h5", "t.nrrd", "t.nii.gz", "t.mha"])
def test_written_transforms_agree(case, tmp_path, name):
    fixed, moving, transform = case
    images = to_itk(moving, tmp_path, "moving.nrrd"), to_itk(empty(fixed), tmp_path, "fixed.nrrd")
    write_transform(transform, tmp_path / name, displacement_grid=fixed)
    if name.endswith(".h5"):
        read_back = sitk.ReadTransform(str(tmp_path / name))
    else:
        field = sitk.ReadImage(str(tmp_path / name), sitk.sitkVectorFloat64)
        read_back = sitk.DisplacementFieldTransform(field)
    theirs = itk_resampled(*images, read_back)
    ours = warp_volume(moving, transform, fixed, fill=OUTSIDE)
    assert disagreement(ours, theirs) < 1e-3
    again = warp_volume(moving, read_transform(tmp_path / name), fixed, fill=OUTSIDE)
    assert disagreement(again, theirs) < 1e-3


def test_points_agree(case):
    fixed, _, transform = case
    reference = itk_reference(transform)
    rng = np.random.default_rng(1)
    index = rng.uniform(-0.6, 1.0, (400, fixed.dim)) * np.array(fixed.shape)  # also outside, where u is 0
    points = fixed.world_from_index(index)
    ours = transform.map_points(points)
    theirs = np.array([reference.TransformPoint(p.tolist()) for p in points * [-1, -1, 1]]) * [-1, -1, 1]
    assert np.abs(ours - theirs).max() < 1e-4
    assert np.abs(ours - points).max() > 5


@pytest.mark.parametrize("suffix", [".tfm", ".mat", ".txt", ".h5"])
def test_linear_files_agree(case, tmp_path, suffix):
    fixed, _, transform = case
    affine = transform.parts[1]
    path = tmp_path / f"linear{suffix}"
    write_transform(CompositeTransform([affine, affine]), path)
    points = fixed.corners_mm()
    expected = affine.map_points(affine.map_points(points))
    reference = sitk.ReadTransform(str(path))
    theirs = np.array([reference.TransformPoint(p.tolist()) for p in points * [-1, -1, 1]]) * [-1, -1, 1]
    assert np.abs(theirs - expected).max() < 1e-6
    assert np.abs(read_transform(path).map_points(points) - expected).max() < 1e-6


def wrong_conventions(transform: CompositeTransform):
    """The usual mistakes, by name."""
    field, affine = transform.parts
    flip = torch.tensor([-1.0, -1.0, 1.0]).reshape(1, 3, *[1] * field.grid.dim)
    flipped = DisplacementTransform(field.grid, field.u_mm * flip)
    mirrored = DisplacementTransform(field.grid, field.u_mm.flip(1))
    lps = AffineTransform(LPS @ affine.moving_from_fixed @ LPS)
    return {
        "LPS vectors taken for RAS": CompositeTransform([flipped, affine]),
        "components in reverse order": CompositeTransform([mirrored, affine]),
        "LPS matrix taken for RAS": CompositeTransform([field, lps]),
        "inverse instead of forward": transform.inverse(),
        "field negated": CompositeTransform([DisplacementTransform(field.grid, -field.u_mm), affine]),
        "field left out": affine,
    }


def test_wrong_conventions_are_far_off(case, tmp_path):
    fixed, moving, transform = case
    images = to_itk(moving, tmp_path, "moving.nrrd"), to_itk(empty(fixed), tmp_path, "fixed.nrrd")
    theirs = itk_resampled(*images, itk_reference(transform))
    for name, wrong in wrong_conventions(transform).items():
        ours = array_from_tensor(warp_volume(moving, wrong, fixed, fill=OUTSIDE).data)
        both = (ours != OUTSIDE) & (theirs != OUTSIDE)
        off = np.abs(ours - theirs)[both].max() / INTENSITY_RANGE if both.any() else 1.0
        assert off > 0.1, name


def test_swapped_tensor_axes_are_far_off(case, tmp_path):
    fixed, moving, transform = case
    image = to_itk(moving, tmp_path, "moving.nrrd")
    theirs = itk_resampled(image, to_itk(empty(fixed), tmp_path, "fixed.nrrd"), itk_reference(transform))
    world = moving.grid.world_from_voxel.copy()
    world[:, [0, 1]] = world[:, [1, 0]]
    swapped = Volume(moving.data, Grid(moving.grid.shape, world), "moving")
    ours = array_from_tensor(warp_volume(swapped, transform, fixed, fill=OUTSIDE).data)
    both = (ours != OUTSIDE) & (theirs != OUTSIDE)
    assert np.abs(ours - theirs)[both].max() > 0.1 * INTENSITY_RANGE


def test_nifti_vectors_of_both_intents_mean_the_same(case, tmp_path):
    fixed, _, transform = case
    field = DisplacementTransform(fixed, displacement_on(transform, fixed))
    write_transform(field, tmp_path / "ras.nii.gz")
    itk = sitk.ReadImage(str(tmp_path / "ras.nii.gz"))
    for key in itk.GetMetaDataKeys():
        itk.EraseMetaData(key)  # it would keep the intent code and then refuse to write it
    sitk.WriteImage(itk, str(tmp_path / "lps.nii.gz"))  # SimpleITK writes intent 1007
    intents = [int(nib.load(tmp_path / f"{n}.nii.gz").header["intent_code"]) for n in ("ras", "lps")]
    assert intents == [1006, 1007]
    points = fixed.world_from_index(np.random.default_rng(3).uniform(0, 1, (100, fixed.dim)) * fixed.shape)
    for name in ("ras", "lps"):
        again = read_transform(tmp_path / f"{name}.nii.gz")
        assert isinstance(again, DisplacementTransform)
        assert np.abs(again.map_points(points) - field.map_points(points)).max() < 1e-4


def test_outside_rule_is_that_of_itk():
    grid = Grid((4, 5, 6), np.eye(4))
    field = DisplacementTransform(grid, torch.ones(1, 3, 4, 5, 6))
    image = sitk.GetImageFromArray(np.ones((4, 5, 6, 3)), isVector=True)
    reference = sitk.DisplacementFieldTransform(image)
    for axis, size in enumerate((6, 5, 4)):
        for at in (-0.501, -0.5, -0.499, 0.2, size - 0.501, size - 0.5, size - 0.499):
            ijk = [1.0, 1.0, 1.0]
            ijk[axis] = at
            theirs = reference.TransformPoint(ijk)[0] - ijk[0]
            ours = field.map_points(np.array([ijk[::-1]]))[0, 0] - ijk[2]
            assert ours == pytest.approx(theirs), (axis, at)


def test_inverse_written_and_read_undoes_the_forward(case, tmp_path):
    fixed, _, transform = case
    field = transform.parts[0]
    inverse = field.inverse()
    assert isinstance(inverse, InverseTransform)
    write_transform(inverse, tmp_path / "inverse.h5", displacement_grid=fixed)
    reference = sitk.ReadTransform(str(tmp_path / "inverse.h5"))
    points = fixed.world_from_index(
        np.random.default_rng(2).uniform(0.3, 0.7, (100, fixed.dim)) * fixed.shape
    )
    there = field.map_points(points)
    back = np.array([reference.TransformPoint(p.tolist()) for p in there * [-1, -1, 1]]) * [-1, -1, 1]
    assert np.linalg.norm(back - points, axis=1).max() < 0.05
    assert np.abs(inverse.map_points(there) - points).max() < 1e-5
