"""Volume and point files: right values in the right place."""

from __future__ import annotations

import itertools

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch

from DiffeoRegLib.errors import (
    FileFormatError,
    GeometryError,
    OutputError,
    OutputExistsError,
)
from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.volumes.files import read_points, read_volume, write_points, write_volume
from DiffeoRegLib.volumes.volume import Volume
from Testing.volume_cases import OBLIQUE, oblique_grid, volume


def nifti_bytes(path, sform, sform_code, qform, qform_code, *, units="mm", dtype=np.int16, endian="<"):
    """A hand-made NIfTI-1 file: nibabel itself would tidy the codes up."""
    header = nib.Nifti1Header(endianness=endian)
    header.set_data_shape((3, 4, 5))
    header.set_data_dtype(dtype)
    header.set_zooms((1, 2, 3))
    header.set_qform(qform, 1)
    header.set_sform(sform, 1)
    header["qform_code"], header["sform_code"] = qform_code, sform_code
    header["magic"], header["vox_offset"] = b"n+1", 352
    header.set_xyzt_units(units)
    data = np.arange(60).reshape(5, 4, 3).astype(header.get_data_dtype())
    path.write_bytes(header.binaryblock + b"\0" * 4 + data.tobytes())


def rotated(axis, degrees, origin):
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    i, j = [a for a in range(3) if a != axis]
    out = np.eye(4)
    out[i, i], out[j, j], out[i, j], out[j, i] = c, c, -s, s
    out[:3, :3] *= [1, 2, 3]
    out[:3, 3] = origin
    return out


@pytest.mark.parametrize("codes", list(itertools.product((0, 1, 2, 4), (0, 1, 3))))
def test_nifti_codes_choose_as_itk_does(tmp_path, codes):
    path = tmp_path / "v.nii"
    nifti_bytes(path, rotated(2, 20, (1, 2, 3)), codes[0], rotated(0, -30, (10, 20, 30)), codes[1])
    image = sitk.ReadImage(str(path))
    ours = read_volume(path)
    for ijk in ((0, 0, 0), (2, 3, 4), (2, 0, 1)):
        theirs = np.array(image.TransformIndexToPhysicalPoint(ijk)) * [-1, -1, 1]
        assert np.allclose(ours.grid.world_from_index(ijk[::-1]), theirs, atol=1e-4)
        assert ours.data[ijk[::-1]] == image[ijk]


def test_sform_sheared_is_taken_only_without_qform(tmp_path):
    sheared = rotated(2, 20, (1, 2, 3))
    sheared[0, 1] += 0.8
    nifti_bytes(tmp_path / "s.nii", sheared, 1, rotated(0, -30, (10, 20, 30)), 0)
    nifti_bytes(tmp_path / "q.nii", sheared, 1, rotated(0, -30, (10, 20, 30)), 1)
    assert np.allclose(
        read_volume(tmp_path / "s.nii").grid.world_from_index((1, 2, 1)),
        (sheared @ (1, 2, 1, 1))[:3],
        atol=1e-5,
    )
    q = rotated(0, -30, (10, 20, 30))
    assert np.allclose(
        read_volume(tmp_path / "q.nii").grid.world_from_index((1, 2, 1)), (q @ (1, 2, 1, 1))[:3], atol=1e-5
    )


@pytest.mark.parametrize(("units", "factor"), [("mm", 1.0), ("meter", 1000.0), ("micron", 0.001)])
def test_nifti_units_become_mm(tmp_path, units, factor):
    affine = rotated(1, 10, (5, 6, 7))
    nifti_bytes(tmp_path / "v.nii", affine, 1, affine, 1, units=units)
    spacing = read_volume(tmp_path / "v.nii").grid.spacing
    assert np.allclose(spacing, np.array([3, 2, 1]) * factor, rtol=1e-5)


@pytest.mark.parametrize("endian", ["<", ">"])
@pytest.mark.parametrize(
    "dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64, np.uint32]
)
def test_nifti_number_types(tmp_path, endian, dtype):
    affine = rotated(1, 10, (5, 6, 7))
    nifti_bytes(tmp_path / "v.nii", affine, 1, affine, 1, dtype=dtype, endian=endian)
    expected = torch.arange(60).reshape(5, 4, 3)
    image = read_volume(tmp_path / "v.nii")
    assert image.data.dtype == torch.float32
    assert torch.equal(image.data, expected.float())
    labels = read_volume(tmp_path / "v.nii", labels=True)
    assert labels.data.dtype == torch.int32
    assert labels.is_labels
    assert torch.equal(labels.data, expected.int())


