"""Bad input through the command: one clear sentence, the right exit status, nothing left behind."""

from __future__ import annotations

import errno
import json

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from DiffeoRegLib.cli import BAD_INPUT, BAD_OUTPUT, CANCELLED, NO_MEMORY, OK, main
from DiffeoRegLib.cli.console import PlainConsole

SHAPE = (14, 16, 18)  # k, j, i
QUICK = ["--device", "cpu", "--levels", "4,2", "--iterations", "1,1", "--dense-iterations", "0", "--no-html"]


def blob(shift: float) -> np.ndarray:
    """Two round spots, the larger one moved along i, in 0 .. 100."""
    k, j, i = np.mgrid[tuple(slice(n) for n in SHAPE)]
    large = np.exp(-((i - 9 - shift) ** 2 + (j - 8) ** 2 + (k - 7) ** 2) / 30)
    small = np.exp(-((i - 5) ** 2 + (j - 5 - shift) ** 2 + (k - 5) ** 2) / 8)
    return (100 * large + 60 * small).astype(np.float32)


def save(array, path, *, origin=(0.0, 0.0, 0.0), spacing=(2.0, 2.0, 2.0), vector=False):
    image = sitk.GetImageFromArray(array, isVector=vector)
    if image.GetDimension() == 3:
        image.SetOrigin(origin)
        image.SetSpacing(spacing)
    sitk.WriteImage(image, str(path))


def nifti(array, path, affine=None):
    nib.save(nib.Nifti1Image(array.T, np.diag([-2.0, -2, 2, 1]) if affine is None else affine), path)


