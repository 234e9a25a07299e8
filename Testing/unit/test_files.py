"""Volume and point files: right values in the right place, or one sentence and nothing lost."""

from __future__ import annotations

import itertools
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch

from DiffeoRegLib.errors import (
    FileFormatError,
    GeometryError,
    InputError,
    OutputError,
    OutputExistsError,
)
from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.volumes import file_guard
from DiffeoRegLib.volumes.files import read_points, read_volume, write_points, write_volume
from DiffeoRegLib.volumes.volume import Volume

OBLIQUE = np.array(
    [[1.5, 0.4, -0.3, 10.0], [-0.375, 1.6, 0.45, -20.0], [0.2475, -0.28, 2.4, 30.0], [0, 0, 0, 1.0]]
)


def oblique_grid(shape=(5, 6, 7)) -> Grid:
    """A left-handed, anisotropic grid at an odd angle."""
    axes, _ = np.linalg.qr(OBLIQUE[:3, :3])
    world = np.eye(4)
    world[:3, :3] = axes * [2.5, 1.25, 0.75]
    world[:3, 3] = (10, -20, 30)
    return Grid(shape, world)


def volume(shape=(5, 6, 7), *, labels=False) -> Volume:
    rng = np.random.default_rng(5)
    data = rng.integers(0, 300, shape) if labels else rng.normal(50, 20, shape)
    kind = torch.int32 if labels else torch.float32
    return Volume(torch.tensor(data.tolist(), dtype=kind), oblique_grid(shape), "v", labels)


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


@pytest.mark.parametrize("shape", [(1, 1, 5), (1, 1, 1), (4, 1, 1)])
def test_lines_and_dots_are_refused(tmp_path, shape):
    nib.save(nib.Nifti1Image(np.zeros(shape, np.float32), np.eye(4)), tmp_path / "v.nii")
    with pytest.raises(GeometryError, match="two axes"):
        read_volume(tmp_path / "v.nii")


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


def test_not_one_grey_volume_gets_a_sentence(tmp_path):
    affine = np.eye(4)
    nib.save(nib.Nifti1Image(np.zeros((3, 4, 5, 2), np.float32), affine), tmp_path / "time.nii.gz")
    nib.save(nib.Nifti1Image(np.zeros((3, 4, 5, 1, 3), np.float32), affine), tmp_path / "vector.nii.gz")
    nib.save(nib.Nifti1Image(np.zeros((3, 4, 5), np.complex64), affine), tmp_path / "complex.nii.gz")
    rgb = np.zeros((3, 4, 5), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(rgb, affine), tmp_path / "colour.nii.gz")
    colour = sitk.GetImageFromArray(np.zeros((4, 5, 3), np.uint8), isVector=True)
    sitk.WriteImage(colour, str(tmp_path / "colour.png"))
    many = sitk.GetImageFromArray(np.zeros((2, 3, 4, 5), np.float32), isVector=False)
    sitk.WriteImage(many, str(tmp_path / "time.nrrd"))
    sitk.WriteImage(sitk.Cast(many[..., 0], sitk.sitkComplexFloat32), str(tmp_path / "complex.mha"))
    words = {"time": "several volumes", "vector": "several volumes", "complex": "complex", "colour": "colour"}
    files = sorted(tmp_path.iterdir())
    assert len(files) == 7
    for path in files:
        with pytest.raises(FileFormatError, match=words[path.name.split(".")[0]]) as caught:
            read_volume(path)
        assert str(path) in str(caught.value)


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


def test_fractions_are_no_labels(tmp_path):
    nib.save(nib.Nifti1Image(np.full((3, 4, 5), 1.5, np.float32), np.eye(4)), tmp_path / "v.nii")
    with pytest.raises(FileFormatError, match="fractions"):
        read_volume(tmp_path / "v.nii", labels=True)


def test_singular_geometry_is_refused(tmp_path):
    flat = np.eye(4)
    flat[:3, 1] = flat[:3, 0]
    image = nib.Nifti1Image(np.zeros((3, 4, 5), np.float32), None)
    image.set_sform(flat, 1)
    image.set_qform(None, 0)
    image.to_filename(tmp_path / "v.nii")
    header = nib.load(tmp_path / "v.nii").header
    assert (int(header["sform_code"]), int(header["qform_code"])) == (1, 0)
    with pytest.raises(GeometryError, match="singular"):
        read_volume(tmp_path / "v.nii")


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha", ".png", ".tif"])
@pytest.mark.parametrize("kept", [0.0, 0.02, 0.3, 0.9, "noise"])
def test_damaged_files_get_a_sentence(tmp_path, suffix, kept, capfd):
    flat = suffix in (".png", ".tif")
    whole = volume((40, 50) if flat else (20, 21, 22))
    path = tmp_path / f"v{suffix}"
    write_volume(Volume(whole.data.abs().round() * 10, whole.grid, "v"), path)
    content = path.read_bytes()
    read_volume(path)
    path.write_bytes(
        np.random.default_rng(0).bytes(5000) if kept == "noise" else content[: int(len(content) * kept)]
    )
    with pytest.raises(InputError) as caught:
        read_volume(path)
    assert str(path) in str(caught.value)
    assert "Error" not in str(caught.value)
    out, err = capfd.readouterr()
    assert out == ""
    assert "itk" not in err.lower()


