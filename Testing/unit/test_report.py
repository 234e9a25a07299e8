"""The report: numbers with known answers, pictures the right way round, a page that stands alone."""

from __future__ import annotations

import json
import math
import re
import struct
import zlib
from html.parser import HTMLParser

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from DiffeoRegLib.errors import ShapeError
from DiffeoRegLib.report import memory, pictures, scores, text
from DiffeoRegLib.report.measure import json_safe, orientation
from DiffeoRegLib.report.page import html_page
from DiffeoRegLib.report.pictures import Scene, draw
from DiffeoRegLib.report.planes import oblique_degrees, patient_frame, planes
from DiffeoRegLib.report.png import grey, png_bytes
from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.space.transform import AffineTransform, CompositeTransform, DisplacementTransform
from DiffeoRegLib.volumes.pair import Correspondence
from DiffeoRegLib.volumes.volume import Volume
from Testing.fake_run import (
    blobs,
    fake_result,
    hostile_grid,
    known_motion,
    labels_of,
    pair_of,
    plane_grid,
    transforms,
)

IDENTITY = AffineTransform(np.eye(4))


@pytest.fixture(scope="module")
def run():
    """A registration with labels and landmarks: fixed, moving, evaluation, result."""
    return _run(hostile_grid())


@pytest.fixture(scope="module")
def flat_run():
    """The same in 2D, with nothing to evaluate."""
    return _run(plane_grid(), evaluated=False)


def _run(grid, evaluated=True):
    fixed = blobs(grid, "fixed <one>")
    transform, _, _ = transforms(grid)
    moving, evaluation = pair_of(fixed, transform), None
    if evaluated:
        labels = labels_of(fixed)
        points = grid.world_from_index(np.array([[5.0, 6, 7], [9, 10, 11], [12, 8, 15]]))
        evaluation = Correspondence(
            labels, pair_of(labels, transform), points, transform.map_points(points) + np.array([0, 3, 4])
        )
    return fixed, moving, evaluation, fake_result(fixed, moving, evaluation)


# ---------------------------------------------------------------- numbers


def test_the_report_is_json_without_nan(run):
    report = run[3].report
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_similarity_rises_to_one_for_the_right_transform(run):
    similarity = run[3].report["similarity"]
    for key in ("ncc", "lncc", "nmi"):
        assert similarity["final"][key] > similarity["initial"][key] > similarity["given"][key]
    assert similarity["final"]["ncc"] > 0.99


def test_similarity_counts_only_where_both_images_are(run):
    fixed, moving = run[0], run[1]
    far = np.eye(4)
    far[0, 3] = 1000.0
    found = scores.similarity_scores(fixed, moving, {"final": AffineTransform(far)}, None)
    assert found["final"] is None
    half = np.eye(4)
    half[:3, 3] = fixed.grid.world_from_voxel[:3, 2] * 13
    shifted = scores.similarity_scores(fixed, fixed, {"final": AffineTransform(half)}, None)["final"]
    assert shifted["overlap_percent"] == pytest.approx(50.0, abs=0.1)


def test_similarity_is_restricted_to_the_mask(run):
    fixed = run[0]
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


def test_landmark_error_is_the_distance_put_in(run):
    marks = run[3].report["landmarks"]
    assert marks["count"] == 3
    assert marks["final"]["mean"] == pytest.approx(5.0, abs=1e-4)
    assert marks["final"]["max"] == pytest.approx(5.0, abs=1e-4)


def test_labels_get_better_to_the_end(run):
    labels = run[3].report["labels"]
    means = labels["mean"]
    assert means["given"]["dice"] < means["initial"]["dice"] < means["final"]["dice"]
    assert means["final"]["dice"] > 0.9
    assert set(labels["per_label"]) == {"1", "2"}


def test_without_labels_or_landmarks_there_is_none(flat_run):
    report = flat_run[3].report
    assert report["labels"] is None
    assert report["landmarks"] is None


def test_displacement_of_a_known_motion(run):
    moved = run[3].report["displacement_mm"]
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