def points(path, rows):
    path.write_text("x,y,z\n" + "".join(",".join(map(str, row)) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A folder with a good pair and everything that can be wrong with files."""
    folder = tmp_path_factory.mktemp("given")
    fixed, moving = blob(0), blob(1)
    save(fixed, folder / "fixed.nii.gz")
    save(moving, folder / "moving.nii.gz")
    save(moving, folder / "whole.mha")
    _damaged(folder)
    _not_one_grey_volume(folder, fixed)
    _bad_geometry(folder, fixed, moving)
    _masks_and_labels(folder, fixed, moving)
    rows = np.array([[-18.0, -16, 14], [-10, -10, 10], [-20, -16, 14]])
    points(folder / "three.csv", rows)
    points(folder / "two.csv", rows[:2])
    points(folder / "away.csv", rows + 900)
    rng = np.random.default_rng(0)
    (folder / "foreign.h5").write_bytes(rng.bytes(2000))
    (folder / "foreign.tfm").write_text("hello", encoding="utf-8")
    return folder


def _damaged(folder):
    for name, source in (("cut.nii.gz", "moving.nii.gz"), ("cut.mha", "whole.mha")):
        content = (folder / source).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])
    (folder / "noise.nii.gz").write_bytes(np.random.default_rng(1).bytes(3000))
    (folder / "empty.nii.gz").write_bytes(b"")
    (folder / "folder").mkdir()


def _not_one_grey_volume(folder, fixed):
    nifti(np.stack([fixed, fixed]), folder / "time.nii.gz")
    save(np.stack([fixed.astype(np.uint8)] * 3, axis=-1), folder / "colour.nrrd", vector=True)
    nifti(fixed.astype(np.complex64), folder / "complex.nii.gz")
    holes = fixed.copy()
    holes[3, 3, 3], holes[4, 4, 4] = np.nan, np.inf
    save(holes, folder / "holes.nii.gz")
    save(fixed * np.nan, folder / "nan.nii.gz")
    save(fixed * 0 + 7, folder / "flat.nii.gz")


def _bad_geometry(folder, fixed, moving):
    save(fixed[:1], folder / "slice.nii.gz")
    save(fixed[:1, :1, :1], folder / "dot.nii.gz")
    save(fixed[:3], folder / "thin.nii.gz")
    nifti(fixed, folder / "zero.nii")
    content = bytearray((folder / "zero.nii").read_bytes())
    content[42:44] = b"\0\0"  # the first axis of the header has no voxel
    (folder / "zero.nii").write_bytes(content)
    sheared = np.diag([-2.0, -2, 2, 1])
    sheared[0, 1] = 0.8
    nifti(moving, folder / "sheared.nii.gz", sheared)
    singular = nib.Nifti1Image(fixed.T, None)
    singular.header["sform_code"] = 1
    singular.header["srow_x"], singular.header["srow_y"] = [2, 0, 0, 0], [0, 2, 0, 0]
    nib.save(singular, folder / "singular.nii.gz")
    save(moving, folder / "far.nii.gz", origin=(5000, 0, 0))


def _masks_and_labels(folder, fixed, moving):
    mask = (fixed > 20).astype(np.uint8)
    save(mask, folder / "mask.nii.gz")
    save(mask * 0, folder / "nothing.nii.gz")
    save(mask[::2, ::2, ::2].copy(), folder / "coarse.nii.gz", spacing=(4, 4, 4))
    save(mask, folder / "elsewhere.nii.gz", origin=(3000, 0, 0))
    save(mask * 0 + 1, folder / "everything.nii.gz")
    save(mask[7], folder / "flat_mask.nii.gz")
    save((moving > 20).astype(np.uint8), folder / "moving_mask.nii.gz")
    save((moving > 20).astype(np.uint8) * 5, folder / "label5.nii.gz")


def run(given, tmp_path, words, *, fixed="fixed.nii.gz", moving="moving.nii.gz"):
    """Exit status of `register`; words with a dot name files of the folder `given`."""
    words = [str(given / word) if (given / word).exists() else word for word in words]
    start = [] if "--init" in words else ["--init", "identity"]
    return main(
        [
            "register",
            str(given / fixed),
            str(given / moving),
            "-o",
            str(tmp_path / "out"),
            *QUICK,
            *start,
            *words,
        ]
    )


def refused(capsys, tmp_path, *, before=()):
    """The one sentence on the error stream, after which the folder is as it was."""
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("diffeoreg: ")]
    assert len(said) == 1
    assert sorted(path.name for path in tmp_path.rglob("*")) == sorted(before)
    assert "Traceback" not in said[0]
    assert "Unexpected" not in said[0]
    assert said[0].endswith((".", "?"))
    return said[0]


@pytest.mark.parametrize("side", ["fixed", "moving"])
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("none.nii.gz", "There is no file"),
        ("cut.nii.gz", "damaged, cut short"),
        ("cut.mha", "damaged, cut short"),
        ("noise.nii.gz", "damaged, cut short"),
        ("empty.nii.gz", "is empty"),
        ("folder", "no DICOM images"),
        ("three.csv", "does not read"),
        ("time.nii.gz", "several volumes"),
        ("colour.nrrd", "3 values per voxel"),
        ("complex.nii.gz", "complex numbers"),
        ("nan.nii.gz", "no finite value"),
        ("flat.nii.gz", "the same value (7) everywhere"),
        ("slice.nii.gz", "2D"),
        ("dot.nii.gz", "at least two axes"),
        ("thin.nii.gz", "too thin"),
        ("zero.nii", "axis without voxels"),
        ("singular.nii.gz", "singular"),
        ("far.nii.gz", "share only 0.0 %"),
    ],
)
def test_images_that_cannot_be_registered(given, tmp_path, capsys, side, name, said):
    assert run(given, tmp_path, [], **{side: name}) == BAD_INPUT
    assert said in refused(capsys, tmp_path)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--fixed-mask", "nothing.nii.gz"], "is empty"),
        (["--fixed-mask", "elsewhere.nii.gz"], "does not touch"),
        (["--fixed-mask", "flat_mask.nii.gz"], "is 2D but"),
        (["--fixed-mask", "fixed.nii.gz"], "no label map"),
        (["--fixed-mask", "everything.nii.gz", "--exclude-fixed-mask"], "excludes all"),
        (["--moving-seg", "fixed.nii.gz"], "no label map"),
        (["--moving-seg", "flat_mask.nii.gz"], "is 2D, its image 3D"),
        (["--moving-seg", "label5.nii.gz", "--fixed-seg", "mask.nii.gz"], "no label number in common"),
        (["--moving-seg", "nothing.nii.gz", "--fixed-seg", "mask.nii.gz"], "is empty"),
        (["--moving-seg", "mask.nii.gz", "--fixed-seg", "flat_mask.nii.gz"], "is 2D, its image 3D"),
        (
            ["--guidance-moving-seg", "label5.nii.gz", "--guidance-fixed-seg", "mask.nii.gz"],
            "no label number in common",
        ),
        (["--landmarks", "three.csv", "two.csv"], "has 3"),
        (["--landmarks", "three.csv", "away.csv"], "lie outside"),
        (["--landmarks", "three.csv", "moving.nii.gz"], "no point file"),
        (["--init", "none.h5"], "no transform file"),
        (["--init", "foreign.h5"], "could not be read as a transform"),
        (["--init", "foreign.tfm"], "could not be read as a transform"),
        (["--init", "moving.nii.gz"], "no displacement field"),
        (["--method", "sfv"], "Did you mean 'svf'? Known: affine"),
        (["--preset", "brainmr"], "Did you mean 'brain-mr'? Known: abdomen"),
        (["--steps", "0"], "whole number from 1 up"),
        (["--steps", "-3"], "whole number from 1 up"),
    ],
)
def test_other_input_that_cannot_be_used(given, tmp_path, capsys, flags, said):
    assert run(given, tmp_path, flags) == BAD_INPUT
    assert said in refused(capsys, tmp_path)


@pytest.mark.parametrize(
    ("flags", "moving", "said"),
    [
        ([], "holes.nii.gz", "2 voxels of the moving image 'holes' are NaN or infinite"),
        ([], "sheared.nii.gz", "not at right angles"),
        ([], "fixed.nii.gz", "the same image"),
        (
            ["--fixed-mask", "coarse.nii.gz"],
            "moving.nii.gz",
            "another geometry than 'fixed'; it was resampled",
        ),
        (
            ["--fixed-mask", "elsewhere.nii.gz", "--exclude-fixed-mask"],
            "moving.nii.gz",
            "it excludes nothing",
        ),
        (["--init", "geometry"], "far.nii.gz", "centres of the fields of view"),
    ],
)
def test_odd_input_is_used_and_mentioned(given, tmp_path, flags, moving, said):
    assert run(given, tmp_path, flags, moving=moving) == OK
    notes = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))["notes"]
    assert any(said in note for note in notes), notes


def test_an_earlier_result_is_a_start_and_no_image(given, tmp_path, capsys):
    assert run(given, tmp_path, []) == OK
    (tmp_path / "out").rename(given / "earlier")
    earlier = str(given / "earlier" / "transform.h5")
    capsys.readouterr()
    assert run(given, tmp_path, [], moving="earlier/transform.h5") == BAD_INPUT
    assert "does not read" in refused(capsys, tmp_path)
    assert run(given, tmp_path, ["--init", earlier, "--moving-mask", "moving_mask.nii.gz"]) == OK
    notes = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))["notes"]
    assert "Initial alignment: the given non-linear transform, as it is." in notes


def test_apply_with_swapped_arguments(given, tmp_path, capsys):
    fixed, moving, mask = (str(given / name) for name in ("fixed.nii.gz", "moving.nii.gz", "mask.nii.gz"))
    assert main(["apply", moving, mask, "--like", fixed, "-o", str(tmp_path / "o.nii.gz")]) == BAD_INPUT
    assert "no displacement field" in refused(capsys, tmp_path)


def test_evaluate_label_maps_of_different_things(given, tmp_path, capsys):
    words = [
        "evaluate",
        "--fixed-seg",
        str(given / "mask.nii.gz"),
        "--moved-seg",
        str(given / "label5.nii.gz"),
    ]
    assert main(words) == BAD_INPUT
    assert "no label number in common" in refused(capsys, tmp_path)


def test_apply_to_an_image_with_holes_fills_with_a_number(given, tmp_path):
    sitk.WriteTransform(sitk.TranslationTransform(3, (500.0, 0.0, 0.0)), str(tmp_path / "away.tfm"))
    moving, like, out = given / "holes.nii.gz", given / "fixed.nii.gz", tmp_path / "o.nii.gz"
    assert main(["apply", str(tmp_path / "away.tfm"), str(moving), "--like", str(like), "-o", str(out)]) == OK
    assert np.isfinite(sitk.GetArrayFromImage(sitk.ReadImage(str(out)))).all()


def test_too_little_memory(given, tmp_path, capsys):
    assert run(given, tmp_path, ["--memory-limit-gb", "0.001"]) == NO_MEMORY
    assert "takes at least 0.4 GB of memory, and 0.001 GB may be used" in refused(capsys, tmp_path)


def test_existing_results_are_kept(given, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "transform.h5").write_text("precious", encoding="utf-8")
    assert run(given, tmp_path, []) == BAD_OUTPUT
    assert "--overwrite" in refused(capsys, tmp_path, before=["out", "transform.h5"])
    assert (tmp_path / "out" / "transform.h5").read_text(encoding="utf-8") == "precious"


@pytest.mark.parametrize(
    ("code", "said"), [(errno.EROFS, "Read-only file system"), (errno.ENOSPC, "No space left on device")]
)
def test_read_only_and_full_folders(given, tmp_path, capsys, monkeypatch, code, said):
    def fails(*_, **__):
        raise OSError(code, said)

    target = "pathlib.Path.mkdir" if code == errno.EROFS else "DiffeoRegLib.outputs.write_volume"
    monkeypatch.setattr(target, fails)
    assert run(given, tmp_path, []) == BAD_OUTPUT
    monkeypatch.undo()
    assert said in refused(capsys, tmp_path)


@pytest.mark.parametrize(
    "phase",
    ["reading", "align", "prepare", "predict", "refine", "integrate", "resample", "measure", "writing"],
)
def test_ctrl_c_in_every_phase_leaves_nothing(given, tmp_path, capsys, monkeypatch, phase):
    seen = []

    def progress(self, name, fraction, message):
        seen.append(name)
        if name == phase:
            raise KeyboardInterrupt

    monkeypatch.setattr(PlainConsole, "progress", progress)
    assert run(given, tmp_path, []) == CANCELLED
    assert seen[-1] == phase
    assert refused(capsys, tmp_path) == "diffeoreg: Cancelled; nothing was written."
