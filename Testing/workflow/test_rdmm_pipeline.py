"""Registration by kernels and geodesics, from volumes to transforms: what is found, said and refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from DiffeoRegLib.errors import Cancelled, InputError, SettingsError
from DiffeoRegLib.methods import descent
from DiffeoRegLib.methods.geodesic import finished
from DiffeoRegLib.pipeline import background_of, register
from DiffeoRegLib.settings import Settings
from DiffeoRegLib.space.sample import array_from_tensor
from DiffeoRegLib.space.transform import AffineTransform, DisplacementTransform, displacement_on
from DiffeoRegLib.volumes.regions import Regions
from DiffeoRegLib.volumes.resample import warp_labels, warp_volume
from DiffeoRegLib.volumes.volume import Volume
from Testing.scenes import CENTRE_MM, Scene, distances_mm, turned_grid

METHODS = ("vsvf", "lddmm", "rdmm", "rdmm-regions")
TURN = AffineTransform(
    np.array([[0.99, -0.09, 0.0, 3.0], [0.09, 1.0, 0.0, -2.0], [0.0, 0.0, 1.0, 0.0], [0, 0, 0, 1.0]])
)
FLAT = Scene(flat=True, size_mm=3.0, affine=TURN)
SOLID = Scene(size_mm=2.5)
QUICK = Settings(
    init="identity", iterations=(12, 8, 0), similarity="mse", kinetic=0.0005, kernel_sigmas=(3.0, 6.0),
    kernel_units="mm", preweight_sigma=4.0, device="cpu",
)  # fmt: skip
SOFT = (0.8, 0.2)
WIDE = (0.0, 1.0)


def images(scene):
    """Two scanners that see the same patient at two times."""
    if scene.flat:
        grids = turned_grid((44, 48), (1.0, 1.1)), turned_grid((50, 46), (1.1, 1.0), 15.0, flip=(1,))
    else:
        grids = turned_grid((32, 34, 30), (1.5, 1.4, 1.6)), turned_grid((36, 30, 34), (1.4, 1.6, 1.5), 10.0)
    return scene.fixed(grids[0]), scene.moving(grids[1])


def regions_of(moving, stiffness=SOFT):
    """Label 3 for the body of the moving image, and a few voxels nobody speaks of."""
    data = 3 * (moving.data > 25).int()
    data[:2, :2] = 8
    return Regions(Volume(data, moving.grid, "parts", True), {3: stiffness}, WIDE)


def run(scene, method, **changes):
    """A registration, and what it was of; the flat scene starts from its true turn."""
    fixed, moving = images(scene)
    others = {name: changes.pop(name) for name in ("initial", "regions", "progress") if name in changes}
    others.setdefault("initial", scene.affine)
    if method == "rdmm-regions":
        others.setdefault("regions", regions_of(moving))
    if not scene.flat:  # wider kernels, fewer voxels to shoot on
        changes = {
            "kernel_sigmas": (6.0, 9.0), "preweight_sigma": 8.0, "iterations": (10, 3, 0), **changes,
        }  # fmt: skip
    settings = QUICK.with_changes(method=method, **changes)
    return fixed, moving, register(fixed, moving, settings, **others)


CASES = [*((FLAT, name) for name in METHODS), (SOLID, "vsvf"), (SOLID, "lddmm"), (SOLID, "rdmm-regions")]


@pytest.fixture(
    scope="module", params=CASES, ids=lambda case: f"{case[1]}-{'flat' if case[0].flat else 'solid'}"
)
def done(request):
    scene, method = request.param
    return scene, method, *run(scene, method)


def test_the_motion_is_found(done):
    scene, _, fixed, moving, result = done
    marks = scene.landmarks()
    before, after = (distances_mm(way, *marks).mean() for way in (result.initial, result.transform))
    assert before > 1.0
    assert after < 0.7 * before
    similarity = result.report["similarity"]
    assert similarity["final"]["ncc"] > max(0.98, similarity["initial"]["ncc"])
    seen = warp_volume(moving, result.transform, fixed.grid, fill=background_of(moving))
    assert np.array_equal(array_from_tensor(seen.data), array_from_tensor(result.moved.data))


def test_it_is_one_to_one_and_ends(done):
    scene, _, _, _, result = done
    points, others = scene.landmarks(200)
    there, back = result.transform.map_points(points), result.inverse.map_points(others)
    for error in (result.inverse.map_points(there) - points, result.transform.map_points(back) - others):
        assert np.linalg.norm(error, axis=1).mean() < 0.02
        assert np.linalg.norm(error, axis=1).max() < 0.15
    assert result.report["folds"]["folded_percent"] == 0
    assert result.report["folds"]["minimum_determinant"] > 0.05
    far = CENTRE_MM + np.array([[200.0, 0, 0], [0, -180, 0], [90, 90, 0]])
    np.testing.assert_allclose(result.transform.map_points(far), result.initial.map_points(far), atol=1e-9)
    np.testing.assert_allclose(
        result.inverse.map_points(far), result.initial.inverse().map_points(far), atol=1e-9
    )


def test_what_the_result_holds(done):
    _, method, fixed, moving, result = done
    geodesics = result.motion.geodesics
    assert len(geodesics) == (method != "vsvf")
    assert any(note.startswith("L-BFGS: ") for note in result.report["notes"])
    assert result.report["steps"] >= 2
    if method == "vsvf":
        assert result.sigma is None
        assert result.report["sigma_mm"] is None
        return
    flow = finished(geodesics, result.working, fixed.grid, None)
    field = next(p for p in result.transform.parts if isinstance(p, DisplacementTransform))
    assert field.grid.same_as(flow.grid)
    assert torch.equal(flow.forward_vox, finished(geodesics, result.working, fixed.grid, None).forward_vox)
    sigma = result.sigma
    assert sigma[0].grid is moving.grid
    assert sigma[1].grid is fixed.grid
    narrow, wide = result.report["settings"]["kernel_sigmas"]
    assert narrow - 0.1 < float(sigma[1].data.min()) <= float(sigma[1].data.max()) < wide + 0.1
    varied = float(sigma[0].data.max() - sigma[0].data.min())
    assert (varied > 1e-3) == (method != "lddmm")
    widths = result.report["sigma_mm"]
    assert widths["moving"]["max"] == pytest.approx(float(sigma[0].data.max()), rel=1e-4)


def test_regions_are_reported_and_soft_ones_are_seen(done):
    _, method, _, moving, result = done
    scores = result.report["regions"]
    if method != "rdmm-regions":
        assert scores is None
        return
    assert scores["3"]["stiffness"] == list(SOFT)
    assert scores["rest"]["stiffness"] == list(WIDE)
    assert scores["3"]["displacement_mm"]["mean"] > scores["rest"]["displacement_mm"]["mean"] > 0
    assert scores["3"]["folded_percent"] == 0
    notes = result.report["notes"]
    assert "Labels of 'parts' without a stiffness of their own: 8." in notes
    assert any(note.startswith("Regions: 1 with a stiffness of their own; the rest, ") for note in notes)
    sigma = result.sigma[0].data
    body = regions_of(moving).labels.data == 3
    assert float(sigma[body].mean()) < float(sigma[moving.data < 1].mean()) - 1.0


def test_a_step_that_is_far_too_long_does_no_harm(monkeypatch):
    monkeypatch.setattr(descent, "FIRST_RATE", 1e4)
    for method in ("vsvf", "rdmm-regions"):
        _, _, result = run(FLAT, method, iterations=(6, 0, 0))
        points, others = FLAT.landmarks()
        moved = result.transform.map_points(points)
        assert np.isfinite(moved).all()
        assert bool(torch.isfinite(result.moved.data).all())
        assert result.report["folds"]["folded_percent"] == 0
        assert (
            np.linalg.norm(moved - others, axis=1).mean()
            < distances_mm(result.initial, points, others).mean()
        )


def test_set_time_steps_bound_the_motion():
    _, _, result = run(FLAT, "lddmm", steps=1, integrator="dopri5", iterations=(3, 0, 0))
    assert result.report["steps"] == 1
    assert result.motion.geodesics[0].integrator == "dopri5"
    _, _, result = run(FLAT, "lddmm", steps=1, iterations=(8, 4, 0))
    assert result.report["steps"] == 1
    assert any("asks for" in note and "1 were set" in note for note in result.report["notes"])


def test_set_time_steps_suffice_on_every_map():
    """Coarse maps, which this preset begins with, would let the motion grow beyond what a finer one can."""
    far = Scene(flat=True, size_mm=8.0, affine=TURN)
    _, _, result = run(far, "lddmm", steps=1, preset="brain-mr", iterations=(15, 4, 0))
    assert result.report["steps"] == 1
    assert result.report["folds"]["folded_percent"] == 0


def test_no_iterations_change_nothing():
    for method in METHODS:
        _, _, result = run(FLAT, method, iterations=(0, 0, 0))
        points, _ = FLAT.landmarks()
        np.testing.assert_allclose(result.transform.map_points(points), TURN.map_points(points), atol=1e-9)


def test_cancelling_in_the_middle_stops_at_once():
    seen = []

    def stop(step):
        seen.append(step.message)
        if "step 3 of 12" in step.message:
            raise Cancelled

    with pytest.raises(Cancelled):
        run(FLAT, "rdmm-regions", progress=stop)
    assert "step 3 of 12" in seen[-1]


def test_regions_follow_a_nonlinear_start():
    """Where the images lie after a transform that carries everything 5 mm away, and the regions with them."""
    fixed, moving = images(FLAT)
    grid = turned_grid((60, 60), (1.5, 1.5))
    shift = np.eye(4)
    shift[:3, 3] = (5.0, 0.0, 0.0)
    there = AffineTransform(shift @ TURN.moving_from_fixed)
    initial = DisplacementTransform(grid, displacement_on(there, grid))
    shifted = Volume(moving.data, moving.grid, "moving")
    shifted = warp_volume(shifted, AffineTransform(np.linalg.inv(shift)), moving.grid)
    result = register(
        fixed, shifted, QUICK.with_changes(method="rdmm-regions", iterations=(2, 0, 0)),
        initial=initial, regions=regions_of(shifted),
    )  # fmt: skip
    scores = result.report["regions"]
    expected = float((fixed.data > 25).sum()) * np.prod(fixed.grid.spacing)
    assert scores["3"]["volume_mm3"] == pytest.approx(expected, rel=0.08)
    narrow = result.motion.geodesics[0].tensors[1][0, 0].square()
    body = Volume((fixed.data > 25).int(), fixed.grid, "body", True)
    body = warp_labels(body, AffineTransform(np.eye(4)), result.motion.grid).data == 1
    agreed = ((narrow > 0.4) == body).double().mean()
    assert float(agreed) > 0.95


@pytest.mark.parametrize(
    ("method", "changes", "error", "words"),
    [
        ("rdmm-regions", {"regions": None}, InputError, "'rdmm-regions' needs regions"),
        ("lddmm", {"kernel_sigmas": (0.5, 6.0)}, SettingsError, "0.5 voxels wide, it needs 1.5"),
        ("rdmm", {"preweight_sigma": 0.5}, SettingsError, "smoothing of regional weights is 0.45 grid steps"),
        ("vsvf", {"iterations": (3, 3)}, SettingsError, "do not match"),
        ("lddmm", {"extras": {"commom": 1.0}}, SettingsError, "Did you mean 'common'"),
        ("rdmm-regions", {"kernel_sigmas": (3.0, 6.0, 9.0)}, SettingsError, "and there are 3"),
        ("rdmm-regions", {"kernel_weights": (1.0, 1.0)}, SettingsError, "the stiffness of each is set"),
    ],
)
def test_bad_settings_are_refused_in_a_sentence(method, changes, error, words):
    with pytest.raises(error, match=words):
        run(FLAT, method, **changes)


def test_regions_for_a_method_without_use_for_them_are_refused():
    fixed, moving = images(FLAT)
    with pytest.raises(InputError, match="'svf' has no use for regions"):
        register(fixed, moving, Settings(init="identity"), regions=regions_of(moving))
