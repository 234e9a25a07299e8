"""A network's registration from images to transform files: known answers, both directions, what is kept."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from DiffeoRegLib.outputs import stored_form
from DiffeoRegLib.pipeline import register
from DiffeoRegLib.settings import Settings
from DiffeoRegLib.space.transform import DisplacementTransform
from DiffeoRegLib.volumes.transform_files import read_transform, write_transform
from DiffeoRegLib.worker import inputs
from DiffeoRegLib.worker.jobs import run
from Testing.halfway_cases import TURN, hostile_pair, network_file, same_numbers, settings_for
from Testing.scenes import distances_mm, points_of
from Testing.worker_jobs import image


@pytest.fixture(scope="module")
def still(folder):
    """It never moves anything."""
    return network_file(folder / "still.safetensors", strength=0.0)


@pytest.fixture(scope="module")
def alone(strong):
    """The strong network's result without refinement."""
    _, fixed, moving = hostile_pair()
    return fixed, moving, register(fixed, moving, settings_for(strong))


# ---------------------------------------------------------------- known answers


def test_a_network_at_rest_leaves_the_alignment(still):
    scene, fixed, moving = hostile_pair(size_mm=0.0, affine=TURN)
    points = points_of(fixed.grid)[::31]
    given = register(fixed, moving, settings_for(still, init="auto"), initial=TURN)
    np.testing.assert_allclose(given.transform.map_points(points), TURN.map_points(points), atol=1e-9)
    np.testing.assert_allclose(given.inverse.map_points(TURN.map_points(points)), points, atol=1e-9)
    assert (given.motion.velocity_vox == 0).all()
    assert distances_mm(given.transform, *scene.landmarks()).max() < 1e-6


def test_refinement_finds_what_the_network_left(still, weak):
    """Nothing, or something wrong, comes from the network; svf on the same pair sets the mark."""
    scene, fixed, moving = hostile_pair(size_mm=2.5, affine=TURN)
    landmarks = scene.landmarks()
    levels = {"levels_mm": (4.0, 2.0, 1.0), "iterations": (25, 25, 15)}
    usual = {"init": "auto", "working_spacing_mm": 1.0, **levels}
    errors = {}
    for name, settings in {
        "alone": settings_for(still, init="auto"),
        "still": settings_for(still, **usual),
        "weak": settings_for(weak, **usual),
        "svf": Settings(device="cpu", **usual),
    }.items():
        result = register(fixed, moving, settings, initial=TURN)
        errors[name] = distances_mm(result.transform, *landmarks).mean()
    assert errors["svf"] < 0.3 * errors["alone"]
    assert errors["still"] < 1.15 * errors["svf"]
    assert errors["weak"] < 0.5 * errors["alone"]


def test_the_working_grid_is_finer_only_for_refinement(strong, alone):
    fixed, moving, result = alone
    finer = {"working_spacing_mm": 1.0, "dense_iterations": 0}
    unrefined = register(fixed, moving, settings_for(strong, iterations=(0, 0), **finer))
    assert same_numbers(unrefined.transform, result.transform)
    refined = register(fixed, moving, settings_for(strong, iterations=(0, 1), **finer))
    assert refined.transform.parts[1].grid.spacing == pytest.approx((1.0, 1.0, 1.0))
    assert result.transform.parts[1].grid.spacing == pytest.approx((2.0, 2.0, 2.0))


def test_modes_agree_but_for_interpolation(strong, alone):
    fixed, moving, result = alone
    points = points_of(fixed.grid)[::17]
    moved = result.transform.map_points(points)
    for extras in ({"mode": "complete"}, {"mode": "complete-exact"}):
        other = register(fixed, moving, settings_for(strong, extras=extras)).transform.map_points(points)
        assert 0 < np.linalg.norm(other - moved, axis=1).mean() < 0.2


# ---------------------------------------------------------------- both directions


@pytest.mark.parametrize("iterations", [(0, 0), (6, 6)])
@pytest.mark.parametrize("dim", [2, 3])
def test_both_directions_undo_each_other_without_folds(strong, flat, dim, iterations):
    _, fixed, moving = hostile_pair(dim)
    weights = strong if dim == 3 else flat
    result = register(fixed, moving, settings_for(weights, iterations=iterations))
    consistency, folds = result.report["inverse_consistency_mm"], result.report["folds"]
    assert consistency["mean"] < 0.1 * 2.0
    assert consistency["moving_to_fixed"]["mean"] < 0.1 * 2.0
    assert folds["folded_percent"] == 0
    assert folds["minimum_determinant"] > 0
    assert result.report["displacement_mm"]["deformation"]["max"] > 2.0