def _folded_transform(grid):
    u_mm = torch.zeros(1, 3, *grid.shape)
    step = torch.tensor(grid.world_from_voxel[:3, 0].tolist())
    u_mm[0, :, 4, 5, 6] = 1.5 * step  # this voxel overtakes its neighbour along the first axis
    return DisplacementTransform(grid, u_mm)


def test_folds_are_counted_in_the_volume_and_in_the_mask():
    grid = hostile_grid()
    near = torch.zeros(grid.shape, dtype=torch.int32)
    far = near.clone()
    near[3:8, 3:8, 3:9], far[12:, 12:, 12:] = 1, 1
    with_fold = scores.fold_scores(_folded_transform(grid), grid, Volume(near, grid, "near", True))
    without = scores.fold_scores(_folded_transform(grid), grid, Volume(far, grid, "far", True))
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
    fold, other = _folded_transform(grid), known_motion(grid)[0]
    assert scores.fold_scores(CompositeTransform([other, fold]), grid)["folded_percent"] > 0


def test_inverse_error_of_a_wrong_inverse_is_its_shift(run):
    fixed, moving, _, result = run
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


def test_citations_are_not_repeated(run):
    assert run[3].report["citations"] == ["Someone A. A paper. 2006."]


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


def test_a_good_result_is_called_good(run):
    assert text.verdict(run[3].report).level == "good"


def test_folds_are_said(run):
    folds = {**run[3].report["folds"], "folded_percent": 0.05}
    found = text.verdict(_with(run[3].report, folds=folds))
    assert found.level == "check"
    assert any("0.05 %" in sentence for sentence in found.sentences)
    many = text.verdict(_with(run[3].report, folds={**folds, "folded_percent": 2.0}))
    assert many.level == "bad"


def test_a_worse_match_is_said(run):
    similarity = run[3].report["similarity"]
    swapped = {**similarity, "initial": similarity["final"], "final": similarity["given"]}
    found = text.verdict(_with(run[3].report, similarity=swapped))
    assert found.level == "bad"
    assert any("less after registration" in sentence for sentence in found.sentences)


def test_no_overlap_is_said(run):
    similarity = {**run[3].report["similarity"], "final": None}
    assert text.verdict(_with(run[3].report, similarity=similarity)).level == "bad"


def test_a_large_inverse_error_is_said(run):
    error = {**run[3].report["inverse_consistency_mm"], "mean": 0.8, "max": 9.0}
    assert text.verdict(_with(run[3].report, inverse_consistency_mm=error)).level == "check"
    missing = {**error, "mean": None, "max": None}
    assert text.verdict(_with(run[3].report, inverse_consistency_mm=missing)).level == "check"


def test_the_summary_holds_the_numbers(run):
    summary = text.summary(run[3].report)
    for word in ("Dice", "HD95", "Landmark error", "Folded cells", "Inverse consistency", "5.00"):
        assert word in summary


# ---------------------------------------------------------------- pictures


def test_png_is_read_back_by_another_program(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (13, 7, 3), dtype=np.uint8)
    (tmp_path / "colour.png").write_bytes(png_bytes(picture))
    (tmp_path / "grey.png").write_bytes(png_bytes(picture[..., 0]))
    read = [
        sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / name))) for name in ("colour.png", "grey.png")
    ]
    assert (read[0] == picture).all()
    assert (read[1] == picture[..., 0]).all()


def test_png_refuses_what_is_no_picture():
    with pytest.raises(ShapeError):
        png_bytes(np.zeros((4, 4), dtype=np.float32))
    with pytest.raises(ShapeError):
        png_bytes(np.zeros((4, 4, 2), dtype=np.uint8))


def test_grey_cuts_and_blackens():
    assert grey(np.array([-1.0, 0.5, 2.0, np.nan])).tolist() == [0, 128, 255, 0]


def _pixels(data):
    """Grey values of one of our PNG files, decoded by hand."""
    width, height = struct.unpack(">II", data[16:24])
    start = data.index(b"IDAT")
    size = struct.unpack(">I", data[start - 4 : start])[0]
    lines = np.frombuffer(zlib.decompress(data[start + 4 : start + 4 + size]), np.uint8).reshape(height, -1)
    return np.cumsum(lines[:, 1:], axis=0, dtype=np.uint8).reshape(height, width, -1)


