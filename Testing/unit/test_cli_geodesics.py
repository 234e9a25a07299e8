"""Regions and kernels on the command line, the geodesic among the results, and `diffeoreg shoot`."""

from __future__ import annotations

import dataclasses
import json
import sys

import numpy as np
import pytest
import SimpleITK as sitk

from DiffeoRegLib.cli import commands
from DiffeoRegLib.geodesic_files import read_geodesics, reshoot, write_geodesics
from DiffeoRegLib.methods.base import Motion
from DiffeoRegLib.space.transform import AffineTransform
from DiffeoRegLib.volumes.files import read_volume
from DiffeoRegLib.volumes.transform_files import read_transform
from DiffeoRegLib.volumes.volume import Volume
from Testing.command import RESULTS, one_sentence, register_words, run
from Testing.fake_run import fake_result, transforms
from Testing.geodesic_cases import chained, regional_kernel
from Testing.scenes import points_of

GEODESIC = {"geodesic.safetensors", "sigma_moving.nii.gz", "sigma_fixed.nii.gz"}


@pytest.fixture(scope="module")
def chain():
    return chained()


@pytest.fixture(scope="module")
def kept(chain, tmp_path_factory):
    """A file of geodesics."""
    path = tmp_path_factory.mktemp("kept") / "geodesic.safetensors"
    write_geodesics(path, chain)
    return path


def bent(chain, count=37):
    """Points within reach of the fixed image."""
    return points_of(chain.cover)[::count]


# ---------------------------------------------------------------- register: kernels and regions


def test_kernels_reach_the_registration(pair_files, tmp_path, registrations):
    words = [
        "--method",
        "rdmm",
        "--kernel-sigmas",
        "0.1,0.2",
        "--kernel-weights",
        "1,3",
        "--kernel-units",
        "mm",
    ]
    words += ["--preweight-sigma", 4, "--kinetic", 2.5, "--integrator", "dopri5", "--quiet", "--no-html"]
    assert run(*register_words(pair_files, tmp_path / "o", *words)) == 0
    settings = registrations[0]["settings"]
    assert (settings.kernel_sigmas, settings.kernel_weights, settings.kernel_units) == (
        (0.1, 0.2),
        (1, 3),
        "mm",
    )
    assert (settings.preweight_sigma, settings.kinetic, settings.integrator) == (4.0, 2.5, "dopri5")
    assert registrations[0]["regions"] is None


def test_regions_reach_the_registration(pair_files, tmp_path, registrations):
    words = [
        "--method",
        "rdmm-regions",
        "--regions",
        pair_files / "moving_seg.nii.gz",
        "--stiffness",
        "1=soft",
    ]
    words += ["--stiffness", "2=0.1, 0.4,0.5,0", "--quiet", "--no-html"]
    assert run(*register_words(pair_files, tmp_path / "a", *words)) == 0
    assert run(*register_words(pair_files, tmp_path / "b", *words, "--rest", "normal")) == 0
    first, second = (call["regions"] for call in registrations)
    assert first.labels.is_labels
    assert first.stiffness == {1: "soft", 2: (0.1, 0.4, 0.5, 0.0)}
    assert (first.rest, second.rest) == ("rigid-like", "normal")