def test_nifti_scaling_is_applied(tmp_path):
    header = nib.Nifti1Header()
    header.set_data_dtype(np.int16)
    image = nib.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4), np.eye(4), header)
    image.header.set_slope_inter(0.5, -3)
    nib.save(image, tmp_path / "v.nii.gz")
    raw = nib.load(tmp_path / "v.nii.gz").dataobj
    assert torch.allclose(
        read_volume(tmp_path / "v.nii.gz").data, torch.tensor(np.asarray(raw).T.tolist(), dtype=torch.float32)
    )
    assert (raw.slope, raw.inter) == (0.5, -3)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha"])
@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.parametrize("shape", [(5, 6, 7), (6, 7)])
def test_round_trip(tmp_path, suffix, labels, shape):
    if suffix == ".gipl":  # the format has no orientation
        original = Volume(
            volume(shape, labels=labels).data, Grid(shape, np.diag([-1, -1, 3, 1.0])), "v", labels
        )
    else:
        original = volume(shape, labels=labels)
    path = tmp_path / f"v{suffix}"
    write_volume(original, path)
    again = read_volume(path, labels=labels)
    assert again.name == "v"
    assert torch.equal(again.data, original.data)
    assert again.grid.same_as(original.grid, 1e-3)
    assert np.allclose(again.grid.world_from_voxel, original.grid.world_from_voxel, atol=1e-4)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_labels_are_stored_small(tmp_path):
    for high, kind in ((200, np.uint8), (300, np.uint16), (70000, np.int32)):
        labels = Volume(torch.full((4, 5, 6), high, dtype=torch.int32), oblique_grid((4, 5, 6)), "l", True)
        write_volume(labels, tmp_path / f"{high}.nii.gz")
        assert nib.load(tmp_path / f"{high}.nii.gz").get_data_dtype() == kind
    negative = Volume(torch.full((4, 5, 6), -3, dtype=torch.int32), oblique_grid((4, 5, 6)), "l", True)
    write_volume(negative, tmp_path / "n.nii.gz")
    assert read_volume(tmp_path / "n.nii.gz", labels=True).data.unique().tolist() == [-3]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_one_slice_is_two_dimensional_in_its_place(tmp_path, axis):
    shape = [5, 6, 7]
    shape[axis] = 1
    array = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    affine = np.linalg.qr(OBLIQUE[:3, :3])[0] * [0.75, 1.25, 2.5]
    affine = np.vstack([np.column_stack([affine, [4, 5, 6]]), [0, 0, 0, 1]])
    nib.save(nib.Nifti1Image(array, affine), tmp_path / "v.nii")
    flat = read_volume(tmp_path / "v.nii")
    assert flat.grid.dim == 2
    index = [n // 2 for n in shape]
    kept = [n for n, size in zip(index[::-1], shape[::-1], strict=True) if size > 1]
    assert np.allclose(flat.grid.world_from_index(kept), (affine @ [*index, 1])[:3], atol=1e-5)
    assert flat.data[tuple(kept)] == array[tuple(index)]
    thickness = np.linalg.norm(flat.grid.world_from_voxel[:3, 2])
    assert thickness == pytest.approx(np.linalg.norm(affine[:3, axis]), rel=1e-5)


@pytest.mark.parametrize(("high", "kind"), [(255, sitk.sitkUInt8), (4000, sitk.sitkUInt16)])
def test_png_holds_8_or_16_bits(tmp_path, high, kind):
    data = torch.linspace(0, high, 42).round().reshape(6, 7)
    write_volume(Volume(data, oblique_grid((6, 7)), "slice"), tmp_path / "v.png")
    assert sitk.ReadImage(str(tmp_path / "v.png")).GetPixelID() == kind
    assert torch.equal(read_volume(tmp_path / "v.png").data, data)


def test_tiff_keeps_fractions_and_png_refuses_to_spoil_them(tmp_path):
    image = Volume(torch.rand(6, 7), oblique_grid((6, 7)), "slice")
    write_volume(image, tmp_path / "v.tif")
    assert torch.equal(read_volume(tmp_path / "v.tif").data, image.data)
    with pytest.raises(OutputError, match="whole numbers"):
        write_volume(image, tmp_path / "v.png")
    with pytest.raises(OutputError, match="one slice"):
        write_volume(volume(), tmp_path / "w.png")
    assert [p.name for p in tmp_path.iterdir()] == ["v.tif"]


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd"])
def test_four_axes_with_one_volume_are_accepted(tmp_path, suffix):
    array = np.random.default_rng(0).normal(size=(1, 3, 4, 5)).astype(np.float32)
    sitk.WriteImage(sitk.GetImageFromArray(array, isVector=False), str(tmp_path / f"v{suffix}"))
    assert torch.equal(read_volume(tmp_path / f"v{suffix}").data, torch.tensor(array[0].tolist()))


def test_invalid_numbers_survive_reading(tmp_path):
    array = np.ones((3, 4, 5), np.float32)
    array[0, 1, 2], array[1, 1, 1] = np.nan, np.inf
    nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / "v.nii.gz")
    data = read_volume(tmp_path / "v.nii.gz").data
    assert torch.isnan(data[2, 1, 0])
    assert torch.isinf(data[1, 1, 1])
    with pytest.raises(FileFormatError, match="label map"):
        read_volume(tmp_path / "v.nii.gz", labels=True)


