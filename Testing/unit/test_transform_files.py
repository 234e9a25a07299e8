"""Transform files: round trips, the files of other programs, and bad ones."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch

from DiffeoRegLib.errors import DiffeoRegError, FileFormatError, InputError, OutputError, OutputExistsError
from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.space.storage import storage_bytes, storage_grid, upright_grid
from DiffeoRegLib.space.transform import (
    AffineTransform,
    CompositeTransform,
    DisplacementTransform,
    InverseTransform,
    displacement_on,
)
from DiffeoRegLib.volumes import file_guard
from DiffeoRegLib.volumes.transform_files import read_transform, write_transform

AXES = np.linalg.qr(np.array([[0.1, 0.3, 1.0], [0.2, -1.0, 0.2], [1.0, 0.1, -0.2]]))[0]
MATRIX = np.array([[1.1, 0.1, 0.0, 3.0], [-0.1, 0.95, 0.2, -4.0], [0.05, -0.2, 1.02, 5.0], [0, 0, 0, 1]])


def oblique(shape=(8, 9, 10)) -> Grid:
    world = np.eye(4)
    world[:3, :3] = AXES * [2.0, 1.5, 1.0]
    world[:3, 3] = (-20, 30, 12)
    return Grid(shape, world)


def smooth_field(grid: Grid, seed=0) -> DisplacementTransform:
    rng = np.random.default_rng(seed)
    index = np.stack(np.meshgrid(*[np.linspace(0, 2, n) for n in grid.shape], indexing="ij"), -1)
    u = [np.sin(index @ rng.normal(size=grid.dim) + rng.normal()) for _ in range(3)]
    return DisplacementTransform(grid, torch.tensor(np.array(u)[None].tolist(), dtype=torch.float32))


def points_in(grid: Grid, count=50):
    index = np.random.default_rng(1).uniform(0, 1, (count, grid.dim)) * (np.array(grid.shape) - 1)
    return grid.world_from_index(index)


@pytest.mark.parametrize("name", ["t.h5", "t.nrrd", "t.mha", "t.nii", "t.nii.gz"])
def test_field_round_trip(tmp_path, name):
    field = smooth_field(oblique())
    write_transform(field, tmp_path / name)
    again = read_transform(tmp_path / name)
    assert isinstance(again, DisplacementTransform)
    assert again.grid.same_as(field.grid, 1e-3)
    assert (again.u_mm - field.u_mm).abs().max() < 1e-6
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["t.h5", "t.tfm", "t.txt", "t.mat"])
def test_linear_round_trip(tmp_path, name):
    write_transform(AffineTransform(MATRIX), tmp_path / name)
    again = read_transform(tmp_path / name)
    assert isinstance(again, AffineTransform)
    assert np.allclose(again.moving_from_fixed, MATRIX, atol=1e-12)


def test_composite_keeps_its_parts_and_their_order(tmp_path):
    field, affine = smooth_field(oblique()), AffineTransform(MATRIX)
    whole = CompositeTransform([field, CompositeTransform([affine])])
    write_transform(whole, tmp_path / "t.h5")
    again = read_transform(tmp_path / "t.h5")
    assert isinstance(again, CompositeTransform)
    assert [type(p) for p in again.parts] == [DisplacementTransform, AffineTransform]
    points = points_in(field.grid)
    assert np.allclose(again.map_points(points), whole.map_points(points), atol=1e-5)
    other = CompositeTransform([affine, field]).map_points(points)
    assert np.abs(other - whole.map_points(points)).max() > 0.1


def test_empty_composite_is_the_identity(tmp_path):
    write_transform(CompositeTransform([]), tmp_path / "t.h5")
    points = points_in(oblique())
    assert np.allclose(read_transform(tmp_path / "t.h5").map_points(points), points)


@pytest.mark.parametrize("name", ["t.nrrd", "t.nii.gz"])
def test_composite_becomes_one_field_on_a_given_grid(tmp_path, name):
    whole = CompositeTransform([smooth_field(oblique()), AffineTransform(MATRIX)])
    with pytest.raises(InputError, match="displacement_grid"):
        write_transform(whole, tmp_path / name)
    write_transform(whole, tmp_path / name, displacement_grid=oblique())
    again = read_transform(tmp_path / name)
    nodes = oblique().world_from_index(np.argwhere(np.ones(oblique().shape)).astype(float))
    assert np.abs(again.map_points(nodes) - whole.map_points(nodes)).max() < 1e-4


def test_an_inverse_needs_a_grid(tmp_path):
    inverse = smooth_field(oblique()).inverse()
    with pytest.raises(InputError, match="displacement_grid"):
        write_transform(inverse, tmp_path / "t.h5")
    assert list(tmp_path.iterdir()) == []


def test_modeling_fields_run_backwards(tmp_path):
    field = smooth_field(oblique())
    write_transform(field, tmp_path / "t.nrrd")
    content = (tmp_path / "t.nrrd").read_bytes()
    assert b"displacement field type:=resampling" in content
    (tmp_path / "m.nrrd").write_bytes(content.replace(b"type:=resampling", b"type:=modeling"))
    again = read_transform(tmp_path / "m.nrrd")
    assert isinstance(again, InverseTransform)
    points = points_in(field.grid)
    assert np.abs(again.inverse().map_points(points) - field.map_points(points)).max() < 1e-5


def test_nifti_fields_without_a_known_intent_are_refused(tmp_path):
    write_transform(smooth_field(oblique()), tmp_path / "t.nii")
    image = nib.load(tmp_path / "t.nii")
    assert int(image.header["intent_code"]) == 1006
    image.header.set_intent(0)
    nib.save(image, tmp_path / "u.nii")
    with pytest.raises(FileFormatError, match="1006"):
        read_transform(tmp_path / "u.nii")


def _save_matrix(path, matrix):
    with path.open("w", encoding="ascii") as stream:
        np.savetxt(stream, matrix)


def test_text_matrices_are_ras(tmp_path):
    _save_matrix(tmp_path / "greedy.mat", MATRIX)
    assert np.allclose(read_transform(tmp_path / "greedy.mat").moving_from_fixed, MATRIX)
    flat = np.array([[0.9, 0.1, 4.0], [-0.1, 0.9, 5.0], [0, 0, 1]])
    _save_matrix(tmp_path / "flat.txt", flat)
    assert np.allclose(
        read_transform(tmp_path / "flat.txt").map_points(np.array([[1.0, 2, 3]])), [[5.1, 6.7, 3]]
    )


@pytest.mark.parametrize(
    "transform",
    [
        sitk.Euler3DTransform([1.0, 2, 3], 0.1, -0.2, 0.3, [4.0, 5, 6]),
        sitk.VersorRigid3DTransform([0.0, 1, 0], 0.4, [1.0, 2, 3], [4.0, 5, 6]),
        sitk.Similarity3DTransform(1.2, [0.0, 0, 1], 0.3, [1.0, 2, 3]),
        sitk.TranslationTransform(3, [1.0, -2, 3]),
        sitk.ScaleTransform(3, [1.1, 0.9, 1.2]),
        sitk.Transform(3, sitk.sitkIdentity),
        sitk.CompositeTransform(
            [sitk.TranslationTransform(3, [1.0, -2, 3]), sitk.ScaleTransform(3, [1.1, 0.9, 2])]
        ),
    ],
    ids=lambda t: t.GetName(),
)
def test_itk_transforms_of_every_linear_kind(tmp_path, transform):
    sitk.WriteTransform(transform, str(tmp_path / "t.h5"))
    points = points_in(oblique())
    theirs = np.array([transform.TransformPoint(p) for p in (points * [-1, -1, 1]).tolist()]) * [-1, -1, 1]
    assert np.abs(read_transform(tmp_path / "t.h5").map_points(points) - theirs).max() < 1e-9


def test_two_dimensional_itk_transforms(tmp_path):
    transform = sitk.Euler2DTransform([3.0, 4.0], 0.3, [1.0, 2.0])
    sitk.WriteTransform(transform, str(tmp_path / "t.tfm"))
    moved = read_transform(tmp_path / "t.tfm").map_points(np.array([[5.0, 6.0, 7.0]]))[0]
    expected = transform.TransformPoint((-5.0, -6.0))
    assert np.allclose(moved, [-expected[0], -expected[1], 7.0])


def test_bspline_transforms_are_named(tmp_path):
    image = sitk.Image([20, 20, 20], sitk.sitkFloat32)
    sitk.WriteTransform(sitk.BSplineTransformInitializer(image, [3, 3, 3]), str(tmp_path / "t.tfm"))
    with pytest.raises(FileFormatError, match="BSpline"):
        read_transform(tmp_path / "t.tfm")


@pytest.mark.parametrize("name", ["t.h5", "t.tfm", "t.mat", "t.txt", "t.nrrd", "t.nii.gz", "t.mha"])
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.8, "noise"])
def test_damaged_files_get_a_sentence(tmp_path, name, kept):
    linear = name.endswith((".tfm", ".mat", ".txt"))
    path = tmp_path / name
    write_transform(AffineTransform(MATRIX) if linear else smooth_field(oblique((12, 14, 16))), path)
    content = path.read_bytes()
    path.write_bytes(
        np.random.default_rng(0).bytes(3000) if kept == "noise" else content[: int(len(content) * kept)]
    )
    with pytest.raises(DiffeoRegError) as caught:
        read_transform(path)
    assert str(path) in str(caught.value)
    assert "Exception" not in str(caught.value)


def test_other_bad_requests(tmp_path):
    with pytest.raises(FileFormatError, match="no file"):
        read_transform(tmp_path / "none.h5")
    (tmp_path / "t.xyz").write_text("x", encoding="utf-8")
    with pytest.raises(FileFormatError, match="no transform file"):
        read_transform(tmp_path / "t.xyz")
    sitk.WriteImage(sitk.Image([4, 5, 6], sitk.sitkFloat32), str(tmp_path / "image.nrrd"))
    sitk.WriteImage(sitk.Image([4, 5, 6], sitk.sitkFloat32), str(tmp_path / "image.nii.gz"))
    for name in ("image.nrrd", "image.nii.gz"):
        with pytest.raises(FileFormatError, match="no displacement field"):
            read_transform(tmp_path / name)
    with pytest.raises(OutputError, match="linear"):
        write_transform(smooth_field(oblique()), tmp_path / "t.tfm")
    with pytest.raises(OutputError, match="writes"):
        write_transform(AffineTransform(MATRIX), tmp_path / "t.json")
    write_transform(AffineTransform(MATRIX), tmp_path / "t.tfm")
    with pytest.raises(OutputExistsError):
        write_transform(AffineTransform(MATRIX), tmp_path / "t.tfm")


def test_a_disk_too_small_is_seen_before_writing(tmp_path, monkeypatch):
    monkeypatch.setattr(file_guard.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with pytest.raises(OutputError, match="needs"):
        write_transform(smooth_field(oblique()), tmp_path / "t.h5")
    assert list(tmp_path.iterdir()) == []


def test_fields_that_are_no_numbers_are_refused(tmp_path):
    field = smooth_field(oblique())
    broken = field.u_mm.clone()
    broken[0, 0, 1, 1, 1] = float("nan")
    write_transform(DisplacementTransform(field.grid, broken), tmp_path / "t.mha")
    with pytest.raises(FileFormatError, match="not numbers"):
        read_transform(tmp_path / "t.mha")


def test_sheared_grids_are_written_upright(tmp_path):
    world = oblique().world_from_voxel.copy()
    world[:3, 0] += 0.4 * world[:3, 1]
    sheared = smooth_field(Grid((8, 9, 10), world))
    upright = upright_grid(sheared.grid)
    index = upright.index_from_world(sheared.grid.corners_mm())
    assert (index > -1e-6).all()
    assert (index < np.array(upright.shape) - 1 + 1e-6).all()
    write_transform(sheared, tmp_path / "t.h5")
    again = read_transform(tmp_path / "t.h5")
    points = points_in(sheared.grid)
    assert np.abs(again.map_points(points) - sheared.map_points(points)).max() < 0.05
    assert np.abs(points - sheared.map_points(points)).max() > 0.5


@pytest.mark.parametrize("strides", [(4, 4, 4), (2, 4, 1), (1, 1, 1)])
def test_a_coarse_field_is_stored_on_its_own_grid(strides):
    full = oblique((19, 22, 16))
    rough = torch.randn(1, 3, *full.coarsened(strides).shape)
    field = DisplacementTransform(full.coarsened(strides), rough)
    assert storage_grid(field, full).same_as(field.grid)


def test_storage_grid_keeps_the_tolerance():
    full = oblique((24, 26, 28))
    axes = [torch.sin(torch.pi * (torch.arange(n) + 0.5) / n) ** 2 for n in full.shape]
    bump = torch.einsum("k,j,i->kji", *axes)  # flat at the ends, as tapered fields are
    field = DisplacementTransform(full, torch.stack([bump, -0.5 * bump, 0.3 * bump])[None])
    for tolerance in (0.05, 0.005, 0.0005):
        grid = storage_grid(field, full, tolerance)
        stored = DisplacementTransform(grid, displacement_on(field, grid, extend=True))
        error = (displacement_on(stored, full) - field.u_mm).norm(dim=1).max()
        assert error <= tolerance
        assert storage_bytes(grid) == 24 * grid.voxel_count
    assert storage_grid(field, full, 0.1).voxel_count < full.voxel_count / 15
    assert storage_grid(field, full, 1e-9).same_as(full)


def test_a_constant_shift_needs_no_fine_grid():
    shift = np.eye(4)
    shift[:3, 3] = (1, 2, 3)
    assert storage_grid(AffineTransform(shift), oblique((24, 26, 28))).shape == (3, 4, 4)
