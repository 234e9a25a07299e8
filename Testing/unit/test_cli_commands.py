"""`diffeoreg apply`, `evaluate`, `methods`, `device`."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from DiffeoRegLib.catalog import CARDS, Measured
from DiffeoRegLib.volumes.files import read_points, read_volume, write_volume
from DiffeoRegLib.volumes.resample import warp_volume
from DiffeoRegLib.volumes.transform_files import read_transform, write_transform
from Testing.command import one_sentence, run
from Testing.fake_run import transforms
from Testing.model_cases import LICENCE, NAME, model_card, weight_file, write_weights

# ---------------------------------------------------------------- apply, evaluate, methods, device


def test_apply_an_image(pair_files, tmp_path, capsys):
    words = [
        "apply",
        pair_files / "transform.h5",
        pair_files / "moving.nii.gz",
        "--like",
        pair_files / "fixed.nii.gz",
    ]
    assert run(*words, "-o", tmp_path / "moved.nrrd") == 0
    moving, fixed = read_volume(pair_files / "moving.nii.gz"), read_volume(pair_files / "fixed.nii.gz")
    expected = warp_volume(moving, read_transform(pair_files / "transform.h5"), fixed.grid)
    moved = read_volume(tmp_path / "moved.nrrd")
    assert moved.grid.same_as(fixed.grid)
    assert torch.allclose(moved.data, expected.data, atol=1e-4)
    assert "16 x 14 x 12" in capsys.readouterr().out
    assert run(*words, "-o", tmp_path / "moved.nrrd", "--quiet") == 3
    assert run(*words, "-o", tmp_path / "moved.nrrd", "--overwrite", "--interpolation", "cubic") == 0
    assert not torch.allclose(read_volume(tmp_path / "moved.nrrd").data, expected.data, atol=1e-2)


def test_apply_fills_with_the_darkest_value(pair_files, tmp_path):
    fixed = read_volume(pair_files / "fixed.nii.gz")
    dark = type(fixed)(fixed.data - 1000, fixed.grid, "ct")
    write_volume(dark, tmp_path / "ct.nii.gz")
    shift = np.eye(4)
    shift[0, 3] = 500
    write_transform(type(transforms(fixed.grid)[2])(shift), tmp_path / "away.tfm")
    words = ["apply", tmp_path / "away.tfm", tmp_path / "ct.nii.gz", "--like", pair_files / "fixed.nii.gz"]
    assert run(*words, "-o", tmp_path / "o.nii.gz") == 0
    assert read_volume(tmp_path / "o.nii.gz").data.unique().tolist() == [float(dark.data.min())]


@pytest.mark.parametrize("flag", ["--labels", "--smooth-labels"])
def test_apply_labels_makes_up_no_value(flag, pair_files, tmp_path):
    words = [
        "apply",
        pair_files / "transform.h5",
        pair_files / "moving_seg.nii.gz",
        "--like",
        pair_files / "fixed.nii.gz",
        flag,
    ]
    assert run(*words, "-o", tmp_path / "seg.nii.gz") == 0
    assert set(read_volume(tmp_path / "seg.nii.gz", labels=True).data.unique().tolist()) == {0, 1, 2}


def test_apply_points_both_ways(pair_files, tmp_path):
    assert (
        run("apply", pair_files / "transform.h5", pair_files / "moving.fcsv", "-o", tmp_path / "back.csv")
        == 0
    )
    assert np.allclose(read_points(tmp_path / "back.csv"), read_points(pair_files / "fixed.csv"), atol=1e-3)
    words = [
        "apply",
        pair_files / "transform.h5",
        pair_files / "fixed.csv",
        "--inverse",
        "-o",
        tmp_path / "there.csv",
    ]
    assert run(*words) == 0
    assert np.allclose(
        read_points(tmp_path / "there.csv"), read_points(pair_files / "moving.fcsv"), atol=1e-3
    )


def test_apply_the_inverse_to_an_image(pair_files, tmp_path):
    words = [
        "apply",
        pair_files / "transform.h5",
        pair_files / "fixed.nii.gz",
        "--like",
        pair_files / "moving.nii.gz",
        "--inverse",
    ]
    assert run(*words, "-o", tmp_path / "o.nii.gz") == 0
    found, moving = read_volume(tmp_path / "o.nii.gz").data, read_volume(pair_files / "moving.nii.gz").data
    assert np.corrcoef(found.flatten(), moving.flatten())[0, 1] > 0.99


def test_apply_refuses(pair_files, tmp_path, capsys):
    volume = ["apply", pair_files / "transform.h5", pair_files / "moving.nii.gz"]
    out = ["-o", tmp_path / "o.nii.gz", "--quiet"]
    like = ["--like", pair_files / "fixed.nii.gz"]
    for words, status, said in (
        ([*volume, *out], 2, "--like"),
        ([*volume, *like, "--interpolation", "sinc", *out], 2, "cubic, linear"),
        (["apply", pair_files / "none.h5", pair_files / "moving.nii.gz", *like, *out], 2, "none.h5"),
        (["apply", pair_files / "transform.h5", pair_files / "none.nii.gz", *like, *out], 2, "none.nii.gz"),
        ([*volume, *like, "-o", tmp_path / "no" / "o.nii.gz"], 3, "no folder"),
        ([*volume, *like, "-o", tmp_path / "o.docx"], 3, ".nii.gz"),
    ):
        assert run(*words) == status
        assert said in one_sentence(capsys)
    assert list(tmp_path.iterdir()) == []


def test_evaluate_a_transform(pair_files, capsys):
    words = ["evaluate", "--transform", pair_files / "transform.h5", "--inverse", pair_files / "inverse.h5"]
    words += ["--fixed", pair_files / "fixed.nii.gz", "--moving", pair_files / "moving.nii.gz"]
    words += [
        "--fixed-seg",
        pair_files / "fixed_seg.nii.gz",
        "--moving-seg",
        pair_files / "moving_seg.nii.gz",
    ]
    words += ["--landmarks", pair_files / "fixed.csv", pair_files / "moving.fcsv"]
    assert run(*words, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["labels"]["mean"]["final"]["dice"] > 0.85
    assert found["landmarks"]["final"]["max"] < 1e-3
    assert found["folds"]["folded_percent"] == 0
    assert found["inverse_consistency_mm"]["mean"] < 0.05
    assert found["similarity"]["final"]["ncc"] > 0.99
    assert run(*words) == 0
    text = capsys.readouterr().out
    for word in ("label 2", "Landmark error", "Folded cells", "Inverse consistency"):
        assert word in text


def test_evaluate_label_maps_that_are_moved_already(pair_files, capsys):
    seg = pair_files / "fixed_seg.nii.gz"
    assert run("evaluate", "--fixed-seg", seg, "--moved-seg", seg, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["labels"]["per_label"]["1"]["final"] == {"dice": 1.0, "hd95_mm": 0.0}


def test_evaluate_needs_something_to_measure(pair_files, capsys):
    assert run("evaluate") == 2
    assert "nothing to measure" in one_sentence(capsys)
    assert run("evaluate", "--moved-seg", pair_files / "fixed_seg.nii.gz") == 2
    assert "--fixed-seg" in one_sentence(capsys)
    assert (
        run("evaluate", "--transform", pair_files / "transform.h5", "--inverse", pair_files / "inverse.h5")
        == 2
    )
    assert "--fixed" in one_sentence(capsys)


def test_methods_lists_the_catalogue(capsys):
    assert run("methods") == 0
    text = capsys.readouterr().out
    assert "svf" in text
    assert "lung-ct" in text
    assert run("methods", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert {"affine", "svf"} <= {method["name"] for method in found["methods"]}


@pytest.mark.parametrize("measured", [None, Measured(12.34, 2900.4, 614_400, 2, "an EPYC")])
def test_methods_says_what_a_trained_model_asks_for(capsys, monkeypatch, tmp_path, measured):
    weights = weight_file(write_weights(tmp_path / "invented.safetensors"))
    monkeypatch.setitem(CARDS, NAME, model_card(weights, measured=measured, spacing_mm=(2.0, 2.0, 1.5)))
    assert run("methods") == 0
    text = " ".join(capsys.readouterr().out.split())
    size = f"{weights.size_bytes / 1e6:.3g} MB"
    assert f"{NAME} Invented model, version 1. For tests." in text
    assert f"invented.safetensors, {size}, {LICENCE}; needs --accept-licence {LICENCE}; comes with" in text
    assert "on Ten spheres (CC0-1.0)" in text
    assert "T1 MR, brain; works at voxels of 2 x 2 x 1.5 mm" in text
    cost = "12.3 s and 2900 MB for 0.614 million voxels, both directions, 2 cores of an EPYC"
    assert (cost if measured else "cost not measured") in text
    assert run("methods", "--json") == 0
    found = {method["name"]: method for method in json.loads(capsys.readouterr().out)["methods"]}
    assert found[NAME]["weights"][0]["licence"] == LICENCE
    assert found[NAME]["measured"] == (measured and vars(measured))
    assert found[NAME]["method"] == "sitreg"


def test_register_says_what_is_wrong_with_the_weights_before_it_reads(capsys, monkeypatch, tmp_path):
    path = write_weights(tmp_path / "invented.safetensors")
    monkeypatch.setattr("DiffeoRegLib.catalog.SHIPPED_WEIGHTS", tmp_path)
    monkeypatch.setitem(CARDS, NAME, model_card(weight_file(path)))
    words = ["register", "none.nii.gz", "none.nii.gz", "-o", tmp_path / "out", "--quiet"]
    for more, said in (
        (["--method", NAME], f"--accept-licence {LICENCE}"),
        (["--method", NAME, "--accept-licence", "MIT"], f"--accept-licence {LICENCE}"),
        (["--method", NAME, "--accept-licence", LICENCE, "--accept-licence", "MIT"], "none.nii.gz"),
        (["--method", "sitreg"], "--weights FILE"),
        (["--method", "sitreg", "--weights", path], f"--accept-licence {LICENCE}"),
        (["--method", "sitreg", "--weights", path, "--accept-licence", LICENCE], "none.nii.gz"),
        (["--method", "sitreg", "--weights", tmp_path / "other"], "other' cannot be read"),
        (["--weights", path], "'svf' is no trained method"),
    ):
        assert run(*words, *more) == 2
        assert said in one_sentence(capsys)


def test_device_says_why(capsys):
    assert run("device", "--device", "cpu") == 0
    assert "why" in capsys.readouterr().out
    assert run("device", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["why"]
    assert found["memory_free_gib"] > 0
