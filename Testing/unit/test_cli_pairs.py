"""The command `evaluate --pairs`: a row per pair, means, cycles, and pairs that fail."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace

import numpy as np
import pytest

from DiffeoRegLib import pipeline
from DiffeoRegLib.cli.evaluate_pairs import NUMBERS, Row, as_csv, spread
from DiffeoRegLib.errors import WeightsError
from DiffeoRegLib.report import memory
from DiffeoRegLib.report.scores import cycle_scores
from DiffeoRegLib.space.transform import AffineTransform
from DiffeoRegLib.volumes.files import write_points, write_volume
from DiffeoRegLib.volumes.resample import warp_labels, warp_volume
from Testing.command import one_sentence, run
from Testing.fake_run import blobs, hostile_grid, labels_of, transforms

COLUMNS = "fixed,moving,fixed_labels,moving_labels,fixed_points,moving_points"


@pytest.fixture
def pairs(pair_files, tmp_path):
    """A table of a pair with everything, and the same with nothing but images."""
    rows = [
        "fixed.nii.gz,moving.nii.gz,fixed_seg.nii.gz,moving_seg.nii.gz,fixed.csv,moving.fcsv",
        "moving.nii.gz,fixed.nii.gz,,,,",
    ]
    return table_of(pair_files, "both", rows)


def table_of(folder, name, rows):
    path = folder / f"{name}.csv"
    path.write_text("\n".join([COLUMNS, *rows]) + "\n", encoding="utf-8")
    return path


def read(folder):
    with (folder / "pairs.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return rows, json.loads((folder / "summary.json").read_text(encoding="utf-8"))


def test_a_row_per_pair_holds_what_the_report_of_a_registration_says(pairs, registrations, tmp_path, capsys):
    assert run("evaluate", "--pairs", pairs, "-o", tmp_path / "out", "--effort", "fast", "--seed", 3) == 0
    rows, summary = read(tmp_path / "out")
    assert [(row["fixed"], row["moving"]) for row in rows] == [("fixed", "moving"), ("moving", "fixed")]
    assert all(seen["settings"].effort == "fast" and seen["settings"].seed == 3 for seen in registrations)
    # What is said of an image in one row holds in the others.
    evaluation = registrations[1]["evaluation"]
    assert evaluation.fixed_labels.name.startswith("moving_seg")
    first = rows[0]
    assert float(first["dice"]) == float(first["dice_1"]) == 1  # the known run finds the truth
    second = {name: float(rows[1][name]) for name in ("dice", "dice_initial", "dice_1", "dice_2")}
    assert second["dice"] == pytest.approx((second["dice_1"] + second["dice_2"]) / 2, rel=1e-4)
    assert 0.3 < second["dice"] != second["dice_initial"] < 1
    assert float(first["tre_mm"]) < 0.05 < float(first["tre_initial_mm"])
    assert float(first["folded_percent"]) == 0
    assert float(first["sd_log_jacobian"]) > 0
    assert 0 < float(first["inverse_mean_mm"]) < float(first["inverse_max_mm"])
    assert float(first["seconds"]) == 3  # of the phases of the known run
    assert float(first["memory_mb"]) > 10
    assert first["problem"] == ""
    assert summary["pairs"] == 2
    assert summary["failed"] == []
    assert summary["settings"]["effort"] == "fast"
    dice = [float(row["dice"]) for row in rows]
    found = summary["numbers"]["dice"]
    assert found["count"] == 2
    assert found["mean"] == pytest.approx(np.mean(dice), rel=1e-4)
    assert found["sd"] == pytest.approx(np.std(dice, ddof=1), rel=1e-3)
    said = capsys.readouterr().out
    assert "2 of 2 pairs, method svf" in said
    assert "inverse error (mm)" in said


def test_a_pair_that_fails_is_named_and_counted_and_the_rest_is_done(
    pair_files, registrations, tmp_path, capsys
):
    table = table_of(pair_files, "bad", ["fixed.nii.gz,cut.nii.gz,,,,", "fixed.nii.gz,moving.nii.gz,,,,"])
    assert run("evaluate", "--pairs", table, "-o", tmp_path / "out", "--quiet") == 2
    said = one_sentence(capsys)
    assert "1 of 2 pairs failed, first fixed with cut" in said
    rows, summary = read(tmp_path / "out")
    assert "cut" in rows[0]["problem"]
    assert rows[0]["seconds"] == ""
    assert rows[1]["problem"] == ""
    assert rows[1]["dice"] == ""  # no labels, no Dice
    assert summary["failed"][0]["moving"] == "cut"
    assert summary["numbers"]["seconds"]["count"] == 1
    assert summary["numbers"]["dice"] == {"count": 0, "mean": None, "sd": None, "min": None, "max": None}


def test_what_would_fail_for_every_pair_ends_the_run_at_once(pairs, monkeypatch, tmp_path, capsys):
    calls = []

    def register(*images, **others):
        calls.append(images)
        raise WeightsError("The weights are missing.")

    monkeypatch.setattr(pipeline, "register", register)
    assert run("evaluate", "--pairs", pairs, "-o", tmp_path / "out", "--quiet") == 2
    assert "The weights are missing" in one_sentence(capsys)
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--pairs", "{pairs}"], "-o OUT"),
        (["--pairs", "{pairs}", "-o", "{out}", "--method", "svg"], "Did you mean 'svf'"),
        (["--pairs", "{pairs}", "-o", "{out}", "--init", "{transform}"], "one file cannot fit all pairs"),
        (["--pairs", "{images}", "-o", "{out}"], "names no pairs"),
        (["--pairs", "{missing}", "-o", "{out}"], "do not exist"),
        (["--pairs", "{out}/none.csv", "-o", "{out}"], "no data set"),
        (["-o", "{out}", "--transform", "{transform}"], "go with --pairs"),
        (["--weights", "w.safetensors", "--transform", "{transform}"], "go with --pairs"),
    ],
)
def test_wrong_flags_are_one_sentence(pair_files, pairs, registrations, tmp_path, capsys, words, said):
    images = pair_files / "images.csv"
    images.write_text("image\nfixed.nii.gz\nmoving.nii.gz\n", encoding="utf-8")
    places = {
        "pairs": pairs, "out": tmp_path / "out", "transform": pair_files / "transform.h5", "images": images,
        "missing": table_of(pair_files, "missing", ["fixed.nii.gz,absent.nii.gz,,,,"]),
    }  # fmt: skip
    assert run("evaluate", *[word.format(**places) for word in words], "--quiet") == 2
    assert said in one_sentence(capsys)
    assert not registrations


def test_landmarks_that_do_not_pair_are_a_problem_of_their_pair(pair_files, registrations, tmp_path, capsys):
    table = table_of(pair_files, "points", ["fixed.nii.gz,moving.nii.gz,,,one.csv,moving.fcsv"])
    assert run("evaluate", "--pairs", table, "-o", tmp_path / "out", "--quiet") == 2
    assert "do not list the same points" in one_sentence(capsys)


def test_a_pathology_would_be_ignored_and_is_refused(pair_files, registrations, tmp_path, capsys):
    table = pair_files / "ill.csv"
    rows = ["fixed,moving,fixed_pathology", "fixed.nii.gz,moving.nii.gz,fixed_seg.nii.gz"]
    table.write_text("\n".join(rows), encoding="utf-8")
    assert run("evaluate", "--pairs", table, "-o", tmp_path / "out") != 0
    assert "fixed_pathology" in one_sentence(capsys)
    assert not registrations


def test_results_are_not_overwritten_unless_told(pairs, registrations, tmp_path, capsys):
    words = ["evaluate", "--pairs", pairs, "-o", tmp_path / "out", "--quiet"]
    assert run(*words) == 0
    assert run(*words) == 3
    assert "--overwrite" in one_sentence(capsys)
    assert run(*words, "--overwrite") == 0


def test_svf_over_three_pairs_goes_round(tmp_path, capsys):
    """The real method: three images of one scene, every pair of them, and the way round all three."""
    grid = hostile_grid((16, 18, 20))
    scene = blobs(grid, "a")
    points = grid.world_from_index(np.array([[6.0, 7, 8], [9, 8, 11]]))
    for name, size in (("a", 0.0), ("b", 0.8), ("c", 1.4)):
        moved = transforms(grid, size)[0]
        image, labels = (_seen(one, moved, name) for one in (scene, labels_of(scene)))
        write_volume(image, tmp_path / f"{name}.nii.gz")
        write_volume(labels, tmp_path / f"{name}_seg.nii.gz")
        write_points(moved.inverse().map_points(points), tmp_path / f"{name}.csv")
    rows = [
        f"{a}.nii.gz,{b}.nii.gz,{a}_seg.nii.gz,{b}_seg.nii.gz,{a}.csv,{b}.csv" for a, b in ("ab", "cb", "ca")
    ]
    table = table_of(tmp_path, "three", rows)
    words = ["--init", "identity", "--iterations", "20,10", "--levels", "8,4", "--device", "cpu"]
    assert run("evaluate", "--pairs", table, "-o", tmp_path / "out", "--cycles", "--quiet", *words) == 0
    found, summary = read(tmp_path / "out")
    assert len(found) == 3
    for row in found:
        assert all(math.isfinite(float(row[name])) for name in NUMBERS)
        assert float(row["folded_percent"]) == 0
        assert float(row["inverse_max_mm"]) < 1
    assert summary["numbers"]["tre_mm"]["mean"] < summary["numbers"]["tre_initial_mm"]["mean"]
    cycle = summary["cycle_mm"]
    assert cycle["count"] == 1
    assert cycle["triangles"][0]["images"] == ["a", "b", "c"]
    assert cycle["triangles"][0]["points"] > 1000
    assert 0 < cycle["mean"] < 2 * summary["numbers"]["tre_initial_mm"]["mean"]
    assert "cycle error (mm)" in capsys.readouterr().out


def _seen(volume, transform, name):
    """An image of a scene through a transform, on the scene's grid."""
    moved = (warp_labels if volume.is_labels else warp_volume)(volume, transform, volume.grid)
    return replace(moved, name=name)