REGIONAL = ["--method", "rdmm-regions", "--regions", "moving_seg.nii.gz"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--stiffness", "1=soft"], "--regions FILE"),
        (["--rest", "soft"], "--regions FILE"),
        (["--regions", "moving_seg.nii.gz", "--stiffness", "1=soft"], "no use of --regions"),
        (["--method", "rdmm-regions"], "needs --regions"),
        (REGIONAL, "--stiffness LABEL=STIFFNESS"),
        ([*REGIONAL, "--stiffness", "1=soft", "--stiffness", "1=stiff"], "twice for the label 1"),
        ([*REGIONAL, "--stiffness", "soft"], "LABEL=STIFFNESS, as in 3=soft"),
        ([*REGIONAL, "--stiffness", "a=soft"], "LABEL=STIFFNESS, as in 3=soft"),
        ([*REGIONAL, "--stiffness", "1.5=soft"], "LABEL=STIFFNESS, as in 3=soft"),
        ([*REGIONAL, "--stiffness", "1=softer"], "Did you mean 'soft'"),
        ([*REGIONAL, "--stiffness", "1=0,0,0,0"], "not all 0"),
        ([*REGIONAL, "--stiffness", "1=0.5,-0.5,1,0"], "none of them negative"),
        ([*REGIONAL, "--stiffness", "1=soft", "--rest", "hard"], "rigid-like"),
        (["--method", "rdmm-regions", "--regions", "none.nii.gz", "--stiffness", "1=soft"], "none.nii.gz"),
        (["--kernel-sigmas", "0.1,-0.2"], "widths greater than 0"),
        (["--kernel-sigmas", "0.1,a"], "numbers like"),
        (["--kernel-sigmas", "0.1,0.2", "--kernel-weights", "0,0"], "not all 0"),
        (["--kernel-sigmas", "0.1,0.2", "--kernel-weights", "1"], "2 kernels"),
        (["--kernel-units", "cm", "--kernel-sigmas", "1"], "box, mm"),
        (["--kinetic", "-1"], "kinetic"),
        (["--preweight-sigma", "0"], "preweight_sigma"),
        (["--integrator", "euler"], "dopri5, rk4"),
    ],
)
def test_bad_flags(flags, said, pair_files, tmp_path, registrations, capsys):
    words = [pair_files / word if word == "moving_seg.nii.gz" else word for word in flags]
    assert run(*register_words(pair_files, tmp_path / "out", "--quiet", *words)) == 2
    assert said in one_sentence(capsys)
    assert not (tmp_path / "out").exists()
    assert registrations == []


def test_a_table_of_pairs_has_no_regions(pair_files, tmp_path, capsys):
    (tmp_path / "pairs.csv").write_text("fixed,moving\n", encoding="utf-8")
    words = ["evaluate", "--pairs", tmp_path / "pairs.csv", "--method", "rdmm-regions", "-o", tmp_path / "o"]
    assert run(*words, "--quiet") == 2
    assert "names no regions" in one_sentence(capsys)


# ---------------------------------------------------------------- register: files


@pytest.fixture
def shot_register(monkeypatch):
    """A registration whose motion is a geodesic; its linear start is given or what the fake one has."""

    def register(fixed, moving, settings, **others):
        found = fake_result(fixed, moving, settings=settings)
        motion, sigma = Motion.of(regional_kernel(fixed.grid, 1.0)), fixed.data * 0 + 7
        widths = Volume(moving.data * 0 + 5, moving.grid, "sigma"), Volume(sigma, fixed.grid, "sigma")
        initial = others["initial"] or found.initial
        return dataclasses.replace(found, motion=motion, sigma=widths, working=fixed.grid, initial=initial)

    monkeypatch.setattr(commands.pipeline, "register", register)


def test_the_geodesic_and_the_widths_are_written(pair_files, tmp_path, shot_register, capsys):
    out, words = tmp_path / "out", ["--method", "rdmm", "--taper-mm", 3]
    assert run(*register_words(pair_files, out, *words, "--json")) == 0
    assert {path.name for path in out.iterdir()} == RESULTS | GEODESIC
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {"geodesic", "sigma_moving", "sigma_fixed"} <= set(result["files"])
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    size = (out / "geodesic.safetensors").stat().st_size
    assert report["transform"]["geodesic_mb"] == pytest.approx(size / 2**20)
    saved = read_geodesics(out / "geodesic.safetensors")
    fixed, moving = (read_volume(pair_files / f"{name}.nii.gz") for name in ("fixed", "moving"))
    assert saved.taper_mm == 3
    assert saved.cover.same_as(fixed.grid)
    np.testing.assert_array_equal(saved.moving_from_fixed, transforms(fixed.grid)[2].moving_from_fixed)
    for name, image, width in (("moving", moving, 5), ("fixed", fixed, 7)):
        sigma = read_volume(out / f"sigma_{name}.nii.gz")
        assert sigma.grid.same_as(image.grid)
        assert sigma.data.unique().tolist() == [width]