@pytest.mark.parametrize("name", ["v.mha", "v.nrrd", "v.gipl", "v.gipl.gz", "v.nii"])
def test_shortened_plain_files_get_a_sentence(tmp_path, name):
    image = sitk.GetImageFromArray(np.random.default_rng(0).normal(size=(9, 10, 11)))
    path = tmp_path / name
    sitk.WriteImage(image, str(path), useCompression=False)
    assert read_volume(path).grid.shape == (9, 10, 11)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(FileFormatError, match="cut short"):
        read_volume(path)


def test_missing_and_unknown_files(tmp_path):
    with pytest.raises(FileFormatError, match="no file"):
        read_volume(tmp_path / "none.nii.gz")
    (tmp_path / "notes.docx").write_text("hello")
    with pytest.raises(FileFormatError, match="does not read"):
        read_volume(tmp_path / "notes.docx")
    (tmp_path / "plain").write_text("hello")
    with pytest.raises(FileFormatError, match="does not read"):
        read_volume(tmp_path / "plain")


def test_analyze_is_refused(tmp_path):
    nib.save(nib.AnalyzeImage(np.zeros((3, 4, 5), np.int16), np.eye(4)), tmp_path / "v.img")
    with pytest.raises(FileFormatError, match="which side is left"):
        read_volume(tmp_path / "v.img")


def test_existing_output_is_kept(tmp_path):
    path = tmp_path / "v.nii.gz"
    path.write_text("precious")
    with pytest.raises(OutputExistsError):
        write_volume(volume(), path)
    assert path.read_text() == "precious"
    write_volume(volume(), path, overwrite=True)
    assert read_volume(path).grid.shape == (5, 6, 7)


def test_bad_destinations(tmp_path):
    with pytest.raises(OutputError, match="no folder"):
        write_volume(volume(), tmp_path / "none" / "v.nii.gz")
    with pytest.raises(OutputError, match="is a folder"):
        write_volume(volume(), _folder(tmp_path / "d.nii"))
    with pytest.raises(OutputError, match="writes"):
        write_volume(volume(), tmp_path / "v.xyz")


def _folder(path):
    path.mkdir()
    return path


FULL_DISK = """
import resource, signal, sys, torch, numpy as np
from pathlib import Path
from DiffeoRegLib.errors import OutputError
from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.space.transform import DisplacementTransform
from DiffeoRegLib.volumes.files import write_volume
from DiffeoRegLib.volumes.transform_files import write_transform
from DiffeoRegLib.volumes.volume import Volume

grid = Grid((60, 60, 60), np.eye(4))
volume = Volume(torch.rand(60, 60, 60), grid)
picture = Volume(torch.randint(0, 60000, (600, 600)).float(), Grid((600, 600), np.eye(4)))
transform = DisplacementTransform(grid, torch.rand(1, 3, 60, 60, 60))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100000, 100000))
for path in sys.argv[1:]:
    write, thing = (write_transform, transform) if "field" in path else (write_volume, volume)
    thing = picture if path.endswith((".png", ".tif")) else thing
    try:
        write(thing, path, overwrite=True)
        print("UNNOTICED", path)
    except OutputError as error:
        print("SAID", error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits on the size of a file are POSIX")
def test_full_disk_leaves_nothing_and_says_so(tmp_path, repository):
    """A limit on the file size stands in for a full disk: writing stops in the middle of the voxels."""
    names = ["v.nii", "v.nii.gz", "v.nrrd", "v.mha", "v.png", "v.tif", "field.nrrd", "field.nii.gz"]
    paths = [tmp_path / name for name in names]
    for path in paths:
        path.write_text("precious")
    command = [sys.executable, "-c", FULL_DISK, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=repository)
    said = [line.split()[0] for line in done.stdout.splitlines()]
    assert said == ["SAID"] * len(paths), done.stdout
    assert all(path.read_text() == "precious" for path in paths)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(names)


def test_interruption_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(file_guard.Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_volume(volume(), tmp_path / "v.nii.gz")
    assert list(tmp_path.iterdir()) == []


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
        (tmp_path / name).write_text(text)
        assert np.allclose(read_points(tmp_path / name), POINTS[:1]), name


def test_index_points_need_the_grid(tmp_path):
    (tmp_path / "i.txt").write_text("index\n1\n2 3 4\n")
    with pytest.raises(FileFormatError, match="voxels"):
        read_points(tmp_path / "i.txt")
    assert np.allclose(
        read_points(tmp_path / "i.txt", grid=oblique_grid()), [oblique_grid().world_from_index((4, 3, 2))]
    )


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "x,y\n1,2\n"),
        ("a.fcsv", "# CoordinateSystem = IJK\n1,2,3,4\n"),
        ("a.mrk.json", "{"),
        ("a.mrk.json", '{"markups": [{"controlPoints": [{"position": [1, 2]}]}]}'),
        ("a.txt", "point\n3\n1 2 3\n"),
        ("a.vtk", "# vtk DataFile\nBINARY\n"),
        ("a.csv", ""),
        ("a.csv", "x,y,z\n1,2,nan\n"),
        ("a.xyz", "1 2 3"),
    ],
)
def test_bad_point_files_get_a_sentence(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(FileFormatError):
        read_points(tmp_path / name)
