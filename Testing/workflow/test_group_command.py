"""`diffeoreg group`: series and files in, everything or nothing out, read again by others."""

from __future__ import annotations

import csv
import json
import re

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch

from DiffeoRegLib.cli import main
from DiffeoRegLib.errors import FileFormatError, GeometryError, OutputExistsError
from DiffeoRegLib.flows.exponential import midpoint_exp
from DiffeoRegLib.space.filters import gaussian_smooth
from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.space.sample import warp
from DiffeoRegLib.volumes.files import read_points, read_volume, write_points, write_volume
from DiffeoRegLib.volumes.series_files import read_series, write_series
from DiffeoRegLib.volumes.transform_files import read_transform
from DiffeoRegLib.volumes.volume import Volume
from Testing.groupmorph_networks import constant, network_file

SHAPE = (18, 22, 20)
QUICK = (
    "--similarity", "variance", "--levels", "8,4", "--iterations", "12,10", "--working-spacing-mm", "4",
    "--threads", "1", "--device", "cpu", "--quiet",
)  # fmt: skip


def oblique():
    turn = np.array([[0.96, -0.28, 0], [0.28, 0.96, 0], [0, 0, 1.0]])
    matrix = np.eye(4)
    matrix[:3, :3] = turn @ np.diag([4.0, 4.0, 4.0])
    matrix[:3, 3] = (-30, 20, 5)
    return Grid(SHAPE, matrix)


@pytest.fixture(scope="module")
def frames():
    """Three images of one object whose motion is known, on an oblique grid."""
    generator = torch.Generator().manual_seed(4)
    axes = [torch.linspace(-1, 1, n) for n in SHAPE]
    radius = torch.stack(torch.meshgrid(*axes, indexing="ij")).square().sum(0).sqrt()
    texture = gaussian_smooth(torch.randn((1, 1, *SHAPE), generator=generator), 1.5)
    template = gaussian_smooth((radius < 0.7).float()[None, None], 1.0)
    template = template * (0.6 + 0.2 * texture / texture.std()).clamp(0.1, 1)
    velocities = gaussian_smooth(torch.randn((3, 3, *SHAPE), generator=generator), 4.0)
    velocities = velocities * (1.0 / velocities.std())
    velocities = velocities - velocities.mean(0)
    return [
        Volume(200 * warp(template, midpoint_exp(-one[None]))[0, 0], oblique(), f"frame{index}")
        for index, one in enumerate(velocities)
    ]


@pytest.fixture(scope="module")
def folder(frames, tmp_path_factory):
    place = tmp_path_factory.mktemp("group")
    write_series(frames, place / "series.nii.gz")
    for index, frame in enumerate(frames):
        write_volume(frame, place / f"frame{index}.nrrd")
    labels = (frames[1].data > 60).to(torch.int32)
    write_volume(Volume(labels, frames[1].grid, "labels", is_labels=True), place / "labels.nii.gz")
    write_points(frames[0].grid.world_from_index([[9.0, 11, 10], [7, 9, 12]]), place / "points.csv")
    return place


@pytest.fixture(scope="module")
def done(folder):
    out = folder / "out"
    words = ["group", str(folder / "series.nii.gz"), "-o", str(out), *QUICK]
    words += ["--labels-of", f"1:{folder / 'labels.nii.gz'}", "--points-of", f"0:{folder / 'points.csv'}"]
    assert main(words) == 0
    return out


