"""DICOM folders, made here: right order and place, and a sentence for all that cannot be stacked."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from DiffeoRegLib.errors import FileFormatError, GeometryError, OutputError, OutputExistsError
from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.volumes.files import read_volume, write_volume
from DiffeoRegLib.volumes.volume import Volume

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
    (tmp_path / "notes.txt").write_text("hello", encoding="utf-8")
    with pytest.raises(FileFormatError, match="no DICOM images"):
        read_volume(tmp_path)


@pytest.mark.parametrize("handed", [1.0, -1.0])
@pytest.mark.parametrize("labels", [False, True])
def test_a_written_series_comes_back_in_its_place(tmp_path, handed, labels):
    world = np.eye(4)
    world[:3, :3] = AXES * np.array([3.0 * handed, 1.2, 0.9])
    world[:3, 3] = ORIGIN
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(6, 7, 8, generator=generator) * 100
    if labels:
        values = (values > 50).int() * 7
    volume = Volume(values, Grid((6, 7, 8), world), name="moved", is_labels=labels)
    write_volume(volume, tmp_path / "series")
    back = read_volume(tmp_path / "series", labels=labels)
    everywhere = np.stack(np.meshgrid(*[np.arange(n) for n in (6, 7, 8)], indexing="ij"), -1).reshape(-1, 3)
    index = back.grid.index_from_world(volume.grid.world_from_index(everywhere))
    assert np.abs(index - np.rint(index)).max() < 1e-3
    found = back.data[tuple(np.rint(index).astype(int).T)].reshape(6, 7, 8)
    step = float(values.max() - values.min()) / 65535
    assert float((found - values).abs().max()) <= (0 if labels else step)


def test_an_existing_series_is_kept_unless_asked(tmp_path):
    volume = Volume(torch.rand(3, 4, 5), Grid((3, 4, 5), np.eye(4)))
    write_volume(volume, tmp_path / "series")
    before = sorted((tmp_path / "series").iterdir())
    with pytest.raises(OutputExistsError, match="holds files already"):
        write_volume(volume, tmp_path / "series")
    assert sorted((tmp_path / "series").iterdir()) == before
    write_volume(Volume(torch.rand(2, 4, 5), Grid((2, 4, 5), np.eye(4))), tmp_path / "series", overwrite=True)
    assert len(list((tmp_path / "series").iterdir())) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["series"]


def test_a_folder_that_cannot_be_written_leaves_nothing(tmp_path):
    volume = Volume(torch.rand(3, 4, 5), Grid((3, 4, 5), np.eye(4)))
    with pytest.raises(OutputError, match="Create it first"):
        write_volume(volume, tmp_path / "nowhere" / "series")
    assert not list(tmp_path.iterdir())