def test_a_bent_start_keeps_no_geodesic_and_says_so(pair_files, tmp_path, shot_register, capsys):
    out = tmp_path / "out"
    words = ["--method", "rdmm", "--init", pair_files / "transform.h5", "--no-html"]
    assert run(*register_words(pair_files, out, *words)) == 0
    assert not (out / "geodesic.safetensors").exists()
    assert (out / "sigma_fixed.nii.gz").exists()
    assert "non-linear transform" in capsys.readouterr().err
    notes = json.loads((out / "report.json").read_text(encoding="utf-8"))["notes"]
    assert "non-linear transform" in notes[-1]


def test_an_older_geodesic_does_not_stay_beside_new_results(pair_files, tmp_path, registrations, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "geodesic.safetensors").write_text("old", encoding="utf-8")
    assert run(*register_words(pair_files, out, "--quiet", "--no-html")) == 3
    assert "geodesic.safetensors" in one_sentence(capsys)
    assert run(*register_words(pair_files, out, "--quiet", "--no-html", "--overwrite")) == 0
    assert not (out / "geodesic.safetensors").exists()


def test_a_missing_package_is_found_before_the_work(pair_files, tmp_path, registrations, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    assert run(*register_words(pair_files, tmp_path / "out", "--quiet", "--method", "lddmm")) == 3
    assert "pip install safetensors" in one_sentence(capsys)
    assert registrations == []


# ---------------------------------------------------------------- shoot


def test_shoot_writes_the_transform_and_its_inverse(chain, kept, tmp_path, capsys):
    words = ["shoot", kept, "-o", tmp_path / "t.h5", "--inverse-output", tmp_path / "i.h5"]
    assert run(*words) == 0
    assert "6 of rk4; 7 of rk4" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"t.h5", "i.h5"}
    for name, exact in zip(("t.h5", "i.h5"), reshoot(chain), strict=True):
        written = read_transform(tmp_path / name)
        apart = np.linalg.norm(written.map_points(bent(chain)) - exact.map_points(bent(chain)), axis=1)
        assert apart.max() < 0.02
    point = chain.cover.center_mm
    there = sitk.ReadTransform(str(tmp_path / "t.h5")).TransformPoint((point * [-1, -1, 1]).tolist())
    np.testing.assert_allclose(
        np.array(there) * [-1, -1, 1], reshoot(chain)[0].map_points(point[None])[0], atol=0.02
    )


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd", ".mha", ".hdf5"])
def test_shoot_writes_every_format(suffix, chain, kept, tmp_path):
    files = [tmp_path / f"{name}{suffix}" for name in ("t", "i")]
    assert run("shoot", kept, "-o", files[0], "--inverse-output", files[1], "--time", 0.5, "--quiet") == 0
    exact, inverse = reshoot(chain, 0.5)
    points = chain.cover.world_from_index(np.array([[9.0, 9, 9], [10, 12, 14], [12, 15, 16]]))
    for file, way, start in zip(files, (exact, inverse), (points, exact.map_points(points)), strict=True):
        written = read_transform(file)
        assert np.linalg.norm(written.map_points(start) - way.map_points(start), axis=1).max() < 0.1


def test_a_series_gives_numbered_files(chain, kept, tmp_path, capsys):
    words = ["shoot", kept, "-o", tmp_path / "way.h5", "--inverse-output", tmp_path / "back.nii.gz"]
    assert run(*words, "--times", "0,0.5,1", "--json") == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    names = {
        f"{name}_{n:03d}{suffix}" for n in range(3) for name, suffix in (("way", ".h5"), ("back", ".nii.gz"))
    }
    assert {path.name for path in tmp_path.iterdir()} == names
    assert found["files"]["transform_001"] == str(tmp_path / "way_001.h5")
    assert found["files"]["inverse_002"] == str(tmp_path / "back_002.nii.gz")
    assert (found["times"], found["steps"]) == ([0.0, 0.5, 1.0], [6, 7])
    moved = [read_transform(tmp_path / f"way_{n:03d}.h5").map_points(bent(chain)) for n in range(3)]
    np.testing.assert_allclose(moved[0], bent(chain), atol=1e-4)
    for at, time in ((1, 0.5), (2, 1.0)):
        np.testing.assert_allclose(moved[at], reshoot(chain, time)[0].map_points(bent(chain)), atol=0.02)