def test_sheared_grids_go_to_nifti_only(tmp_path):
    world = oblique_grid().world_from_voxel.copy()
    world[:3, 0] += 0.3 * world[:3, 1]
    sheared = Volume(volume().data, Grid((5, 6, 7), world), "v")
    with pytest.raises(GeometryError, match="sheared"):
        write_volume(sheared, tmp_path / "v.nrrd")
    write_volume(sheared, tmp_path / "v.nii.gz")
    assert read_volume(tmp_path / "v.nii.gz").grid.same_as(sheared.grid, 1e-3)
    assert [p.name for p in tmp_path.iterdir()] == ["v.nii.gz"]


POINTS = np.array([[1.25, -2.5, 3.75], [-10.0, 20.125, 0.0], [7.0, 8.0, -9.5]])


@pytest.mark.parametrize("name", ["p.mrk.json", "p.fcsv", "p.csv", "p.txt", "p.pts"])
def test_points_round_trip(tmp_path, name):
    write_points(POINTS, tmp_path / name)
    assert np.array_equal(read_points(tmp_path / name), POINTS)
    with pytest.raises(OutputExistsError):
        write_points(POINTS, tmp_path / name)


def test_point_files_of_other_programs(tmp_path):
    files = {
        "old.fcsv": "# Markups fiducial file version = 4.10\n# CoordinateSystem = 0\n# columns = id,x,y,z\n"
        "a,1.25,-2.5,3.75,0,0,0,1,1,1,0,F-1,,\n",
        "lps.fcsv": "# CoordinateSystem = LPS\nb,-1.25,2.5,3.75,0,0,0,1\n",
        "ras.mrk.json": '{"markups": [{"coordinateSystem": "RAS", "controlPoints": '
        '[{"position": [1.25, -2.5, 3.75]},'
        '{"position": [0, 0, 0], "positionStatus": "undefined"}]}]}',
        "lps.mrk.json": '{"markups": [{"coordinateSystem": "LPS", "controlPoints": '
        '[{"position": [-1.25, 2.5, 3.75]}]}]}',
        "plain.csv": "1.25,-2.5,3.75\n",
        "lps.csv": "# LPS\nname,x,y,z\nfirst,-1.25,2.5,3.75\n",
        "tabs.tsv": "z\ty\tx\n3.75\t-2.5\t1.25\n",
        "elastix.txt": "point\n1\n-1.25 2.5 3.75\n",
        "mesh.vtk": "# vtk DataFile Version 3.0\nx\nASCII\nDATASET POLYDATA\n"
        "POINTS 1 float\n-1.25 2.5 3.75\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
        assert np.allclose(read_points(tmp_path / name), POINTS[:1]), name


def test_index_points_need_the_grid(tmp_path):
    (tmp_path / "i.txt").write_text("index\n1\n2 3 4\n", encoding="utf-8")
    with pytest.raises(FileFormatError, match="voxels"):
        read_points(tmp_path / "i.txt")
    assert np.allclose(
        read_points(tmp_path / "i.txt", grid=oblique_grid()), [oblique_grid().world_from_index((4, 3, 2))]
    )
