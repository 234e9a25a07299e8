"""The command as a user runs it: shipped images in, files out, read by another program."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import SimpleITK as sitk

from DiffeoRegLib.cli import main


@pytest.fixture(scope="module")
def finished(samples, tmp_path_factory):
    """Folder of one real registration of the shipped hippocampus pair."""
    out = tmp_path_factory.mktemp("run") / "out"
    images, labels = samples / "hippocampus" / "images", samples / "hippocampus" / "labels"
    fixed, moving = "hippocampus_006.nii.gz", "hippocampus_138.nii.gz"
    status = main(
        ["register", str(images / fixed), str(images / moving), "-o", str(out), "--effort", "fast", "--quiet",
         "--fixed-seg", str(labels / fixed), "--moving-seg", str(labels / moving), "--device", "cpu"]
    )  # fmt: skip
    assert status == 0
    return out, images / fixed, images / moving, labels / fixed


def test_every_file_is_there(finished):
    names = {path.name for path in finished[0].iterdir()}
    expected = {
        "transform.h5",
        "inverse.h5",
        "moved.nii.gz",
        "moved_seg.nii.gz",
        "report.json",
        "report.html",
    }
    assert names == expected
    assert finished[0].parent.joinpath("out").is_dir()
    assert len(list(finished[0].parent.iterdir())) == 1


def test_the_report_proves_the_result(finished):
    report = json.loads((finished[0] / "report.json").read_text(encoding="utf-8"))
    labels = report["labels"]["mean"]
    assert labels["final"]["dice"] > labels["initial"]["dice"]
    assert labels["final"]["dice"] > 0.6
    assert report["folds"]["folded_percent"] == 0
    assert (
        report["inverse_consistency_mm"]["mean"] < 0.1
    )  # a tenth of a voxel: `fast` works on a coarse field
    assert report["similarity"]["final"]["lncc"] > report["similarity"]["initial"]["lncc"]
    assert report["transform"]["transform_stored_error_mm"] < 0.05
    assert report["citations"]
    assert "hippocampus_138" in (finished[0] / "report.html").read_text(encoding="utf-8")


def test_another_program_resamples_the_same_image(finished):
    out, fixed_file, moving_file, _ = finished
    fixed, moving = sitk.ReadImage(str(fixed_file)), sitk.ReadImage(str(moving_file), sitk.sitkFloat32)
    transform = sitk.ReadTransform(str(out / "transform.h5"))
    theirs = sitk.GetArrayFromImage(sitk.Resample(moving, fixed, transform, sitk.sitkLinear, 0.0))
    ours = sitk.GetArrayFromImage(sitk.ReadImage(str(out / "moved.nii.gz")))
    inside = (
        sitk.GetArrayFromImage(sitk.Resample(moving * 0 + 1, fixed, transform, sitk.sitkLinear, 0.0)) > 0.999
    )
    difference = np.abs(theirs - ours)[inside] / np.ptp(ours)
    assert inside.mean() > 0.3
    # The field is stored to 0.01 mm: a hundredth of a voxel of a sharp edge.
    assert np.percentile(difference, 99.9) < 5e-3


def test_apply_repeats_the_moved_image(finished, tmp_path):
    out, fixed, moving, _ = finished
    words = ["apply", out / "transform.h5", moving, "--like", fixed, "-o", tmp_path / "again.nii.gz"]
    assert main([str(word) for word in words]) == 0
    ours, again = (
        sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
        for path in (out / "moved.nii.gz", tmp_path / "again.nii.gz")
    )
    assert np.percentile(np.abs(ours - again), 99) < 5e-3 * np.ptp(ours)


def test_evaluate_repeats_the_dice(finished, capsys):
    out, _, _, fixed_seg = finished
    words = ["evaluate", "--fixed-seg", fixed_seg, "--moved-seg", out / "moved_seg.nii.gz", "--json"]
    capsys.readouterr()
    assert main([str(word) for word in words]) == 0
    found = json.loads(capsys.readouterr().out)["labels"]["mean"]["final"]["dice"]
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert found == pytest.approx(report["labels"]["mean"]["final"]["dice"], abs=1e-4)


def test_two_slices_through_the_module_with_json(samples, tmp_path, repository):
    slices = samples / "brain_slices"
    words = [
        sys.executable,
        "-m",
        "DiffeoRegLib",
        "register",
        slices / "oasis2d_0001.nrrd",
        slices / "oasis2d_0010.nrrd",
    ]
    words += ["-o", tmp_path / "out", "--effort", "fast", "--json", "--init", "identity", "--device", "cpu"]
    done = subprocess.run(
        [str(word) for word in words],
        cwd=repository,
        capture_output=True,
        encoding="utf-8",
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert events[-1]["event"] == "result"
    fractions = [event["fraction"] for event in events if event["event"] == "progress"]
    assert fractions == sorted(fractions)
    assert len(fractions) > 5
    similarity = events[-1]["report"]["similarity"]
    assert similarity["final"]["lncc"] > similarity["initial"]["lncc"]
    assert (tmp_path / "out" / "report.html").is_file()
