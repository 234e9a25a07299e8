"""The pictures of a report are the right way round, and its page stands alone."""

from __future__ import annotations

import re
import struct
import zlib
from html.parser import HTMLParser

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from DiffeoRegLib.errors import ShapeError
from DiffeoRegLib.report import pictures, scores
from DiffeoRegLib.report.page import html_page
from DiffeoRegLib.report.pictures import Scene, draw
from DiffeoRegLib.report.planes import patient_frame, planes
from DiffeoRegLib.report.png import grey, png_bytes
from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.space.transform import AffineTransform
from DiffeoRegLib.volumes.volume import Volume
from Testing.fake_run import (
    blobs,
    folded_transform,
    hostile_grid,
    plane_grid,
)

IDENTITY = AffineTransform(np.eye(4))


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
    """A bright half of the patient shows on the side of the picture with its letter, in any storage order."""
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


def test_every_kind_of_picture_is_drawn(fake_registration, flat_registration):
    for (fixed, moving, evaluation, result), count in ((fake_registration, 3), (flat_registration, 1)):
        gallery = draw(_scene(fixed, moving, evaluation, result))
        assert all(len(files) == count for files in gallery.files.values())
        kinds = {"fixed", "before", "after", "checkerboard", "difference_before", "difference_after"}
        kinds |= {"grid", "volume_change"} | ({"labels_before", "labels_after"} if evaluation else set())
        assert set(gallery.files) == kinds


def _scene(fixed, moving, evaluation, result):
    labels = (evaluation.fixed_labels, evaluation.moving_labels) if evaluation else (None, None)
    return Scene(fixed, moving, result.transform, result.initial, *labels)


def test_the_registered_picture_is_the_fixed_one(fake_registration):
    gallery = draw(_scene(*fake_registration))
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


def test_folds_are_marked(fake_registration):
    fixed = fake_registration[0]
    grid = fixed.grid
    marked = Volume(torch.zeros(grid.shape, dtype=torch.int32), grid, "m", True)
    marked.data[4, 5, 6] = 1
    through = draw(Scene(fixed, fixed, folded_transform(grid), fixed_labels=marked, moving_labels=marked))
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


@pytest.mark.parametrize("which", ["fake_registration", "flat_registration"])
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


def test_names_from_files_cannot_write_html(fake_registration):
    page = html_page(fake_registration[3].report, draw(_scene(*fake_registration)))
    assert "fixed &lt;one&gt;" in page
    assert "<one>" not in page


def test_an_affine_result_has_a_page_too(fake_registration):
    fixed, moving, _, result = fake_registration
    affine = result.initial
    page = html_page(result.report, draw(Scene(fixed, moving, affine, affine)))
    assert "the transform is affine" in page
