"""Velocities that change in time in the worker: kept as the scene keeps them, and followed from there."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest

from DiffeoRegLib.errors import FileFormatError, InputError, SettingsError
from DiffeoRegLib.exchange import Image, pack, unpack
from DiffeoRegLib.space.sample import array_from_tensor
from DiffeoRegLib.worker import inputs, jobs
from DiffeoRegLib.worker.cubic import thick_grid
from Testing.scenes import Scene, points_of, turned_grid
from Testing.velocity_cases import FIELDS, network_weights
from Testing.worker_jobs import FIXED, registration

START = [{"matrix": [[1.01, 0.02, 0, 0.6], [-0.02, 1, 0, -0.4], [0, 0, 0.99, 0.3], [0, 0, 0, 1]]}]
POINTS = points_of(FIXED)[::13]
PLACE = {"shape": list(FIXED.shape), "world_from_voxel": FIXED.world_from_voxel.tolist()}


def silent(step) -> None:
    """Nobody looks at the progress."""


def settings_for(weights, **changes):
    return {"method": "transmorph-tvf", "effort": "fast", "device": "cpu", "weights": str(weights), **changes}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return network_weights(tmp_path_factory.mktemp("weights") / "tiny.safetensors")


@pytest.fixture(scope="module")
def answer(weights, tmp_path_factory):
    """The answer to a job, as it arrives on the other side."""
    folder = tmp_path_factory.mktemp("exchange")
    job = registration(settings_for(weights, steps=6), initial=START, storage="full")
    pack(jobs.run(job, silent), folder, "result")
    return unpack(folder, "result")


def way(answer, fraction: float, **changes):
    """The job of one position."""
    return {
        "kind": "follow", "velocities": answer["velocities"], "fraction": fraction, "fixed": PLACE,
        "storage": "full", **changes,
    }  # fmt: skip


def map_points(parts, points):
    return inputs.transform_of(parts).map_points(points)


def test_all_velocities_are_kept_with_what_they_are_followed_by(answer):
    assert answer["velocity"] is answer["geodesic"] is None
    kept = answer["velocities"]
    assert list(kept["arrays"]) == [f"velocity.{n}" for n in range(1, FIELDS + 1)]
    assert {image.array.shape[3] for image in kept["arrays"].values()} == {3}
    assert (kept["description"]["steps"], kept["description"]["order"]) == (6, "paper")
    assert answer["report"]["steps"] == 6
    json.dumps(kept["description"], allow_nan=False)


def test_at_the_end_it_is_the_transform_of_the_run(answer):
    again = jobs.run(way(answer, 1.0, inverse=True), silent)
    for name in ("transform", "inverse"):
        assert len(again[name]) == len(answer[name]) == 2
        for part, given in zip(again[name], answer[name], strict=True):
            if "matrix" in part:
                np.testing.assert_array_equal(part["matrix"], given["matrix"])
            else:
                np.testing.assert_array_equal(part["displacement"].array, given["displacement"].array)
    assert "inverse" not in jobs.run(way(answer, 1.0), silent)


def test_half_way_is_invertible_and_nothing_has_moved_at_the_start(answer):
    half = jobs.run(way(answer, 0.5, inverse=True), silent)
    moved, whole = map_points(half["transform"], POINTS), map_points(answer["transform"], POINTS)
    gone = np.linalg.norm(moved - POINTS, axis=1).mean() / np.linalg.norm(whole - POINTS, axis=1).mean()
    assert 0.3 < gone < 0.7
    assert np.abs(map_points(half["inverse"], moved) - POINTS).max() < 0.1
    start = jobs.run(way(answer, 0.0), silent)["transform"]
    np.testing.assert_allclose(map_points(start, POINTS), POINTS, atol=1e-5)


def test_a_start_that_is_a_deformation_has_no_way_to_keep(answer, weights):
    found = jobs.run(registration(settings_for(weights), initial=answer["transform"]), silent)
    assert found["velocities"] is found["velocity"] is None
    assert any(note.startswith("The velocities are not kept") for note in found["report"]["notes"])


def test_slices_are_followed_in_two_dimensions(tmp_path):
    weights, axis = network_weights(tmp_path / "flat.safetensors", dim=2), 2
    grid = turned_grid((36, 40), (1.2, 1.0), 20)
    scene, images = Scene(size_mm=2.0, flat=True), {}
    for name, volume in (("fixed", scene.fixed(grid)), ("moving", scene.moving(grid))):
        array = np.expand_dims(array_from_tensor(volume.data), axis)
        images[name] = Image(array, thick_grid(grid, axis).world_from_voxel, name)
    job = registration(settings_for(weights, init="identity"), **images)
    found = jobs.run(job, silent)
    first = found["velocities"]["arrays"]["velocity.1"]
    assert (first.array.shape[axis], first.array.shape[3]) == (1, 2)
    place = {
        "shape": list(images["fixed"].array.shape),
        "world_from_voxel": images["fixed"].world_from_voxel.tolist(),
    }
    again = jobs.run(way(found, 1.0, fixed=place, storage="half"), silent)["transform"]
    points = points_of(grid)
    np.testing.assert_array_equal(map_points(again, points), map_points(found["transform"], points))
    assert np.abs(map_points(again, points) - points).max() > 0.5


def test_what_was_not_asked_for_is_left_out_and_steps_out_of_range_are_refused(weights):
    found = jobs.run(registration(settings_for(weights), outputs={"moved": False}), silent)
    assert found["velocities"] is found["moved"] is None
    with pytest.raises(SettingsError, match="takes 1 to 128 time steps"):
        jobs.run(registration(settings_for(weights, steps=129)), silent)


def without_one(found):
    del found["velocities"]["arrays"]["velocity.2"]


def not_finite(found):
    found["velocities"]["arrays"]["velocity.1"].array[1, 1, 1, 1] = np.nan


def of_another_format(found):
    found["velocities"]["description"]["format"] = "later"


@pytest.mark.parametrize("damage", [without_one, not_finite, of_another_format])
def test_velocities_that_are_damaged_are_refused(answer, damage):
    damaged = copy.deepcopy(answer)
    damage(damaged)
    with pytest.raises(FileFormatError, match="The velocities"):
        jobs.run(way(damaged, 0.5), silent)


@pytest.mark.parametrize("fraction", [-0.1, 1.1, float("nan")])
def test_only_fractions_of_the_way_exist(answer, fraction):
    with pytest.raises(InputError, match="between 0 and 1"):
        jobs.run(way(answer, fraction), silent)
