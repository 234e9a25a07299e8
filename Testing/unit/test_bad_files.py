"""Files that cannot be read or written: one sentence and nothing lost."""

from __future__ import annotations

import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from DiffeoRegLib.errors import (
    FileFormatError,
    GeometryError,
    InputError,
    OutputError,
    OutputExistsError,
)
from DiffeoRegLib.volumes import file_guard
from DiffeoRegLib.volumes.files import read_points, read_volume, write_volume
from DiffeoRegLib.volumes.volume import Volume
from Testing.volume_cases import volume


@pytest.mark.parametrize("shape", [(1, 1, 5), (1, 1, 1), (4, 1, 1)])
def test_lines_and_dots_are_refused(tmp_path, shape):
    nib.save(nib.Nifti1Image(np.zeros(shape, np.float32), np.eye(4)), tmp_path / "v.nii")
    with pytest.raises(GeometryError, match="two axes"):
        read_volume(tmp_path / "v.nii")


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
    (tmp_path / "notes.docx").write_text("hello", encoding="utf-8")
    with pytest.raises(FileFormatError, match="does not read"):
        read_volume(tmp_path / "notes.docx")
    (tmp_path / "plain").write_text("hello", encoding="utf-8")
    with pytest.raises(FileFormatError, match="does not read"):
        read_volume(tmp_path / "plain")


def test_analyze_is_refused(tmp_path):
    nib.save(nib.AnalyzeImage(np.zeros((3, 4, 5), np.int16), np.eye(4)), tmp_path / "v.img")
    with pytest.raises(FileFormatError, match="which side is left"):
        read_volume(tmp_path / "v.img")


def test_existing_output_is_kept(tmp_path):
    path = tmp_path / "v.nii.gz"
    path.write_text("precious", encoding="utf-8")
    with pytest.raises(OutputExistsError):
        write_volume(volume(), path)
    assert path.read_text(encoding="utf-8") == "precious"
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
        path.write_text("precious", encoding="utf-8")
    command = [sys.executable, "-c", FULL_DISK, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=True, cwd=repository)
    said = [line.split()[0] for line in done.stdout.splitlines()]
    assert said == ["SAID"] * len(paths), done.stdout
    assert all(path.read_text(encoding="utf-8") == "precious" for path in paths)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(names)


def test_interruption_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(file_guard.Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_volume(volume(), tmp_path / "v.nii.gz")
    assert list(tmp_path.iterdir()) == []


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
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(FileFormatError):
        read_points(tmp_path / name)