ORIENTATIONS = [
    np.diag([1.0, 1.0, 1.0]),
    np.array([[0, 0, -1.0], [0, -1.0, 0], [1.0, 0, 0]]),
    np.array([[0, 1.0, 0], [0, 0, 1.0], [-1.0, 0, 0]]),
]


@pytest.mark.parametrize("axes", ORIENTATIONS)
def test_the_patients_right_front_and_top_are_where_the_letters_say(axes):
    """A bright half of the patient shows on the picture's side that carries its letter, in any storage order."""
    world = np.eye(4)
    world[:3, :3] = axes * np.array([1.0, 2.0, 3.0])
    grid = Grid((20, 14, 12), world)
    points = grid.world_from_index(np.stack(np.indices(grid.shape), -1).astype(float)) - grid.center_mm
    for axis, letter, other in ((0, "R", "L"), (1, "A", "P"), (2, "S", "I")):
        half = Volume(torch.tensor(points[..., axis] > 0).float(), grid)
        for plane in planes(grid, grid.center_mm):
            if letter not in plane.edges:
                continue
            values = pictures.read(half, plane.points_mm)
            rows, columns = values.shape
            sides = (
                values[:, : columns // 3],
                values[:, -columns // 3 :],
                values[: rows // 3],
                values[-rows // 3 :],
            )
            means = {edge: float(side.mean()) for edge, side in zip(plane.edges, sides, strict=True)}
            assert means[letter] > 0.95
            assert means[other] < 0.05


def test_pixels_are_square_and_cover_the_field_of_view():
    grid = hostile_grid()
    found = planes(grid, grid.center_mm)
    for plane, (vertical, horizontal) in zip(found, ((1, 2), (0, 2), (0, 1)), strict=True):
        down = np.linalg.norm(plane.points_mm[1, 0] - plane.points_mm[0, 0])
        right = np.linalg.norm(plane.points_mm[0, 1] - plane.points_mm[0, 0])
        assert down == pytest.approx(right)
        assert len(plane.points_mm) * down == pytest.approx(grid.extent_mm[vertical], rel=0.01)
        assert plane.points_mm.shape[1] * right == pytest.approx(grid.extent_mm[horizontal], rel=0.01)
        assert np.isfinite(pictures.read(blobs(grid, "b"), plane.points_mm)).mean() > 0.98


def test_the_frame_of_an_oblique_grid_is_its_own():
    grid = hostile_grid()
    frame = patient_frame(grid)
    assert np.allclose(frame @ frame.T, np.eye(3))
    assert (np.diag(frame) > 0.9).all()
    assert 11 < oblique_degrees(grid) < 25


def test_a_2d_image_is_shown_as_stored_without_letters():
    grid = plane_grid()
    (plane,) = planes(grid, grid.center_mm)
    assert plane.edges == ("", "", "", "")
    assert plane.points_mm.shape[0] / plane.points_mm.shape[1] == pytest.approx(40 * 1 / (50 * 2), rel=0.02)
    ramp = Volume(torch.arange(40.0)[:, None].expand(40, 50).contiguous(), grid)
    values = pictures.read(ramp, plane.points_mm)
    assert values[0].mean() < values[-1].mean()
    assert np.ptp(values[5]) == pytest.approx(0, abs=1e-5)


def test_reading_outside_is_nan():
    grid = hostile_grid()
    image = blobs(grid, "b")
    outside = pictures.read(image, grid.world_from_index(np.array([[[-0.6, 3, 3], [-0.4, 3, 3]]])))
    assert np.isnan(outside[0, 0])
    assert outside[0, 1] == pytest.approx(float(image.data[0, 3, 3]), rel=1e-4)


def test_the_outline_is_the_edge_of_the_label():
    labels = np.zeros((7, 7))
    labels[2:5, 2:5] = 4
    expected = labels.astype(bool)
    expected[3, 3] = False
    assert (pictures.outline(labels) == expected).all()


def test_every_kind_of_picture_is_drawn(run, flat_run):
    for (fixed, moving, evaluation, result), count in ((run, 3), (flat_run, 1)):
        gallery = draw(_scene(fixed, moving, evaluation, result))
        assert all(len(files) == count for files in gallery.files.values())
        kinds = {"fixed", "before", "after", "checkerboard", "difference_before", "difference_after"}
        kinds |= {"grid", "volume_change"} | ({"labels_before", "labels_after"} if evaluation else set())
        assert set(gallery.files) == kinds


def _scene(fixed, moving, evaluation, result):
    labels = (evaluation.fixed_labels, evaluation.moving_labels) if evaluation else (None, None)
    return Scene(fixed, moving, result.transform, result.initial, *labels)


def test_the_registered_picture_is_the_fixed_one(run):
    gallery = draw(_scene(*run))
    for fixed, before, after in zip(
        *(gallery.files[kind] for kind in ("fixed", "before", "after")), strict=True
    ):
        target, early, late = (_pixels(data).astype(float) for data in (fixed, before, after))
        seen = late > 0
        close, far = (np.corrcoef(picture[seen], target[seen])[0, 1] for picture in (late, early))
        assert close > 0.99
        assert close > far


def test_a_difference_picture_is_black_where_images_agree():
    same = np.linspace(0, 1, 20).reshape(4, 5)
    assert pictures._difference(same, same).max() == 0
    brighter = pictures._difference(same, same + 0.3)
    assert (brighter[..., 0] > brighter[..., 2]).all()


def test_a_straight_grid_stays_straight():
    grid = plane_grid()
    (plane,) = planes(grid, grid.center_mm)
    still = scores.Deformation(grid, torch.zeros(1, 3, *grid.shape))
    picture = pictures._grid_picture(np.zeros(plane.points_mm.shape[:2]), still, plane)
    lit = picture[..., 0] > 100
    assert 0.05 < lit.mean() < 0.4
    assert (lit.all(axis=0) | ~lit.any(axis=0) | (lit.mean(axis=0) < 0.4)).all()
    assert lit.all(axis=0).sum() > 5


def test_folds_are_marked(run):
    fixed = run[0]
    grid = fixed.grid
    marked = Volume(torch.zeros(grid.shape, dtype=torch.int32), grid, "m", True)
    marked.data[4, 5, 6] = 1
    through = draw(Scene(fixed, fixed, _folded_transform(grid), fixed_labels=marked, moving_labels=marked))
    colour = np.array(pictures.FOLD_COLOUR)
    assert all((_pixels(data) == colour).all(axis=-1).any() for data in through.files["volume_change"])


# ---------------------------------------------------------------- page


class _Checker(HTMLParser):
    """Collects what a page loads, and whether its tags close."""

    def __init__(self):
        super().__init__()
        self.sources, self.open_tags, self.wrong = [], [], []

    def handle_starttag(self, tag, attrs):
        self.sources += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img", "br", "input"):
            self.open_tags.append(tag)

    def handle_endtag(self, tag):
        if not self.open_tags or self.open_tags.pop() != tag:
            self.wrong.append(tag)


@pytest.mark.parametrize("which", ["run", "flat_run"])
def test_the_page_stands_alone_and_its_tags_close(which, request):
    fixed, moving, evaluation, result = request.getfixturevalue(which)
    page = html_page(result.report, draw(_scene(fixed, moving, evaluation, result)))
    checker = _Checker()
    checker.feed(page)
    assert checker.wrong == []
    assert checker.open_tags == []
    assert checker.sources
    assert all(source.startswith("data:image/png;base64,") for source in checker.sources)
    assert not re.search(r"url\(|@import|https?://", page)
    assert ("Segmentations" in page) == (evaluation is not None)


def test_names_from_files_cannot_write_html(run):
    page = html_page(run[3].report, draw(_scene(*run)))
    assert "fixed &lt;one&gt;" in page
    assert "<one>" not in page


def test_an_affine_result_has_a_page_too(run):
    fixed, moving, _, result = run
    affine = result.initial
    page = html_page(result.report, draw(Scene(fixed, moving, affine, affine)))
    assert "the transform is affine" in page
