"""The straight line of a registration: what it refuses, tells, falls back to, and hands over."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from DiffeoRegLib import pipeline
from DiffeoRegLib.catalog import card
from DiffeoRegLib.device import choose_device
from DiffeoRegLib.errors import (
    Cancelled,
    InputError,
    MemoryLimitError,
    NoOverlapError,
    SettingsError,
    UnknownNameError,
)
from DiffeoRegLib.flows.integrate import integrate
from DiffeoRegLib.methods.discrete import CITATION
from DiffeoRegLib.methods.svf import StationaryVelocity
from DiffeoRegLib.pipeline import (
    PHASES,
    background_of,
    carried_along,
    linear_matrix,
    moving_labels_of,
    register,
    to_patient,
)
from DiffeoRegLib.settings import Settings
from DiffeoRegLib.space.filters import gaussian_smooth
from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.space.transform import AffineTransform, CompositeTransform, DisplacementTransform
from DiffeoRegLib.volumes.pair import Correspondence, Masks
from DiffeoRegLib.volumes.resample import warp_labels, warp_volume
from DiffeoRegLib.volumes.volume import Volume
from Testing.fake_run import known_motion
from Testing.scenes import CENTRE_MM, Scene, points_of, turned_grid

QUICK = Settings(device="cpu", init="identity", levels_mm=(4.0, 2.0), iterations=(3, 3))
SCENE = Scene(size_mm=1.5)
FIXED = SCENE.fixed(turned_grid((20, 26, 24), (1.8, 1.4, 1.5), 15, (1,)))
MOVING = SCENE.moving(turned_grid((26, 22, 24), (1.4, 1.7, 1.5), -20, (0, 2)))
SHIFT = AffineTransform(np.array([[1.0, 0, 0, 1], [0, 1, 0, -2], [0, 0, 1, 0.5], [0, 0, 0, 1]]))


def shifted(volume, mm):
    matrix = volume.grid.world_from_voxel.copy()
    matrix[0, 3] += mm
    return Volume(volume.data, Grid(volume.grid.shape, matrix), "far")


def like(volume, data, name="other"):
    return Volume(data, volume.grid, name)


# ---------------------------------------------------------------- what is refused


BAD_IMAGES = {
    "is 2D": lambda: Scene(flat=True).moving(turned_grid((30, 28), (1.4, 1.4))),
    "same value": lambda: like(MOVING, torch.ones(MOVING.grid.shape)),
    "no finite value": lambda: like(MOVING, torch.full(MOVING.grid.shape, torch.nan)),
    "single slice": lambda: Volume(torch.rand(1, 20, 20), turned_grid((1, 20, 20), (1.0, 1.0, 1.0)), "thin"),
}


@pytest.mark.parametrize("sentence", BAD_IMAGES)
@pytest.mark.parametrize("settings", [QUICK, QUICK.with_changes(method="affine", init="auto")])
def test_images_that_cannot_be_registered(sentence, settings):
    """Refused before anything is computed, by every method and initial alignment."""
    told = []
    with pytest.raises(InputError, match=sentence):
        register(FIXED, BAD_IMAGES[sentence](), settings, progress=told.append)
    assert told == []


def test_images_that_share_no_space():
    with pytest.raises(NoOverlapError, match="share"):
        register(FIXED, shifted(MOVING, 500.0), QUICK)


def test_masks_and_landmarks_are_checked_first():
    empty = Masks(moving=like(MOVING, torch.zeros(MOVING.grid.shape), "nothing"))
    with pytest.raises(InputError, match="'nothing' is empty"):
        register(FIXED, MOVING, QUICK, masks=empty)
    points = Correspondence(fixed_points_mm=np.zeros((2, 3)), moving_points_mm=np.zeros((3, 3)))
    with pytest.raises(InputError, match="2 fixed but 3 moving"):
        register(FIXED, MOVING, QUICK, guidance=points)


def test_names_and_levels_that_do_not_exist():
    with pytest.raises(UnknownNameError, match=r"affine, .*svf"):
        register(FIXED, MOVING, Settings(method="spline"))
    with pytest.raises(SettingsError, match="do not match"):
        register(FIXED, MOVING, QUICK.with_changes(iterations=(3, 3, 3)))


def test_a_nonlinear_start_that_leads_elsewhere():
    """Nothing of the moving image arrives in fixed space."""
    field = DisplacementTransform(FIXED.grid, torch.full((1, 3, *FIXED.grid.shape), 300.0))
    with pytest.raises(InputError, match="same value"):
        register(FIXED, MOVING, QUICK, initial=field)


# ---------------------------------------------------------------- what is told


@pytest.fixture(scope="module")
def quick():
    """A registration with all it told."""
    told = []
    return register(FIXED, MOVING, QUICK, progress=told.append), told


def test_progress_rises_through_all_phases(quick):
    told = quick[1]
    fractions = [step.fraction for step in told]
    assert fractions == sorted(fractions)
    assert (fractions[0], fractions[-1]) == (0.0, 1.0)
    phases = list(dict.fromkeys(step.phase for step in told))
    assert phases == ["align", "prepare", "plan", "predict", "refine", "optimise", "integrate", "resample",
                      "measure", "done"]  # fmt: skip
    assert all(step.message for step in told)
    assert sum(step.phase == "optimise" for step in told) == 6


def test_the_report_holds_seconds_steps_and_notes(quick):
    report = quick[0].report
    assert set(report["seconds"]) == set(PHASES)
    assert all(v >= 0 for v in report["seconds"].values())
    assert report["steps"] >= 4
    assert any("headers" in note for note in report["notes"])
    assert any("Working grid" in note for note in report["notes"])
    assert len(report["notes"]) == len(set(report["notes"]))


@pytest.mark.parametrize("phase", [*PHASES, "optimise", "done"])
def test_every_phase_can_be_cancelled(phase):
    before = FIXED.data.clone(), MOVING.data.clone()

    def stop(step):
        if step.phase == phase:
            raise Cancelled(phase)

    with pytest.raises(Cancelled, match=phase):
        register(FIXED, MOVING, QUICK, progress=stop)
    assert torch.equal(FIXED.data, before[0])
    assert torch.equal(MOVING.data, before[1])


@pytest.mark.parametrize(
    ("changes", "initial", "expected"),
    [
        ({}, None, ["svf"]),
        ({"init": "auto"}, SHIFT, ["svf"]),
        ({"init": "rigid"}, None, ["affine", "svf"]),
        ({"init": "affine"}, SHIFT, ["affine", "svf"]),
        ({"init": "mass", "large_displacement": True}, None, ["svf", "search"]),
        ({"init": "auto", "method": "affine"}, None, ["affine"]),
    ],
)
def test_only_what_ran_is_cited(changes, initial, expected):
    texts = {"search": CITATION, "affine": card("affine").citation, "svf": card("svf").citation}
    settings = QUICK.with_changes(extras={"search_radius_mm": 8.0}, **changes)
    assert register(FIXED, MOVING, settings, initial=initial).report["citations"] == [
        texts[e] for e in expected
    ]


# ---------------------------------------------------------------- memory


@pytest.mark.parametrize("where", ["prepare", "refine"])
def test_out_of_device_memory_the_cpu_takes_over(monkeypatch, quick, where):
    """Simulated: the first attempt raises what torch raises on a full GPU."""
    calls = []

    def full_once(original):
        def attempt(*arguments, **options):
            calls.append(where)
            if len(calls) == 1:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return original(*arguments, **options)

        return attempt

    if where == "prepare":
        monkeypatch.setattr(pipeline, "prepare", full_once(pipeline.prepare))
    else:
        monkeypatch.setattr(StationaryVelocity, "refine", full_once(StationaryVelocity.refine))
    result = register(FIXED, MOVING, QUICK)
    assert len(calls) == 2
    assert any("was not enough" in note and "CPU" in note for note in result.report["notes"])
    assert torch.equal(result.moved.data, quick[0].moved.data)
    assert result.report["device"]["device"] == "cpu"


def test_a_memory_limit_coarsens_the_working_grid_and_says_so():
    detailed = QUICK.with_changes(working_spacing_mm=0.8)
    fixed, moving = (
        Volume(torch.rand(48, 48, 48), turned_grid((48, 48, 48), (0.8, 0.8, 0.8)), name) for name in "fm"
    )
    limited = register(fixed, moving, detailed.with_changes(memory_limit_gb=0.41))
    assert any("coarsened" in note for note in limited.report["notes"])
    assert limited.moved.grid.same_as(fixed.grid)
    with pytest.raises(MemoryLimitError):
        register(fixed, moving, detailed.with_changes(memory_limit_gb=0.1))


# ---------------------------------------------------------------- parts


def test_flow_and_alignment_become_one_map_and_its_inverse():
    """exp of a velocity in voxels of an oblique, flipped grid, then the alignment; in RAS mm."""
    grid = FIXED.grid
    velocity = gaussian_smooth(torch.randn(1, 3, *grid.shape), 4.0)
    velocity *= 0.8 / velocity[..., 9, 12, 11].abs().amax()
    flow = integrate(velocity, grid, grid)
    transform, inverse = to_patient(flow, SHIFT)
    index = np.array([[9.0, 12, 11], [5, 17, 8], [12, 7, 15]])
    u = np.stack([
        [float(part(flow.forward_vox, flow.grid, grid)[0, a][tuple(i.astype(int))]) for a in range(3)]
        for i in index
    ])  # fmt: skip
    expected = SHIFT.map_points(grid.world_from_index(index + u))
    np.testing.assert_allclose(transform.map_points(grid.world_from_index(index)), expected, atol=1e-4)
    assert np.abs(u).max() > 0.1
    points = grid.world_from_index(index)
    np.testing.assert_allclose(inverse.map_points(transform.map_points(points)), points, atol=0.03)


def part(field, wide, grid):
    first = np.rint(wide.index_from_world(grid.world_from_index([0.0] * grid.dim))).astype(int)
    return field[(..., *[slice(s, s + n) for s, n in zip(first, grid.shape, strict=True)])]


def test_without_a_flow_the_alignment_is_all():
    transform, inverse = to_patient(None, SHIFT)
    assert transform is SHIFT
    points = np.random.default_rng(0).normal(size=(5, 3)) * 30
    np.testing.assert_allclose(inverse.map_points(SHIFT.map_points(points)), points, atol=1e-10)


def test_the_matrix_of_linear_transforms():
    turn = AffineTransform(np.array([[0.0, -1, 0, 3], [1, 0, 0, 0], [0, 0, 1, 7], [0, 0, 0, 1]]))
    points = np.random.default_rng(0).normal(size=(5, 3)) * 30
    both = CompositeTransform((turn, CompositeTransform((SHIFT, turn.inverse()))))
    np.testing.assert_allclose(
        AffineTransform(linear_matrix(both)).map_points(points), both.map_points(points), atol=1e-10
    )
    field = known_motion(FIXED.grid)[0]
    assert linear_matrix(field) is None
    assert linear_matrix(CompositeTransform((turn, field))) is None


def test_what_belongs_to_the_moving_image_is_carried_along():
    field = CompositeTransform([*known_motion(FIXED.grid, 1.5)])
    moving_labels, fixed_labels = SCENE.labels(MOVING), SCENE.labels(FIXED)
    fixed_points, moving_points = CENTRE_MM + np.eye(3), CENTRE_MM + 2 * np.eye(3)
    masks, guidance = carried_along(
        Masks(fixed_labels, moving_labels, exclude_moving=True),
        Correspondence(fixed_labels, moving_labels, fixed_points, moving_points),
        field,
        FIXED.grid,
    )
    expected = warp_labels(moving_labels, field, FIXED.grid).data
    assert torch.equal(masks.moving.data, expected)
    assert masks.moving.grid.same_as(FIXED.grid)
    assert masks.fixed is fixed_labels
    assert (masks.exclude_fixed, masks.exclude_moving) == (False, True)
    assert torch.equal(guidance.moving_labels.data, expected)
    assert guidance.fixed_labels is fixed_labels
    assert guidance.fixed_points_mm is fixed_points
    np.testing.assert_allclose(field.map_points(guidance.moving_points_mm), moving_points, atol=1e-3)
    assert carried_along(None, None, field, FIXED.grid) == (None, None)


def test_the_background_is_the_smallest_finite_value():
    data = torch.tensor([[3.0, torch.nan], [-torch.inf, -4.0]])
    grid = Grid((2, 2), np.eye(4))
    assert background_of(Volume(data, grid, "some")) == -4.0
    assert background_of(Volume(torch.full((2, 2), torch.nan), grid, "none")) == 0.0


def test_evaluation_labels_are_moved_before_guidance_labels():
    first, second = SCENE.labels(MOVING), SCENE.labels(FIXED)
    points = Correspondence(fixed_points_mm=np.zeros((1, 3)), moving_points_mm=np.zeros((1, 3)))
    assert moving_labels_of(None, Correspondence(second, first)) is first
    assert moving_labels_of(Correspondence(first, second), Correspondence(second, first)) is second
    assert moving_labels_of(points, Correspondence(second, first)) is first
    assert moving_labels_of(None, points) is None


def test_the_moved_image_is_filled_with_the_background_and_read_as_asked():
    shift = np.eye(4)
    shift[0, 3] = 14.0
    dark = like(MOVING, MOVING.data - 1000.0, "dark")
    images = {}
    for interpolation in ("linear", "cubic"):
        settings = QUICK.with_changes(method="affine", interpolation=interpolation)
        moved = register(FIXED, dark, settings, initial=AffineTransform(shift)).moved
        expected = warp_volume(
            dark, AffineTransform(shift), FIXED.grid, mode=interpolation, fill=float(dark.data.min())
        )
        assert torch.equal(moved.data, expected.data)
        images[interpolation] = moved.data
    outside = MOVING.grid.index_from_world(AffineTransform(shift).map_points(points_of(FIXED.grid)))
    beyond = ((outside < -0.5) | (outside > np.array(MOVING.grid.shape) - 0.5)).any(1)
    assert beyond.sum() > 100
    assert (images["linear"].flatten()[torch.as_tensor(beyond)] == dark.data.min()).all()
    assert not torch.equal(images["linear"], images["cubic"])


def test_threads_and_device_are_those_asked_for(monkeypatch):
    asked = []
    monkeypatch.setattr(pipeline, "set_threads", asked.append)
    monkeypatch.setattr(pipeline, "choose_device", lambda name: (asked.append(name), choose_device("cpu"))[1])
    register(FIXED, MOVING, QUICK.with_changes(threads=3, device="auto"))
    assert asked == ["auto", 3]
