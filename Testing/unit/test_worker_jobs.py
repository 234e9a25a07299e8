"""The worker's jobs, called directly: what comes out is what the engine computed, as parts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch

from DiffeoRegLib.errors import GeometryError, InputError, SettingsError
from DiffeoRegLib.exchange import Image
from DiffeoRegLib.flows.exponential import exp
from DiffeoRegLib.flows.integrate import integrate
from DiffeoRegLib.flows.inversion import invert
from DiffeoRegLib.pipeline import register
from DiffeoRegLib.space.field import u_mm_from_vox
from DiffeoRegLib.space.filters import gaussian_smooth
from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.space.sample import array_from_tensor
from DiffeoRegLib.space.transform import CompositeTransform, DisplacementTransform
from DiffeoRegLib.volumes.pathology import Pathology
from DiffeoRegLib.volumes.volume import Volume
from DiffeoRegLib.worker import inputs, jobs
from DiffeoRegLib.worker.cubic import thick_grid
from DiffeoRegLib.worker.powers import matrix_power
from DiffeoRegLib.worker.stored import field_image, folded
from Testing.scenes import Scene, points_of, smooth_velocity, turned_grid
from Testing.worker_jobs import FIXED, QUICK, image, pair, registration

POINTS = points_of(FIXED)[::13]
TURN = np.array([[0.9, -0.4, 0, 6], [0.4, 0.9, 0.1, -2], [0, 0, 1.1, 3], [0, 0, 0, 1.0]])


def silent(step) -> None:
    """Nobody looks at the progress."""


def map_points(parts, points):
    return inputs.transform_of(parts).map_points(points)


@pytest.fixture(scope="module")
def direct():
    """The registration of `pair`, without any worker."""
    return register(*pair(), inputs.settings_of(QUICK))


@pytest.fixture(scope="module")
def answer():
    """The answer to the job of registering `pair`."""
    return jobs.run(registration(storage="full"), silent)


def test_the_transform_and_its_inverse_are_the_engines(direct, answer):
    moved = direct.transform.map_points(POINTS)
    assert np.linalg.norm(moved - POINTS, axis=1).max() > 1.0
    np.testing.assert_allclose(map_points(answer["transform"], POINTS), moved, atol=1e-4)
    back = direct.inverse.map_points(moved)
    np.testing.assert_allclose(map_points(answer["inverse"], moved), back, atol=0.1)
    assert [next(iter(part)) for part in answer["transform"]] == ["displacement", "matrix"]
    assert [next(iter(part)) for part in answer["inverse"]] == ["matrix", "displacement"]
    np.testing.assert_allclose(answer["initial"][0]["matrix"], direct.initial.moving_from_fixed)


def test_the_moved_image_lies_on_the_fixed_voxels(direct, answer):
    moved = answer["moved"]
    assert moved.array.dtype == np.float32
    np.testing.assert_array_equal(moved.world_from_voxel, FIXED.world_from_voxel)
    error = np.abs(moved.array - array_from_tensor(direct.moved.data))
    assert error.max() < 0.05 * np.ptp(moved.array)


def test_the_determinant_is_that_of_the_stored_deformation(answer):
    middle = FIXED.world_from_index([8.0, 9, 10])
    step = np.concatenate([np.eye(3), -np.eye(3)]) * 0.9
    read = map_points(answer["transform"][:1], middle + step)
    determinant = np.linalg.det((read[:3] - read[3:]).T / 1.8)
    assert answer["jacobian"].array.shape == FIXED.shape
    assert answer["jacobian"].array[8, 9, 10] == pytest.approx(determinant, abs=0.03)
    assert answer["jacobian"].array.std() > 0.01


def test_the_report_says_how_far_the_stored_transform_is(direct, answer):
    stored = answer["report"]["transform"]
    assert stored["stored_error_mm"]["p95"] < 0.05
    assert stored["grid"] == list(answer["transform"][0]["displacement"].array.shape[2::-1])
    assert answer["report"]["folds"] == direct.report["folds"]


def test_what_was_not_asked_for_is_left_out():
    linear = {**QUICK, "method": "affine", "init": "identity"}
    outputs = {"moved": False, "velocity": True, "jacobian": True}
    answer = jobs.run(registration(linear, outputs=outputs), silent)
    assert answer["moved"] is answer["velocity"] is answer["jacobian"] is None
    assert answer["report"]["transform"]["grid"] is None
    assert [next(iter(part)) for part in answer["transform"]] == ["matrix"]


def test_the_velocity_leads_back_to_the_transform_and_half_way(answer):
    velocity = answer["velocity"]
    ends = {
        fraction: jobs.run(way(velocity["field"], velocity["steps"], answer["initial"], fraction), silent)
        for fraction in (0.0, 0.5, 1.0)
    }
    np.testing.assert_allclose(map_points(ends[0.0]["transform"], POINTS), POINTS, atol=1e-6)
    whole = map_points(answer["transform"], POINTS)
    np.testing.assert_allclose(map_points(ends[1.0]["transform"], POINTS), whole, atol=1e-3)
    half = ends[0.5]["transform"][0]["displacement"]
    twice = map_points([{"displacement": half}] * 2, POINTS)
    error = np.linalg.norm(twice - map_points(answer["transform"][:1], POINTS), axis=1)
    assert np.percentile(error, 95) < 0.15


def way(field: Image, steps: int, initial, fraction: float) -> dict:
    place = {"shape": list(FIXED.shape), "world_from_voxel": FIXED.world_from_voxel.tolist()}
    return {
        "kind": "flow", "fraction": fraction, "velocity": field, "steps": steps, "initial": initial,
        "fixed": place, "storage": "full",
    }  # fmt: skip


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_are_registered_in_two_dimensions_and_come_back_in_three(axis):
    grid = turned_grid((28, 30), (1.2, 1.0), 20)
    scene = Scene(size_mm=2.0, flat=True)
    images = {}
    for name, volume in (("fixed", scene.fixed(grid)), ("moving", scene.moving(grid))):
        array = np.expand_dims(array_from_tensor(volume.data), axis)
        images[name] = Image(array, thick_grid(grid, axis).world_from_voxel, name)
    answer = jobs.run(registration(**images), silent)
    direct = register(scene.fixed(grid), scene.moving(grid), inputs.settings_of(QUICK))
    points = points_of(grid)
    moved = direct.transform.map_points(points)
    assert np.linalg.norm(moved - points, axis=1).max() > 0.5
    np.testing.assert_allclose(map_points(answer["transform"], points), moved, atol=0.2)
    shape = images["fixed"].array.shape
    assert answer["moved"].array.shape == answer["jacobian"].array.shape == shape
    np.testing.assert_allclose(answer["moved"].world_from_voxel, images["fixed"].world_from_voxel, atol=1e-12)
    job = way(answer["velocity"]["field"], answer["velocity"]["steps"], answer["initial"], 1.0)
    job["fixed"] = {"shape": list(shape), "world_from_voxel": images["fixed"].world_from_voxel}
    again = jobs.run({**job, "storage": "half"}, silent)["transform"]
    np.testing.assert_allclose(map_points(again, points), map_points(answer["transform"], points), atol=1e-3)


def test_a_non_linear_start_comes_back_as_it_was_given(direct):
    bend = DisplacementTransform(FIXED, 0.2 * u_mm_from_vox(smooth_velocity(FIXED.shape, 1.0), FIXED))
    initial = [{"displacement": field_image(bend.u_mm, FIXED)}, {"matrix": np.diag([1, 1, 1.02, 1]).tolist()}]
    answer = jobs.run(registration(initial=initial, storage="full"), silent)
    assert [next(iter(part)) for part in answer["transform"]] == ["displacement", "displacement", "matrix"]
    given = answer["initial"][0]["displacement"].array
    np.testing.assert_array_equal(given, initial[0]["displacement"].array)
    there = map_points(answer["initial"], POINTS)
    back = map_points(answer["inverse"][:2], there)  # the matrix and the field that were given, undone
    np.testing.assert_allclose(back, POINTS, atol=0.02)
    assert [next(iter(part)) for part in answer["inverse"]] == ["matrix", "displacement", "displacement"]


def test_masks_labels_and_landmarks_reach_the_engine():
    fixed, moving = pair()
    scene = Scene(size_mm=3.0)
    labels = [image(scene.labels(volume)) for volume in (fixed, moving)]
    points = scene.landmarks(6)
    job = registration(
        masks={"fixed": labels[0], "moving": None, "exclude_fixed": False, "exclude_moving": False},
        evaluation={
            "fixed_labels": labels[0], "moving_labels": labels[1],
            "fixed_points_mm": points[0].tolist(), "moving_points_mm": points[1].tolist(),
        },
    )  # fmt: skip
    report = jobs.run(job, silent)["report"]
    assert report["labels"] is not None
    assert report["landmarks"] is not None
    assert report["inputs"]["fixed_mask"]["excludes"] is False


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"kind": "dance"}, InputError, "There is no job"),
        ({"storage": "tiny"}, InputError, "half"),
        ({"settings": {"effort": "none"}}, SettingsError, "effort"),
        ({"settings": {"efort": "fast"}}, SettingsError, "Did you mean 'effort'"),
        ({"fixed": Image(np.zeros((4, 4, 4, 3)), np.eye(4), "colours")}, InputError, "'colours'"),
        ({"fixed": Image(np.zeros((4, 4, 4)), np.zeros((4, 4)), "flat")}, GeometryError, "'flat'"),
        ({"pathology": {"fixed": Image(np.zeros((4, 4, 4), np.uint8), np.eye(4))}}, InputError, "pathology"),
        ({"regions": Image(np.zeros((4, 4, 4), np.uint8), np.eye(4))}, InputError, "regions"),
    ],
)
def test_what_cannot_be_done_is_refused_in_a_sentence(changes, error, words):
    with pytest.raises(error, match=words):
        jobs.run(registration(**changes), silent)


@pytest.mark.parametrize("fraction", [-0.1, 1.1, float("nan")])
def test_only_fractions_of_the_way_exist(fraction):
    field = field_image(smooth_velocity(FIXED.shape), FIXED)
    with pytest.raises(InputError, match="between 0 and 1"):
        jobs.run(way(field, 4, None, fraction), silent)


def test_part_of_the_way_stays_invertible():
    velocity = smooth_velocity(FIXED.shape, 3.0)
    flow = integrate(velocity, FIXED, FIXED, taper_mm=12.0)
    field = field_image(u_mm_from_vox(flow.velocity_vox, flow.grid), flow.grid)
    for fraction in (0.25, 0.75):
        parts = jobs.run(way(field, flow.steps, [{"matrix": TURN.tolist()}], fraction), silent)["transform"]
        transform = inputs.transform_of(parts)
        assert isinstance(transform, CompositeTransform)
        error = transform.inverse().map_points(transform.map_points(POINTS)) - POINTS
        assert np.abs(error).max() < 1e-4


def test_a_matrix_is_gone_in_equal_steps():
    half, note = matrix_power(TURN, 0.5)
    assert note is None
    np.testing.assert_allclose(half @ half, TURN, atol=1e-10)
    np.testing.assert_allclose(matrix_power(TURN, 0.0)[0], np.eye(4), atol=1e-12)
    np.testing.assert_array_equal(matrix_power(TURN, 1.0)[0], TURN)
    np.testing.assert_allclose(
        scipy.linalg.expm(4 * scipy.linalg.logm(matrix_power(TURN, 0.25)[0])), TURN, atol=1e-10
    )


def test_a_mirror_is_applied_whole_and_said_so():
    mirror = np.diag([-1.0, 1, 1, 1])
    part, note = matrix_power(mirror, 0.5)
    np.testing.assert_array_equal(part, mirror)
    assert "whole" in note


def test_the_probe_names_the_device():
    answer = jobs.run({"kind": "probe"}, silent)
    assert answer["device"]["name"]
    assert answer["cuda"] is (answer["device"]["device"] == "cuda")
    assert answer["torch"]


def test_what_would_fold_at_half_resolution_is_stored_at_full():
    grid = Grid((24, 24, 24), np.eye(4))
    window = torch.zeros(24)
    window[3:21] = torch.hann_window(18, periodic=False)
    noise = torch.randn(1, 3, *grid.shape, generator=torch.Generator().manual_seed(1))
    fade = window.view(-1, 1, 1) * window.view(1, -1, 1) * window
    for amplitude, full in ((4.0, True), (0.5, False)):
        u_vox = exp(gaussian_smooth(noise, 1.0) * amplitude * fade, 8)
        fields = [
            DisplacementTransform(grid, u_mm_from_vox(u, grid)) for u in (u_vox, invert(u_vox, "mixed", 1e-4))
        ]
        result: Any = SimpleNamespace(transform=fields[0], inverse=fields[1])
        volume = Volume(torch.zeros(grid.shape), grid)
        kept = jobs._Kept(result, volume, volume, "half", None)
        assert folded(kept.forward) == folded(kept.backward) == 0
        assert (kept.forward[0].grid.spacing == (1.0, 1.0, 1.0)) is full
        assert any("full resolution" in note for note in kept.notes) is full


def test_a_pathology_gives_four_volumes_under_one_key():
    fixed, moving = pair()
    lesion = torch.zeros(fixed.grid.shape, dtype=torch.int32)
    lesion[5:11, 6:12, 7:13] = 3
    marks = Volume(lesion, fixed.grid, "tumour", is_labels=True)
    given = {"fixed": image(marks), "classes": [3], "edge_mm": 1.0}
    settings = {**QUICK, "method": "metamorphosis"}
    answer = jobs.run(registration(settings, pathology=given), silent)
    direct = register(
        fixed, moving, inputs.settings_of(settings), pathology=Pathology(marks, classes=(3,), edge_mm=1.0)
    )
    assert set(answer["appearance"]) == {"deformed", "change", "metamorphic", "healthy"}
    for name, found in answer["appearance"].items():
        np.testing.assert_allclose(found.world_from_voxel, fixed.grid.world_from_voxel)
        expected = array_from_tensor(getattr(direct.appearance, name).data)
        np.testing.assert_allclose(found.array, expected, atol=1e-4)
    assert np.abs(answer["appearance"]["change"].array).max() > 0
    assert answer["report"]["pathology"]["fixed_mm3"] > 0
    assert jobs.run(registration(), silent)["appearance"] is None