def test_other_steps_are_taken(chain, kept, tmp_path, capsys):
    assert run("shoot", kept, "-o", tmp_path / "fine.h5", "--steps", 12) == 0
    assert "12 of rk4; 12 of rk4" in capsys.readouterr().out
    fine = read_transform(tmp_path / "fine.h5").map_points(bent(chain))
    assert 0 < np.abs(fine - reshoot(chain)[0].map_points(bent(chain))).max() < 0.1


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["--time", "1.5"], 2, "time 0 to time 1"),
        (["--time", "-0.5"], 2, "time 0 to time 1"),
        (["--time", "nan"], 2, "time 0 to time 1"),
        (["--time", "half"], 2, "--time"),
        (["--times", "0,2"], 2, "time 0 to time 1"),
        (["--times", "0,0.5,0.5"], 2, "twice"),
        (["--times", "0,1", "--time", "1"], 2, "not allowed"),
        (["--steps", "0"], 2, "whole number"),
        (["--steps", "few"], 2, "--steps"),
        (["--inverse-output", "t.h5"], 2, "names of their own"),
        (["--inverse-output", "i.tfm"], 3, "i.tfm"),
        (["--inverse-output", "nowhere/i.h5"], 3, "no folder"),
        (["--inverse-output", "mine.h5"], 3, "--overwrite"),
    ],
)
def test_bad_shots(words, status, said, kept, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.h5").write_text("precious", encoding="utf-8")
    assert run("shoot", kept, "-o", "t.h5", "--quiet", *words) == status
    assert said in one_sentence(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.h5"]
    assert (tmp_path / "mine.h5").read_text(encoding="utf-8") == "precious"


def test_files_that_hold_no_geodesic(pair_files, kept, tmp_path, capsys):
    (tmp_path / "cut.safetensors").write_bytes(kept.read_bytes()[:-100])
    for name in (tmp_path / "cut.safetensors", tmp_path / "none.safetensors", pair_files / "transform.h5"):
        assert run("shoot", name, "-o", tmp_path / "t.h5", "--quiet") == 2
        assert name.name in one_sentence(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["cut.safetensors"]


def test_a_series_is_whole_or_absent(kept, tmp_path, capsys, monkeypatch):
    """The second of two files cannot be written: the first, finished before, does not appear either."""
    (tmp_path / "way_001.h5").write_text("precious", encoding="utf-8")
    write, calls = commands.shoot.__globals__["write_transform"], []

    def full(transform, path, **others):
        calls.append(path)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        write(transform, path, **others)

    monkeypatch.setitem(commands.shoot.__globals__, "write_transform", full)
    words = ["shoot", kept, "-o", tmp_path / "way.h5", "--times", "0.5,1", "--overwrite", "--quiet"]
    assert run(*words) == 3
    assert "No space left" in one_sentence(capsys)
    assert len(calls) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["way_001.h5"]
    assert (tmp_path / "way_001.h5").read_text(encoding="utf-8") == "precious"


def test_a_linear_start_is_gone_in_part(chain, kept, tmp_path):
    assert run("shoot", kept, "-o", tmp_path / "half.h5", "--time", 0.5, "--quiet") == 0
    linear = read_transform(tmp_path / "half.h5").parts[1]
    assert isinstance(linear, AffineTransform)
    np.testing.assert_allclose(
        np.linalg.matrix_power(linear.moving_from_fixed, 2), chain.moving_from_fixed, atol=1e-6
    )
