"""Templates: no image is preferred, what they show is the middle, and the order does not count."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from DiffeoRegLib.cli import template as command
from DiffeoRegLib.errors import InputError, SettingsError
from DiffeoRegLib.methods.base import Progress
from DiffeoRegLib.metrics import mean_dice
from DiffeoRegLib.report.template import Look, gradient_per_mm, most_frequent
from DiffeoRegLib.settings import Settings
from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.space.sample import array_from_tensor
from DiffeoRegLib.space.transform import AffineTransform, CompositeTransform, DisplacementTransform
from DiffeoRegLib.template import _centred, _off_centre_mm, _Ways, build_template
from DiffeoRegLib.volumes.files import read_volume
from DiffeoRegLib.volumes.resample import warp_labels, warp_volume
from DiffeoRegLib.volumes.transform_files import read_transform
from DiffeoRegLib.volumes.volume import Volume
from Testing.command import one_sentence, run
from Testing.fake_run import blobs, hostile_grid, known_motion, labels_of

QUICK = Settings(levels_mm=(8.0, 4.0), iterations=(15, 8), device="cpu", steps=4)
GRID = hostile_grid((14, 18, 20))


def moved(size_mm, name):
    """A scene under a known smooth motion of this size."""
    field, _ = known_motion(GRID, size_mm)
    return Volume(warp_volume(blobs(GRID, "scene"), field, GRID).data, GRID, name)


@pytest.fixture(scope="module")
def images():
    return [moved(size, f"scene {size}") for size in (-3.0, 0.5, 2.5)]


@pytest.fixture(scope="module")
def maps(images):
    return [labels_of(image) for image in images]


@pytest.fixture(scope="module")
def built(images, maps):
    told = []
    result = build_template(images, QUICK, labels=maps, rounds=1, sharpening=0.5, progress=told.append)
    return result, told


def test_the_mean_of_all_maps_is_the_identity(built):
    result, _ = built
    assert result.report["off_centre_mm"] < 0.1
    assert _off_centre_mm(result.transforms, GRID) == pytest.approx(result.report["off_centre_mm"])


def test_the_images_agree_better_than_as_given(built):
    stages = built[0].report["stages"]
    assert [stage["stage"] for stage in stages] == ["as given", "as a group", "round 1"]
    assert stages[2]["deviation"] < 0.8 * stages[0]["deviation"]
    assert stages[2]["change"] > 0
    assert stages[2]["gradient_per_mm"] == pytest.approx(gradient_per_mm(built[0].mean), rel=0.2)


def test_labels_judge_and_become_the_templates_own(built, maps):
    stages = built[0].report["stages"]
    assert stages[0]["dice"] < stages[1]["dice"] <= 1
    assert stages[2]["dice"] > stages[0]["dice"]
    found = built[0].labels
    assert found.is_labels
    assert set(found.data.unique().tolist()) == set(maps[0].data.unique().tolist())
    ways = zip(maps, built[0].transforms, strict=True)
    carried = [array_from_tensor(warp_labels(one, way, GRID).data) for one, way in ways]
    assert np.array_equal(array_from_tensor(found.data), most_frequent(carried))
    assert stages[2]["dice"] == pytest.approx(
        np.mean([mean_dice(carried[a], carried[b]) for a, b in ((0, 1), (0, 2), (1, 2))])
    )


def test_labels_must_match_the_images(images, maps):
    with pytest.raises(InputError, match="3 images need as many label maps, not 2"):
        build_template(images, QUICK, labels=maps[:2])
    flat = Volume(torch.ones(8, 8, dtype=torch.int32), hostile_grid((8, 8)), "slice", is_labels=True)
    with pytest.raises(InputError, match="'slice' are 2D"):
        build_template(images, QUICK, labels=[*maps[:2], flat])


def test_maps_lead_there_and_back(built):
    result, _ = built
    points = GRID.world_from_index(np.array([[6.0, 8, 9], [7, 9, 11]]))
    for there, back in zip(result.transforms, result.inverses, strict=True):
        assert np.abs(back.map_points(there.map_points(points)) - points).max() < 0.1


def test_progress_runs_from_start_to_end(built):
    shares = [step.fraction for step in built[1]]
    assert shares == sorted(shares)
    assert 0 <= shares[0] < 0.1
    assert shares[-1] == pytest.approx(1)
    assert all(isinstance(step, Progress) for step in built[1])
    assert [step.phase for step in built[1]].count("done") == 1
    assert any(step.message.startswith("round 1 of 1: 'scene 2.5': ") for step in built[1])


def test_the_order_of_the_images_does_not_count(images, built):
    order = [2, 0, 1]
    other = build_template([images[k] for k in order], QUICK, rounds=1, sharpening=0.5)
    assert torch.equal(other.template.data, built[0].template.data)
    points = GRID.world_from_index(np.array([[6.0, 8, 9]]))
    for entry, number in enumerate(order):
        here, there = other.transforms[entry], built[0].transforms[number]
        assert np.abs(here.map_points(points) - there.map_points(points)).max() < 1e-5


def test_maps_are_centred_with_their_linear_parts():
    """Two known maps, one with a turn and a shift: their mean becomes the identity."""
    field, affine = known_motion(GRID, 2.0)
    still = DisplacementTransform(GRID, torch.zeros_like(field.u_mm))
    identity = AffineTransform(np.eye(4))
    maps = [CompositeTransform((field, affine)), CompositeTransform((still, identity))]
    ways = _Ways(maps, [way.inverse() for way in maps], [affine.moving_from_fixed, np.eye(4)])
    assert _off_centre_mm(ways.there, GRID) > 1
    found = _centred(ways, GRID)
    inside = GRID.world_from_index(np.argwhere(np.ones((8, 10, 12))) + 3.0)
    mean = np.mean([way.map_points(inside) for way in found.there], axis=0)
    assert np.abs(mean - inside).max() < 0.02
    for there, back in zip(found.there, found.back, strict=True):
        assert np.abs(back.map_points(there.map_points(inside)) - inside).max() < 0.02


def test_maps_are_centred_at_the_border_too():
    """Maps fade in a ring around the template, so their mean has a motion at its border."""
    field, affine = known_motion(GRID.padded([4, 4, 4], [4, 4, 4]), 4.0)
    still = DisplacementTransform(field.grid, torch.zeros_like(field.u_mm))
    maps = [CompositeTransform((field, affine)), CompositeTransform((still, affine))]
    ways = _Ways(maps, [way.inverse() for way in maps], [affine.moving_from_fixed] * 2)
    assert _off_centre_mm(ways.there, GRID) > 1
    assert _off_centre_mm(_centred(ways, GRID).there, GRID) < 0.05


def test_sharpening_adds_what_smoothing_takes():
    data = torch.zeros(9, 9, 9)
    data[4:] = 0.5
    grid = hostile_grid((9, 9, 9))
    nothing = Volume(torch.zeros_like(data), grid, "deviation")
    look = Look(Volume(data, grid, "mean"), nothing, torch.ones(data.shape, dtype=torch.bool))
    assert torch.equal(look.sharpened(0.0).data, data)
    sharp = look.sharpened(1.0).data
    assert sharp[4, 4, 4] > 0.5
    assert sharp[8, 4, 4] == pytest.approx(0.5, abs=1e-4)
    assert sharp.min() >= 0


def test_an_image_that_is_cut_says_nothing_beyond_its_view():
    """Two views of one scene: where only one of them reaches, the mean is that one, not half of it."""
    grid = Grid((12, 10, 10), np.eye(4))
    scene = torch.rand(grid.shape, generator=torch.Generator().manual_seed(1)) + 1
    whole = Volume(scene, grid, "whole")
    part = Volume(scene[:8], grid.cropped([0, 0, 0], [8, 10, 10]), "part")
    ways = [AffineTransform(np.eye(4))] * 2
    look = Look.of([whole, part], ways, grid)
    alone = Look.of([whole], ways[:1], grid)
    assert torch.allclose(look.mean.data[8:], alone.mean.data[8:], atol=1e-6)
    assert look.deviation.data[8:].max() < 1e-3
    third = Look.of([whole, part, part], [*ways, ways[0]], grid)
    assert third.reached[:8].all()
    assert not third.reached[8:].any()
    facts = third.facts("now", Look.of([part], ways[:1], grid))
    assert facts["change"] < 2e-3  # beyond the view, where one look has nothing, it is a half
    inner = Volume(third.mean.data[:7], grid.cropped([0, 0, 0], [7, 10, 10]), "mean")
    assert facts["gradient_per_mm"] == pytest.approx(gradient_per_mm(inner), rel=0.1)
    empty = scene.clone()
    empty[:, :2], empty[:, -2:], empty[:, :, :2], empty[:, :, -2:], empty[:2], empty[6:] = [0] * 6
    objects = [Volume(empty, grid, "object"), Volume(empty[:8], part.grid, "its view")]
    assert Look.of(objects, ways, grid).mean.data[8:].max() == 0


def test_the_most_frequent_label_and_the_smallest_on_a_tie():
    maps = [np.array([3, 3, 1, 0]), np.array([3, 2, 2, 5]), np.array([1, 2, 7, 5])]
    assert most_frequent(maps).tolist() == [3, 2, 1, 5]


def test_gradients_are_per_mm_and_less_where_edges_are_blurred():
    grid = Grid((9, 6, 6), np.eye(4))
    edge, blurred = torch.zeros(grid.shape), torch.zeros(grid.shape)
    edge[4:], blurred[5:], blurred[4], blurred[3] = 1, 1, 2 / 3, 1 / 3
    assert gradient_per_mm(Volume(blurred, grid, "x")) < 0.9 * gradient_per_mm(Volume(edge, grid, "x"))
    ramp = torch.arange(8.0)[:, None, None].expand(8, 6, 6).clone()
    assert gradient_per_mm(Volume(ramp, Grid((8, 6, 6), np.diag([1, 1, 2.0, 1])), "x")) == 1
    step = Grid((8, 6, 6), np.array([[0, 0, 1, 0], [0, 1, 0, 0], [2.0, 0, 0, 0], [0, 0, 0, 1]]))
    assert gradient_per_mm(Volume(ramp, step, "x")) == pytest.approx(0.5)


@pytest.mark.parametrize("flags", [{"rounds": -1}, {"sharpening": -0.1}, {"sharpening": 10}])
def test_senseless_wishes_are_refused(images, flags):
    with pytest.raises(SettingsError, match="A template needs"):
        build_template(images, QUICK, **flags)


def test_one_image_is_no_group(images):
    with pytest.raises(InputError):
        build_template(images[:1], QUICK)


def test_the_command_writes_what_was_built(images, built, tmp_path, monkeypatch, capsys):
    from DiffeoRegLib.volumes.files import write_volume

    files = []
    for number, image in enumerate(images):
        files.append(tmp_path / f"{number}.nii.gz")
        write_volume(image, files[-1])
    seen = {}

    def build(images, settings, **options):
        seen.update(options, settings=settings)
        for message in ("all together: Common grid", "round 1: This run needs"):
            options["progress"](Progress("plan", 0.1, message))
        return built[0]

    monkeypatch.setattr(command, "build_template", build)
    maps = []
    for number in range(len(images)):
        maps.append(tmp_path / f"labels{number}.nii.gz")
        write_volume(labels_of(images[number]), maps[-1])
    words = ["template", *files, "-o", tmp_path / "out", "--labels", *maps, "--rounds", 2]
    words += ["--effort", "fast"]
    assert run(*words) == 0
    told = capsys.readouterr()
    assert "\nall together: Common grid\n" in told.err  # of the group, before anything is sought
    assert "This run needs" not in told.err  # of every pair: too much
    assert [one.is_labels for one in seen["labels"]] == [True] * 3
    assert (seen["rounds"], seen["sharpening"], seen["settings"].effort) == (2, 1.0, "fast")
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == {
        "template.nii.gz", "mean.nii.gz", "deviation.nii.gz", "template.png", "report.json",
        "labels.nii.gz",
        *(f"template_to_{k:03d}.h5" for k in range(3)), *(f"{k:03d}_to_template.h5" for k in range(3)),
    }  # fmt: skip
    assert read_volume(out / "template.nii.gz").grid.same_as(GRID)
    points = GRID.world_from_index(np.array([[6.0, 8, 9]]))
    stored = read_transform(out / "template_to_002.h5").map_points(points)
    assert np.abs(stored - built[0].transforms[2].map_points(points)).max() < 0.05
    assert json.loads((out / "report.json").read_text(encoding="utf-8"))["stages"][0]["stage"] == "as given"
    assert (out / "template.png").read_bytes().startswith(b"\x89PNG")
    assert "as a group" in told.out
    assert "Dice" in told.out
    assert run(*words, "--quiet") == 3
    assert "--overwrite" in one_sentence(capsys)
    assert run(*words, "--overwrite", "--quiet") == 0