def test_beyond_the_taper_the_alignment_is_all(strong):
    """Before and after the field's end, in both directions."""
    _, fixed, moving = hostile_pair(affine=TURN)
    result = register(fixed, moving, settings_for(strong, init="auto", iterations=(3, 3)), initial=TURN)
    for transform, known in ((result.transform, TURN), (result.inverse, TURN.inverse())):
        field, start = transform.parts[1], transform.parts[0]
        ends = [field.u_mm.select(axis, end).abs().max() for axis in (2, 3, 4) for end in (0, -1)]
        assert max(float(end) for end in ends) < 1e-5
        beyond = field.grid.padded([6] * 3, [6] * 3)
        points = start.inverse().map_points(beyond.corners_mm())
        np.testing.assert_allclose(transform.map_points(points), known.map_points(points), atol=1e-9)


# ---------------------------------------------------------------- files and panel


def test_the_three_parts_as_a_file(alone, tmp_path):
    fixed, _, result = alone
    points = points_of(fixed.grid)[::13]
    for name, transform in (("transform", result.transform), ("inverse", result.inverse)):
        path = tmp_path / f"{name}.h5"
        write_transform(transform, path)
        expected = transform.map_points(points)
        np.testing.assert_allclose(read_transform(path).map_points(points), expected, atol=1e-4)
        itk, flip = sitk.ReadTransform(str(path)), np.array([-1.0, -1.0, 1.0])
        seen = np.array([itk.TransformPoint((p * flip).tolist()) for p in points]) * flip
        np.testing.assert_allclose(seen, expected, atol=1e-4)
        kept = stored_form(transform)
        assert np.linalg.norm(kept.map_points(points) - expected, axis=1).max() < 0.05


@pytest.mark.parametrize("storage", ["half", "full"])
def test_what_the_panel_keeps(weak, storage):
    """Three parts, near the computed ones; the determinant is that of the bending alone."""
    _, fixed, moving = hostile_pair(affine=TURN)
    settings = {"method": "sitreg", "weights": str(weak), "device": "cpu", "iterations": [2, 3],
                "effort": "fast", "working_spacing_mm": 1.0}  # fmt: skip
    result = register(fixed, moving, inputs.settings_of(settings), initial=TURN)
    answer = run(
        {
            "kind": "register", "fixed": image(fixed), "moving": image(moving), "storage": storage,
            "settings": settings, "initial": [{"matrix": TURN.moving_from_fixed.tolist()}],
            "outputs": {"moved": True, "velocity": True, "jacobian": True},
        },
        lambda step: None,
    )  # fmt: skip
    points = points_of(fixed.grid)[::13]
    for name, transform in (("transform", result.transform), ("inverse", result.inverse)):
        assert [next(iter(part)) for part in answer[name]] == ["matrix", "displacement", "matrix"]
        error = np.linalg.norm(
            inputs.transform_of(answer[name]).map_points(points) - transform.map_points(points), axis=1
        )
        assert np.percentile(error, 95) < 0.05
    spacing = 2.0 if storage == "half" else 1.0
    assert answer["report"]["transform"]["spacing"] == pytest.approx([spacing] * 3)
    assert answer["report"]["transform"]["folded_percent"] == 0
    assert answer["velocity"] is None
    assert any("not the flow of one velocity" in note for note in answer["report"]["notes"])
    whole, alignment = inputs.transform_of(answer["transform"]), np.linalg.det(TURN.moving_from_fixed[:3, :3])
    for index in ([9, 13, 11], [6, 9, 14], [12, 17, 7]):
        middle = fixed.grid.world_from_index([float(i) for i in index])
        read = whole.map_points(middle + np.concatenate([np.eye(3), -np.eye(3)]) * 1.2)
        determinant = np.linalg.det((read[:3] - read[3:]).T / 2.4) / alignment
        assert answer["jacobian"].array[tuple(index)] == pytest.approx(determinant, abs=0.03)
    assert answer["jacobian"].array.std() > 0.02


def test_after_a_nonlinear_start(weak):
    """The given field comes last and stays as it is."""
    scene, fixed, moving = hostile_pair()
    u_mm = torch.zeros(1, 3, *fixed.grid.shape)
    u_mm[0, 0, 4:-4, 4:-4, 4:-4] = 1.0
    field = DisplacementTransform(fixed.grid, u_mm)
    result = register(fixed, moving, settings_for(weak, iterations=(2, 2)), initial=field)
    assert result.transform.parts[-1] is field
    assert len(result.transform.parts) == 2
    points = scene.landmarks()[0]
    back = result.inverse.map_points(result.transform.map_points(points))
    assert np.linalg.norm(back - points, axis=1).mean() < 0.2
