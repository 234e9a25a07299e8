"""Geodesic methods in the worker: regions, the momentum as the scene keeps it, the way shot again from it."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest

from DiffeoRegLib.errors import FileFormatError, InputError, SettingsError
from DiffeoRegLib.exchange import Image, pack, unpack
from DiffeoRegLib.pipeline import register
from DiffeoRegLib.space.sample import array_from_tensor
from DiffeoRegLib.worker import geodesics, inputs, jobs
from DiffeoRegLib.worker.cubic import thick_grid
from Testing.scenes import Scene, points_of, turned_grid
from Testing.worker_jobs import FIXED, MOVING, pair, registration

KERNELS = [0.15, 0.2, 0.3, 0.4]
QUICK = {
    "effort": "fast", "device": "cpu", "levels_mm": [4.0], "iterations": [3],
    "working_spacing_mm": 2.0, "kernel_sigmas": KERNELS,
}  # fmt: skip
OUTPUTS = {"moved": True, "velocity": True, "jacobian": False, "regulariser": True}
START = [{"matrix": [[1.01, 0.02, 0, 0.6], [-0.02, 1, 0, -0.4], [0, 0, 0.99, 0.3], [0, 0, 0, 1]]}]
POINTS = points_of(FIXED)[::13]
PLACE = {"shape": list(FIXED.shape), "world_from_voxel": FIXED.world_from_voxel.tolist()}


def silent(step) -> None:
    """Nobody looks at the progress."""


def tissue() -> Image:
    """Two regions of the moving image: 1 in its middle, 2 beside it."""
    labels = np.zeros(MOVING.shape, np.int16)
    labels[5:12, 5:11, 5:12] = 1
    labels[12:16, 4:10, 4:10] = 2
    return Image(labels, MOVING.world_from_voxel, "tissue")


def regional(settings=None, **changes):
    """A job with regions."""
    given = {
        "regions": tissue(), "stiffness": {"1": "soft", "2": [0, 0, 1, 0]}, "rest": "rigid-like",
        "outputs": OUTPUTS, "storage": "full", "initial": START,
    }  # fmt: skip
    chosen = {**QUICK, "method": "rdmm-regions", **(settings or {})}
    return registration(chosen, **{**given, **changes})


@pytest.fixture(scope="module")
def answer(tmp_path_factory):
    """The answer to a job with regions, as it arrives on the other side."""
    folder = tmp_path_factory.mktemp("exchange")
    pack(jobs.run(regional(), silent), folder, "result")
    return unpack(folder, "result")


def way(answer, fraction: float, **changes):
    """The job of one position."""
    return {
        "kind": "shoot", "geodesic": answer["geodesic"], "fraction": fraction, "fixed": PLACE,
        "storage": "full", **changes,
    }  # fmt: skip


def map_points(parts, points):
    return inputs.transform_of(parts).map_points(points)


def test_regions_and_their_stiffness_reach_the_engine(answer):
    regions = answer["report"]["regions"]
    assert [found["stiffness"] for found in regions.values()] == ["soft", [0.0, 0.0, 1.0, 0.0], "rigid-like"]
    assert list(regions) == ["1", "2", "rest"]
    job = regional()
    direct = register(
        *pair(), inputs.settings_of(job["settings"]),
        initial=inputs.transform_of(START), regions=inputs.regions_of(job),
    )  # fmt: skip
    np.testing.assert_allclose(
        map_points(answer["transform"], POINTS), direct.transform.map_points(POINTS), atol=1e-4
    )


def test_the_widths_lie_on_both_images(answer):
    start, end = answer["sigma"]["moving"], answer["sigma"]["fixed"]
    np.testing.assert_array_equal(start.world_from_voxel, MOVING.world_from_voxel)
    np.testing.assert_array_equal(end.world_from_voxel, FIXED.world_from_voxel)
    assert (start.array.shape, end.array.shape) == (MOVING.shape, FIXED.shape)
    labels = tissue().array
    assert start.array[labels == 1].mean() < start.array[labels == 0].mean() - 1.0


def test_at_the_end_it_is_the_transform_of_the_run(answer):
    again = jobs.run(way(answer, 1.0, inverse=True), silent)
    for name in ("transform", "inverse"):
        assert len(again[name]) == len(answer[name])
        for part, given in zip(again[name], answer[name], strict=True):
            if "matrix" in part:
                np.testing.assert_array_equal(part["matrix"], given["matrix"])
            else:
                np.testing.assert_array_equal(part["displacement"].array, given["displacement"].array)
    assert "inverse" not in jobs.run(way(answer, 1.0), silent)


def test_half_way_is_invertible_and_nothing_has_moved_at_the_start(answer):
    half = jobs.run(way(answer, 0.5, inverse=True), silent)
    moved = map_points(half["transform"], POINTS)
    whole = map_points(answer["transform"], POINTS)
    gone = np.linalg.norm(moved - POINTS, axis=1).mean() / np.linalg.norm(whole - POINTS, axis=1).mean()
    assert 0.4 < gone < 0.6
    assert np.abs(map_points(half["inverse"], moved) - POINTS).max() < 0.1
    start = jobs.run(way(answer, 0.0), silent)["transform"]
    np.testing.assert_allclose(map_points(start, POINTS), POINTS, atol=1e-5)


def test_the_next_position_does_not_begin_anew(answer, monkeypatch):
    shot = []
    monkeypatch.setattr(jobs, "FOLLOWED", geodesics.Followed())
    monkeypatch.setattr(geodesics, "unpacked", lambda *given: shot.append(given) or unpacked(*given))
    first = jobs.run(way(answer, 0.3), silent)["transform"]
    jobs.run(way(answer, 0.6), silent)
    assert len(shot) == 1
    other = copy.deepcopy(answer)
    other["geodesic"]["arrays"]["0.momentum"].array[:] *= 0.5
    slower = jobs.run(way(other, 0.3), silent)["transform"]
    assert len(shot) == 2
    assert np.abs(map_points(first, POINTS) - map_points(slower, POINTS)).max() > 1e-3
    monkeypatch.setattr(geodesics, "MOST_KEPT_BYTES", 1000)
    jobs.run(way(answer, 0.3), silent)
    jobs.run(way(answer, 0.6), silent)
    assert len(shot) == 4


unpacked = geodesics.unpacked


@pytest.mark.parametrize("method", ["lddmm", "rdmm"])
def test_the_other_geodesic_methods_keep_their_momentum(method):
    job = registration({**QUICK, "method": method}, outputs=OUTPUTS, initial=START)
    found = jobs.run(job, silent)
    assert found["velocity"] is None
    assert len(found["geodesic"]["arrays"]) == {"lddmm": 1, "rdmm": 2}[method]
    json.dumps(found["geodesic"]["description"], allow_nan=False)
    end = map_points(jobs.run(way(found, 1.0), silent)["transform"], POINTS)
    np.testing.assert_allclose(end, map_points(found["transform"], POINTS), atol=0.02)


def test_a_stationary_velocity_of_kernels_keeps_its_velocity():
    found = jobs.run(registration({**QUICK, "method": "vsvf"}, outputs=OUTPUTS, initial=START), silent)
    assert found["geodesic"] is found["sigma"] is None
    assert found["velocity"]["field"].array.shape[3] == 3


def test_what_was_not_asked_for_is_left_out():
    found = jobs.run(regional(outputs={"moved": False}), silent)
    assert found["geodesic"] is found["sigma"] is found["moved"] is None


def test_a_start_that_is_a_deformation_has_no_momentum_to_keep(answer):
    found = jobs.run(regional(initial=answer["transform"]), silent)
    assert found["geodesic"] is None
    assert any("started from a deformation" in note for note in found["report"]["notes"])
    assert found["sigma"]["moving"].array.shape == MOVING.shape


@pytest.mark.parametrize("axis", [0, 2])
def test_slices_are_shot_in_two_dimensions(axis):
    grid = turned_grid((28, 30), (1.2, 1.0), 20)
    scene, images = Scene(size_mm=2.0, flat=True), {}
    for name, volume in (("fixed", scene.fixed(grid)), ("moving", scene.moving(grid))):
        array = np.expand_dims(array_from_tensor(volume.data), axis)
        images[name] = Image(array, thick_grid(grid, axis).world_from_voxel, name)
    settings = {**QUICK, "method": "lddmm", "init": "identity"}
    found = jobs.run(registration(settings, outputs=OUTPUTS, **images), silent)
    shape = images["fixed"].array.shape
    momentum = found["geodesic"]["arrays"]["0.momentum"]
    assert momentum.array.shape[axis] == 1
    assert momentum.array.shape[3] == 2
    assert found["sigma"]["moving"].array.shape == shape
    place = {"shape": list(shape), "world_from_voxel": images["fixed"].world_from_voxel.tolist()}
    again = jobs.run(way(found, 1.0, fixed=place, storage="half"), silent)["transform"]
    points = points_of(grid)
    np.testing.assert_array_equal(map_points(again, points), map_points(found["transform"], points))


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"regions": None, "stiffness": {}}, InputError, "regions"),
        ({"stiffness": {"1": "hard"}}, SettingsError, "'hard'"),
        ({"stiffness": {"1": [1.0, 2.0]}}, SettingsError, "4"),
        ({"rest": [0.0] * 4}, SettingsError, "not all 0"),
        ({"stiffness": {"9": "soft"}}, InputError, "none of the labels"),
    ],
)
def test_regions_that_cannot_be_used_are_refused(changes, error, words):
    with pytest.raises(error, match=words):
        jobs.run(regional(**changes), silent)


def without_momentum(found):
    del found["geodesic"]["arrays"]["0.momentum"]


def not_finite(found):
    found["geodesic"]["arrays"]["0.momentum"].array[3, 3, 3, 1] = np.nan


def of_another_format(found):
    found["geodesic"]["description"]["format"] = "later"


@pytest.mark.parametrize("damage", [without_momentum, not_finite, of_another_format])
def test_a_momentum_that_is_damaged_is_refused(answer, damage):
    damaged = copy.deepcopy(answer)
    damage(damaged)
    with pytest.raises(FileFormatError, match="The momentum"):
        jobs.run(way(damaged, 0.5), silent)


@pytest.mark.parametrize("fraction", [-0.1, 1.1, float("nan")])
def test_only_fractions_of_the_way_exist(answer, fraction):
    with pytest.raises(InputError, match="between 0 and 1"):
        jobs.run(way(answer, fraction), silent)