def test_everything_is_written(done, frames):
    names = {path.name for path in done.iterdir()}
    assert names == {
        *(f"common_to_{k:03d}.h5" for k in range(3)), *(f"{k:03d}_to_common.h5" for k in range(3)),
        "aligned.nii.gz", "mean.nii.gz", "deviation_mm.nii.gz", "report.json", "report.html",
        "transforms.csv",
        "labels_of_001_on_000.nii.gz", "labels_of_001_on_002.nii.gz",
        "points_of_000_on_001.csv", "points_of_000_on_002.csv",
    }  # fmt: skip
    report = json.loads((done / "report.json").read_text(encoding="utf-8"))
    assert report["similarity"]["after"]["rmse"] < 0.6 * report["similarity"]["before"]["rmse"]
    assert report["fixed"] is None
    assert report["drift_mm"]["mean"] < 0.3
    with (done / "transforms.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["common_to_image"] for row in rows] == [f"common_to_{k:03d}.h5" for k in range(3)]
    page = (done / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png") == 4 * 3 + 3 + 2 * 3
    assert not re.search(r">[^<]*\bnan\b[^<]*<", page)
    assert nib.load(done / "aligned.nii.gz").shape == (*SHAPE[::-1], 3)


def test_simpleitk_resamples_as_the_aligned_series(done, frames):
    aligned = nib.load(done / "aligned.nii.gz").get_fdata()
    reference = sitk.ReadImage(str(done / "mean.nii.gz"))
    for number in range(3):
        image = sitk.Cast(sitk.ReadImage(str(done.parent / f"frame{number}.nrrd")), sitk.sitkFloat32)
        transform = sitk.ReadTransform(str(done / f"common_to_{number:03d}.h5"))
        moved = sitk.GetArrayFromImage(sitk.Resample(image, reference, transform, sitk.sitkLinear, 0.0))
        inside = (slice(3, -3),) * 3
        difference = np.abs(moved - aligned[..., number].T)[inside]
        assert difference.mean() < 0.3
        assert np.abs(moved[inside] - frames[number].data.numpy()[inside]).mean() > 3 * difference.mean()


def test_written_transforms_are_each_others_inverse_and_carry_the_points(done, folder):
    there = [read_transform(done / f"common_to_{k:03d}.h5") for k in range(3)]
    back = [read_transform(done / f"{k:03d}_to_common.h5") for k in range(3)]
    points = read_points(folder / "points.csv")
    for k in range(3):
        assert np.abs(there[k].map_points(back[k].map_points(points)) - points).max() < 0.15
    for k in (1, 2):
        carried = read_points(done / f"points_of_000_on_{k:03d}.csv")
        assert np.abs(there[k].map_points(back[0].map_points(points)) - carried).max() < 0.1
        assert np.abs(carried - points).max() > 0.3


def test_labels_follow_the_images(done, frames):
    for k in (0, 2):
        carried = read_volume(done / f"labels_of_001_on_{k:03d}.nii.gz", labels=True)
        wanted, still = frames[k].data > 60, frames[1].data > 60
        overlap = [
            2 * float((one & wanted).sum()) / float(one.sum() + wanted.sum())
            for one in (still, carried.data > 0)
        ]
        assert overlap[1] > overlap[0] + 0.01


def test_files_give_what_the_series_gives_and_other_formats_are_fields(done, folder):
    out = folder / "files"
    words = ["group", *(str(folder / f"frame{k}.nrrd") for k in range(3)), "-o", str(out), *QUICK]
    assert main([*words, "--format", "nii.gz", "--no-uncertainty", "--no-html"]) == 0
    assert not (out / "deviation_mm.nii.gz").exists()
    assert not (out / "report.html").exists()
    first, second = (nib.load(place / "aligned.nii.gz").get_fdata() for place in (done, out))
    assert np.abs(first - second).max() < 0.05
    points = read_points(folder / "points.csv")
    fields = [
        read_transform(place / name).map_points(points)
        for place, name in ((done, "common_to_002.h5"), (out, "common_to_002.nii.gz"))
    ]
    assert np.abs(fields[0] - fields[1]).max() < 0.1


def test_results_are_not_overwritten_unasked_and_leftovers_go(done, folder, capsys):
    words = ["group", *(str(folder / f"frame{k}.nrrd") for k in range(2)), "-o"]
    assert main([*words, str(done), *QUICK]) == 3
    assert "already holds" in capsys.readouterr().err
    place = folder / "twice"
    place.mkdir()
    (place / "common_to_007.h5").write_bytes(b"old")
    (place / "mine.txt").write_text("mine", encoding="utf-8")
    assert main([*words, str(place), *QUICK, "--overwrite", "--fixed-index", "0"]) == 0
    names = {path.name for path in place.iterdir()}
    assert "common_to_007.h5" not in names
    assert {"mine.txt", "common_to_001.h5"} <= names
    assert not [name for name in names if name.startswith(".")]
    aligned = nib.load(place / "aligned.nii.gz").get_fdata(dtype=np.float32)
    given = read_volume(folder / "frame0.nrrd").data.numpy()
    assert np.array_equal(aligned[..., 0].T, given)


@pytest.mark.parametrize(
    ("words", "status", "sentence"),
    [
        (["frame0.nrrd"], 2, "holds one volume"),
        (["frame0.nrrd", "frame1.nrrd", "--fixed-index", "2"], 2, "out of range"),
        (["frame0.nrrd", "frame1.nrrd", "--landmarks", "points.csv"], 2, "a file for each"),
        (["frame0.nrrd", "frame1.nrrd", "--labels-of", "5:labels.nii.gz"], 2, "names image 5"),
        (["frame0.nrrd", "frame1.nrrd", "--labels-of", "labels.nii.gz"], 2, "is not N:FILE"),
        (["frame0.nrrd", "gone.nrrd"], 2, "There is no file"),
        (["frame0.nrrd", "frame1.nrrd", "--mean", "--fixed-index", "0"], 2, "not allowed with"),
    ],
)
def test_bad_input_is_one_sentence(folder, words, status, sentence, capsys):
    given = [
        str(folder / word) if (folder / word).exists() or word == "gone.nrrd" else word for word in words
    ]
    assert main(["group", *given, "-o", str(folder / "never"), *QUICK]) == status
    assert sentence in capsys.readouterr().err
    assert not (folder / "never").exists()


# ---------------------------------------------------------------- series files


def test_a_series_comes_back_as_it_was(frames, tmp_path):
    write_series(frames, tmp_path / "s.nii.gz")
    back = read_series(tmp_path / "s.nii.gz")
    assert [one.name for one in back] == ["s_000", "s_001", "s_002"]
    for one, frame in zip(back, frames, strict=True):
        assert torch.equal(one.data, frame.data)
        assert one.grid.same_as(frame.grid)
    with pytest.raises(OutputExistsError):
        write_series(frames, tmp_path / "s.nii.gz")
    other = Volume(frames[0].data[1:], frames[0].grid.cropped((1, 0, 0), SHAPE), "cut")
    with pytest.raises(GeometryError):
        write_series([frames[0], other], tmp_path / "t.nii.gz")


def test_nrrd_series_of_both_kinds_and_planes(frames, tmp_path):
    first = sitk.ReadImage(str(_written(frames[0], tmp_path)))
    four = sitk.JoinSeries([first, first * 2, first * 3])
    sitk.WriteImage(four, str(tmp_path / "four.nrrd"))
    sitk.WriteImage(sitk.Compose(first, first * 2, first * 3, first * 4), str(tmp_path / "vector.nrrd"))
    for name, count in (("four.nrrd", 3), ("vector.nrrd", 4)):
        back = read_series(tmp_path / name)
        assert len(back) == count
        assert torch.allclose(back[2].data, 3 * frames[0].data)
        assert back[2].grid.same_as(frames[0].grid)
    flat = [Volume(torch.rand(6, 7), Grid((6, 7), np.diag([2.0, 3, 1, 1])), "flat") for _ in range(2)]
    write_series(flat, tmp_path / "flat.nii.gz")
    back = read_series(tmp_path / "flat.nii.gz")
    assert [one.grid.dim for one in back] == [2, 2]
    assert torch.equal(back[1].data, flat[1].data)
    with pytest.raises(FileFormatError, match="one volume"):
        read_series(_written(frames[0], tmp_path, "single.nii.gz"))
    with pytest.raises(FileFormatError, match="no series"):
        read_series(tmp_path / "flat.png")


def _written(volume, folder, name="one.nrrd"):
    write_volume(volume, folder / name)
    (folder / "flat.png").write_bytes(b"x")
    return folder / name


def test_a_network_registers_a_group(frames, tmp_path):
    for number, frame in enumerate(frames):
        write_volume(frame, tmp_path / f"{number}.nii.gz")
    images = [str(tmp_path / f"{number}.nii.gz") for number in range(3)]
    shift = (0.4, -0.2, 0.3)
    weights = network_file(tmp_path / "own.safetensors", constant(shift), (4.0, 4.0, 4.0))
    flags = ["--effort", "fast", "--device", "cpu", "--threads", "1", "--quiet", "--fixed-index", "1"]
    out = tmp_path / "out"
    command = ["group", *images, "-o", str(out), "--method", "groupmorph", "--weights", str(weights), *flags]
    assert main(command) == 0
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert report["settings"]["method"] == "groupmorph"
    assert any("own.safetensors" in note for note in report["notes"])
    middle = oblique().world_from_index(np.array([[9.0, 11, 10]]))
    moved = read_transform(out / "common_to_000.h5").map_points(middle)
    assert np.allclose(moved, middle + 4.0 * np.array(shift[::-1]), atol=0.02)
    assert (out / "deviation_mm.nii.gz").is_file()


def test_a_network_needs_its_weights_before_anything_is_read(tmp_path, capsys):
    assert (
        main(["group", "no.nii.gz", "none.nii.gz", "-o", str(tmp_path / "o"), "--method", "groupmorph"]) != 0
    )
    assert "--weights FILE" in capsys.readouterr().err
    assert (
        main(["register", "a.nii.gz", "b.nii.gz", "-o", str(tmp_path / "o"), "--method", "groupmorph"]) != 0
    )
    assert "registers a group of images" in capsys.readouterr().err
