"""DICOM folders, made here: right order and place, and a sentence for all that cannot be stacked."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk

from DiffeoRegLib.errors import FileFormatError, GeometryError
from DiffeoRegLib.volumes.files import read_volume

AXES = np.linalg.qr(np.array([[1.0, 0.2, 0.1], [-0.2, 1.0, 0.3], [0.1, -0.2, 1.0]]))[0]
SPACING = (0.75, 1.25, 2.5)
ORIGIN = np.array([-30.0, 12.5, 40.0])


def series(folder, *, count=5, uid="1.2.3", name="T1", lean=(0.0, 0.0), skip=(), twice=(), prefix="s"):
    """Writes slices in a shuffled file order; returns what voxel values they hold, (k, j, i)."""
    folder.mkdir(exist_ok=True)
    values = np.random.default_rng(0).integers(0, 1000, (count, 6, 7)).astype(np.int16)
    normal = np.cross(AXES[:, 0], AXES[:, 1])
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for k in [*range(count), *twice]:
        if k in skip:
            continue
        image = sitk.GetImageFromArray(values[k : k + 1])
        image.SetSpacing(SPACING)
        position = ORIGIN + k * (SPACING[2] * normal + lean[0] * AXES[:, 0] + lean[1] * AXES[:, 1])
        tags = {
            "0008|0060": "MR",
            "0020|000d": "1.2",
            "0020|000e": uid,
            "0008|103e": name,
            "0008|0018": f"{uid}.{k}.{len(list(folder.iterdir()))}",
            "0020|0032": "\\".join(f"{x:.6f}" for x in position),
            "0020|0037": "\\".join(f"{x:.8f}" for x in [*AXES[:, 0], *AXES[:, 1]]),
            "0020|0013": str(k),
        }
        for key, value in tags.items():
            image.SetMetaData(key, value)
        writer.SetFileName(str(folder / f"{prefix}{(k * 3) % 7}{len(list(folder.iterdir()))}.dcm"))
        writer.Execute(image)
    return values


def test_series_is_sorted_and_placed(tmp_path):
    values = series(tmp_path / "d")
    volume = read_volume(tmp_path / "d", name="t1")
    assert volume.name == "t1"
    normal = np.cross(AXES[:, 0], AXES[:, 1])
    steps = np.column_stack([normal * SPACING[2], AXES[:, 1] * SPACING[1], AXES[:, 0] * SPACING[0]])
    for kji in ((0, 0, 0), (4, 5, 6), (2, 1, 3)):
        expected = (ORIGIN + steps @ kji) * [-1, -1, 1]
        assert np.allclose(volume.grid.world_from_index(kji), expected, atol=1e-3)
        assert volume.data[kji] == values[kji]


def test_two_series_are_named_and_a_file_picks_one(tmp_path):
    first = series(tmp_path / "d", uid="1.2.3", name="T1 axial", prefix="a")
    series(tmp_path / "d", uid="1.2.4", name="T2 coronal", count=3, prefix="b")
    with pytest.raises(FileFormatError, match=r"2 DICOM series.*T1 axial.*T2 coronal"):
        read_volume(tmp_path / "d")
    one = next(p for p in (tmp_path / "d").iterdir() if p.name.startswith("a"))
    assert read_volume(one).data.tolist() == first.tolist()


def test_one_file_is_one_slice(tmp_path):
    values = series(tmp_path / "d", count=1)
    assert read_volume(next((tmp_path / "d").iterdir())).data.tolist() == values[0].tolist()
    assert read_volume(tmp_path / "d").grid.dim == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"skip": (2,)}, "uneven slices: 5.00 mm after slice 2"),
        ({"twice": (2,)}, "several images of the same slice"),
        ({"lean": (0.0, 0.5)}, "tilted by 11.3 degrees"),
    ],
)
def test_what_cannot_be_stacked(tmp_path, options, words):
    series(tmp_path / "d", **options)
    with pytest.raises(GeometryError, match=words):
        read_volume(tmp_path / "d")


def test_a_lean_from_rounded_headers_is_straightened(tmp_path):
    series(tmp_path / "d", lean=(0.01, 0.0))
    matrix = read_volume(tmp_path / "d").grid.world_from_voxel
    assert abs(matrix[:3, 0] @ matrix[:3, 2]) < 1e-5


def test_folder_without_images(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(FileFormatError, match="no DICOM images"):
        read_volume(tmp_path)
