"""Templates: no image is preferred, what they show is the middle, and the order does not count."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from DiffeoRegLib.cli import template as command
from DiffeoRegLib.errors import InputError, SettingsError
from DiffeoRegLib.methods.base import Progress
from DiffeoRegLib.settings import Settings
from DiffeoRegLib.space.transform import AffineTransform, CompositeTransform, DisplacementTransform
from DiffeoRegLib.template import _centred, _Look, _off_centre_mm, _Ways, build_template
from DiffeoRegLib.volumes.files import read_volume
from DiffeoRegLib.volumes.resample import warp_volume
from DiffeoRegLib.volumes.transform_files import read_transform
from DiffeoRegLib.volumes.volume import Volume
from Testing.command import one_sentence, run
from Testing.fake_run import blobs, hostile_grid, known_motion

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
def built(images):
    told = []
    result = build_template(images, QUICK, rounds=1, sharpening=0.5, progress=told.append)
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
    look = _Look(Volume(data, grid, "mean"), Volume(torch.zeros_like(data), grid, "deviation"))
    assert torch.equal(look.sharpened(0.0).data, data)
    sharp = look.sharpened(1.0).data
    assert sharp[4, 4, 4] > 0.5
    assert sharp[8, 4, 4] == pytest.approx(0.5, abs=1e-4)
    assert sharp.min() >= 0


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
        return built[0]

    monkeypatch.setattr(command, "build_template", build)
    words = ["template", *files, "-o", tmp_path / "out", "--rounds", 2, "--effort", "fast", "--quiet"]
    assert run(*words) == 0
    assert (seen["rounds"], seen["sharpening"], seen["settings"].effort) == (2, 1.0, "fast")
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == {
        "template.nii.gz", "mean.nii.gz", "deviation.nii.gz", "template.png", "report.json",
        *(f"template_to_{k:03d}.h5" for k in range(3)), *(f"{k:03d}_to_template.h5" for k in range(3)),
    }  # fmt: skip
    assert read_volume(out / "template.nii.gz").grid.same_as(GRID)
    points = GRID.world_from_index(np.array([[6.0, 8, 9]]))
    stored = read_transform(out / "template_to_002.h5").map_points(points)
    assert np.abs(stored - built[0].transforms[2].map_points(points)).max() < 0.05
    assert json.loads((out / "report.json").read_text(encoding="utf-8"))["stages"][0]["stage"] == "as given"
    assert (out / "template.png").read_bytes().startswith(b"\x89PNG")
    assert "as a group" in capsys.readouterr().out
    assert run(*words) == 3
    assert "--overwrite" in one_sentence(capsys)
    assert run(*words, "--overwrite") == 0