def test_a_way_round_that_does_not_close_is_measured():
    """Three shifts, whose sum is 1.5 mm; what leaves an image on the way does not count."""
    grid = hostile_grid((12, 14, 16))
    shifts = (np.array([1.0, 0, 0]), np.array([0, 1.0, 0]), np.array([-1.0, -1.0, 1.5]))
    parts = []
    for shift in shifts:
        matrix = np.eye(4)
        matrix[:3, 3] = shift
        parts.append(AffineTransform(matrix))
    found = cycle_scores(parts, [grid, grid, grid])
    assert found["mean"] == pytest.approx(1.5)
    assert found["max"] == pytest.approx(1.5)
    assert 0 < found["points"] < 12 * 14 * 16


def test_the_spread_leaves_out_what_was_not_measured():
    assert spread([1.0, None, 3.0]) == {
        "count": 2, "mean": 2.0, "sd": pytest.approx(math.sqrt(2)), "min": 1.0, "max": 3.0,
    }  # fmt: skip
    assert spread([1.0])["sd"] is None


def test_labels_are_columns_in_the_order_of_their_numbers():
    rows = [Row("a", "b", {"dice": 0.5}, {"10": 0.25, "2": None}), Row("a", "c", problem="no")]
    lines = as_csv(rows).splitlines()
    assert lines[0].endswith("memory_mb,dice_2,dice_10,problem")
    assert lines[1].startswith("a,b,,0.5,")
    assert lines[1].endswith(",,0.25,")
    assert lines[2].endswith(",no")


@pytest.mark.skipif(not memory.CLEAR.is_file(), reason="only Linux forgets a peak")
def test_a_peak_can_be_forgotten():
    kept = np.ones(30_000_000)
    high = memory.peak_memory_mb()
    del kept
    assert memory.reset_peak_memory()
    assert memory.peak_memory_mb() < high - 150
