"""The numbers of a report have known answers, and its words fit them."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from DiffeoRegLib.report import memory, scores, text
from DiffeoRegLib.report.measure import json_safe, orientation
from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.space.transform import AffineTransform, CompositeTransform, DisplacementTransform
from DiffeoRegLib.volumes.volume import Volume
from Testing.fake_run import (
    folded_transform,
    hostile_grid,
    known_motion,
)

IDENTITY = AffineTransform(np.eye(4))


# ---------------------------------------------------------------- numbers


def test_the_report_is_json_without_nan(fake_registration):
    report = fake_registration[3].report
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_similarity_rises_to_one_for_the_right_transform(fake_registration):
    similarity = fake_registration[3].report["similarity"]
    for key in ("ncc", "lncc", "nmi"):
        assert similarity["final"][key] > similarity["initial"][key] > similarity["given"][key]
    assert similarity["final"]["ncc"] > 0.99


def test_similarity_counts_only_where_both_images_are(fake_registration):
    fixed, moving = fake_registration[0], fake_registration[1]
    far = np.eye(4)
    far[0, 3] = 1000.0
    found = scores.similarity_scores(fixed, moving, {"final": AffineTransform(far)}, None)
    assert found["final"] is None
    half = np.eye(4)
    half[:3, 3] = fixed.grid.world_from_voxel[:3, 2] * 13
    shifted = scores.similarity_scores(fixed, fixed, {"final": AffineTransform(half)}, None)["final"]
    assert shifted["overlap_percent"] == pytest.approx(50.0, abs=0.1)


def test_similarity_is_restricted_to_the_mask(fake_registration):
    fixed = fake_registration[0]
    noise = fixed.data.clone()
    noise[9:] = torch.rand(noise[9:].shape)
    other = Volume(noise, fixed.grid)
    mask = torch.zeros(fixed.grid.shape, dtype=torch.int32)
    mask[:9] = 1
    free = scores.similarity_scores(fixed, other, {"final": IDENTITY}, None)["final"]
    masked = scores.similarity_scores(fixed, other, {"final": IDENTITY}, Volume(mask, fixed.grid, "m", True))[
        "final"
    ]
    assert masked["ncc"] == pytest.approx(1.0, abs=1e-5)
    assert free["ncc"] < 0.9


def test_nmi_of_known_histograms():
    values = torch.arange(6400).float()
    assert scores.normalised_mutual_information(values, values) == pytest.approx(2.0, abs=1e-9)
    assert scores.normalised_mutual_information(values, -3 * values) == pytest.approx(2.0, abs=1e-3)
    first, second = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    independent = scores.normalised_mutual_information(first.flatten(), second.flatten())
    assert independent == pytest.approx(1.0, abs=1e-9)


def test_landmark_error_is_the_distance_put_in(fake_registration):
    marks = fake_registration[3].report["landmarks"]
    assert marks["count"] == 3
    assert marks["final"]["mean"] == pytest.approx(5.0, abs=1e-4)
    assert marks["final"]["max"] == pytest.approx(5.0, abs=1e-4)


def test_labels_get_better_to_the_end(fake_registration):
    labels = fake_registration[3].report["labels"]
    means = labels["mean"]
    assert means["given"]["dice"] < means["initial"]["dice"] < means["final"]["dice"]
    assert means["final"]["dice"] > 0.9
    assert set(labels["per_label"]) == {"1", "2"}


def test_without_labels_or_landmarks_there_is_none(flat_registration):
    report = flat_registration[3].report
    assert report["labels"] is None
    assert report["landmarks"] is None


def test_displacement_of_a_known_motion(fake_registration):
    moved = fake_registration[3].report["displacement_mm"]
    assert moved["deformation"]["max"] == pytest.approx(1.5, rel=0.03)
    assert moved["deformation"]["mean"] < moved["whole"]["mean"]


def test_volume_change_of_a_known_scaling():
    grid = hostile_grid()
    points = torch.as_tensor(grid.world_from_index(np.stack(np.indices(grid.shape), -1).astype(float)))
    grown = (0.2 * (points - torch.as_tensor(grid.center_mm))).permute(3, 0, 1, 2)[None].float()
    found = scores.fold_scores(DisplacementTransform(grid, grown), grid)
    assert found["minimum_determinant"] == pytest.approx(1.2**3, rel=1e-4)
    assert found["maximum_determinant"] == pytest.approx(1.2**3, rel=1e-4)
    assert found["sd_log_jacobian"] == pytest.approx(0.0, abs=1e-4)
    assert found["folded_percent"] == 0


def test_folds_are_counted_in_the_volume_and_in_the_mask():
    grid = hostile_grid()
    near = torch.zeros(grid.shape, dtype=torch.int32)
    far = near.clone()
    near[3:8, 3:8, 3:9], far[12:, 12:, 12:] = 1, 1
    with_fold = scores.fold_scores(folded_transform(grid), grid, Volume(near, grid, "near", True))
    without = scores.fold_scores(folded_transform(grid), grid, Volume(far, grid, "far", True))
    cells = np.prod([n - 1 for n in grid.shape])
    assert with_fold["folded_percent"] == pytest.approx(100 * 4 / cells)
    assert with_fold["folded_percent_in_mask"] == pytest.approx(100 * 4 / (4 * 4 * 5))
    assert without["folded_percent_in_mask"] == 0
    assert with_fold["minimum_determinant"] == pytest.approx(-0.5, abs=1e-5)


def test_an_affine_transform_has_no_deformation():
    grid = hostile_grid()
    affine = known_motion(grid)[1]
    assert scores.deformation_of(CompositeTransform([affine, affine]), grid) is None
    assert scores.fold_scores(affine, grid)["minimum_determinant"] == 1
    assert scores.displacement_scores(affine, grid)["deformation"]["max"] == 0


def test_two_fields_are_judged_as_one_transform():
    grid = hostile_grid()
    fold, other = folded_transform(grid), known_motion(grid)[0]
    assert scores.fold_scores(CompositeTransform([other, fold]), grid)["folded_percent"] > 0


def test_inverse_error_of_a_wrong_inverse_is_its_shift(fake_registration):
    fixed, moving, _, result = fake_registration
    good = result.report["inverse_consistency_mm"]
    assert good["mean"] < 0.02
    assert good["points"] > 1000
    assert good["moving_to_fixed"]["mean"] < 0.05
    shift = np.eye(4)
    shift[:3, 3] = (0, 3, 4)
    wrong = CompositeTransform([result.inverse, AffineTransform(shift)])
    bad = scores.inverse_scores(result.transform, wrong, fixed.grid, moving.grid)
    assert bad["mean"] == pytest.approx(5.0, abs=0.1)


def test_nothing_lands_in_the_moving_image():
    grid = hostile_grid()
    away = np.eye(4)
    away[0, 3] = 500
    found = scores.inverse_scores(AffineTransform(away), AffineTransform(np.linalg.inv(away)), grid, grid)
    assert found["mean"] is None
    assert found["points"] == 0


def test_citations_are_not_repeated(fake_registration):
    assert fake_registration[3].report["citations"] == ["Someone A. A paper. 2006."]


def test_json_safe_values():
    given = {
        "a": math.nan,
        "b": np.float32(0.1),
        "c": (1, np.int64(2)),
        3: math.inf,
        "d": True,
        "e": 1.23456789,
    }
    assert json_safe(given) == {"a": None, "b": 0.1, "c": [1, 2], "3": None, "d": True, "e": 1.23457}
    with pytest.raises(TypeError, match="Tensor"):
        json_safe({"x": torch.zeros(2)})


def test_orientation_letters():
    grid = Grid((3, 4, 5), np.array([[0, 0, -1.0, 0], [0, -1.0, 0, 0], [2.0, 0, 0, 0], [0, 0, 0, 1]]))
    assert orientation(grid) == "LPS"


def test_peak_memory_is_plausible_and_grows():
    before = memory.peak_memory_mb()
    block = np.ones(int((before + 64) * 2**20 // 8))
    after = memory.peak_memory_mb()
    assert 20 < before < after
    assert after > block.nbytes / 2**20


def test_no_device_memory_on_the_cpu():
    assert memory.peak_device_memory_mb(torch.device("cpu")) is None


# ---------------------------------------------------------------- words


def _with(report, **changes):
    return {**report, **changes}


def test_a_good_result_is_called_good(fake_registration):
    assert text.verdict(fake_registration[3].report).level == "good"


def test_folds_are_said(fake_registration):
    folds = {**fake_registration[3].report["folds"], "folded_percent": 0.05}
    found = text.verdict(_with(fake_registration[3].report, folds=folds))
    assert found.level == "check"
    assert any("0.05 %" in sentence for sentence in found.sentences)
    many = text.verdict(_with(fake_registration[3].report, folds={**folds, "folded_percent": 2.0}))
    assert many.level == "bad"


def test_a_worse_match_is_said(fake_registration):
    similarity = fake_registration[3].report["similarity"]
    swapped = {**similarity, "initial": similarity["final"], "final": similarity["given"]}
    found = text.verdict(_with(fake_registration[3].report, similarity=swapped))
    assert found.level == "bad"
    assert any("less after registration" in sentence for sentence in found.sentences)


def test_no_overlap_is_said(fake_registration):
    similarity = {**fake_registration[3].report["similarity"], "final": None}
    assert text.verdict(_with(fake_registration[3].report, similarity=similarity)).level == "bad"


def test_a_large_inverse_error_is_said(fake_registration):
    error = {**fake_registration[3].report["inverse_consistency_mm"], "mean": 0.8, "max": 9.0}
    assert text.verdict(_with(fake_registration[3].report, inverse_consistency_mm=error)).level == "check"
    missing = {**error, "mean": None, "max": None}
    assert text.verdict(_with(fake_registration[3].report, inverse_consistency_mm=missing)).level == "check"


def test_the_summary_holds_the_numbers(fake_registration):
    summary = text.summary(fake_registration[3].report)
    for word in ("Dice", "HD95", "Landmark error", "Folded cells", "Inverse consistency", "5.00"):
        assert word in summary


@pytest.mark.skipif(not memory.STATUS.is_file(), reason="Linux keeps a peak that a child inherits")
def test_the_peak_is_of_this_process_and_not_of_the_one_that_started_it(repository):
    held = bytearray(600 * 2**20)
    held[:: 2**12] = b"x" * len(held[:: 2**12])
    code = "from DiffeoRegLib.report.memory import peak_memory_mb; print(peak_memory_mb())"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=repository, capture_output=True, check=True, encoding="utf-8"
    )
    assert 50 < float(done.stdout) < 500
    assert (memory.peak_memory_mb() or 0) > 600
