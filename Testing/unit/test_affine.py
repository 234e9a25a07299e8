"""Linear alignment: parameters, frames, similarity, and the alignments it can and cannot find."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import expm

from DiffeoRegLib.errors import NoOverlapError
from DiffeoRegLib.methods import affine as alignment
from DiffeoRegLib.methods.affine import initial_alignment, shared_percent
from DiffeoRegLib.methods.affine_frames import make_frames
from DiffeoRegLib.methods.affine_problem import loss, make_level, make_side, rotation_set, soft_bins
from DiffeoRegLib.settings import Settings
from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.volumes.intensity import foreground_points_mm
from DiffeoRegLib.volumes.pair import Masks
from DiffeoRegLib.volumes.volume import Volume
from Testing.affine_cases import FIXED_GRID, centred, error_mm, phantom, rigid


@pytest.fixture(scope="module")
def fixed():
    return phantom(FIXED_GRID, name="fixed")


# ---------------------------------------------------------------- parts


def test_soft_bins_sum_to_one_and_keep_the_value():
    values = torch.tensor([0.0, 0.123, 0.5, 0.999, 1.0])
    bins = soft_bins(values)
    torch.testing.assert_close(bins.sum(-1), torch.ones(5))
    torch.testing.assert_close(bins @ torch.linspace(0, 1, bins.shape[1]), values)


def test_rotations_are_rotations_and_cover_forty_degrees():
    rotations = rotation_set(3)
    np.testing.assert_allclose(
        rotations @ rotations.transpose(0, 2, 1), np.tile(np.eye(3), (53, 1, 1)), atol=1e-12
    )
    np.testing.assert_allclose(np.linalg.det(rotations), 1.0)
    generator = np.random.default_rng(0)
    for _ in range(50):
        target = rigid(generator.normal(size=3), generator.uniform(0, 40))[:3, :3]
        traces = np.einsum("kij,ij->k", rotations, target)
        assert np.degrees(np.arccos(np.clip((traces.max() - 1) / 2, -1, 1))) < 20
    np.testing.assert_allclose(np.linalg.det(rotation_set(2)), 1.0)


def test_parameters_are_the_matrix_exponential():
    parameters = torch.tensor(
        [[0.1, -0.2, 0.3, 0, 0, 0, 0.05, 0.02, -0.01, 0.1, 0.03, -0.04]], dtype=torch.float64
    )
    start = torch.tensor(rigid((1, 2, 3), 30)[None, :3, :3])
    found = alignment._linear(parameters, start, 3)[0].numpy()
    skew = np.array([[0, 0.1, -0.2], [-0.1, 0, 0.3], [0.2, -0.3, 0]])
    strain = np.array([[0.05, 0.01, -0.005], [0.01, 0.1, 0.015], [-0.005, 0.015, -0.04]])
    np.testing.assert_allclose(found, expm(skew) @ start[0].numpy() @ expm(strain), atol=1e-12)
    assert np.linalg.det(found) == pytest.approx(np.exp(0.05 + 0.1 - 0.04))


@pytest.mark.parametrize("metric", ["nmi", "ncc"])
def test_similarity_is_best_at_the_truth_and_has_the_right_gradient(fixed, metric):
    side = make_side(fixed, None, False)
    frames = make_frames(side, side)
    level = make_level(side, side, frames.world_from_fixed, frames.world_from_moving, 4.0, 3000, 0)
    truth = torch.tensor(frames.parts(np.eye(4))[1], dtype=torch.float32)
    shifts = truth + torch.tensor([[0.0, 0, 0], [3, 0, 0], [0, -3, 0], [0, 0, 6]])
    linear = torch.eye(3).expand(4, 3, 3)
    values = loss(level, linear, shifts, metric)
    assert int(values.argmin()) == 0
    start = (truth + torch.tensor([2.3, 1.1, -0.7]))[None].requires_grad_(True)
    loss(level, linear[:1], start, metric).sum().backward()
    assert start.grad is not None
    for axis in range(3):
        step = torch.zeros(1, 3)
        step[0, axis] = 0.05
        with torch.no_grad():
            rise = loss(level, linear[:1], start + step, metric) - loss(
                level, linear[:1], start - step, metric
            )
        assert float(rise) / 0.1 == pytest.approx(float(start.grad[0, axis]), rel=0.1, abs=5e-4)


def test_frames_give_back_any_map(fixed):
    side = make_side(fixed, None, False)
    frames = make_frames(side, side)
    matrix = rigid((1, -1, 2), 33, (5, -6, 7)) @ np.diag([1.1, 0.9, 1.05, 1.0])
    np.testing.assert_allclose(frames.matrix(*frames.parts(matrix)), matrix, atol=1e-12)


def test_shared_percent():
    one = Grid((20, 20, 20), np.eye(4))
    half = np.eye(4)
    half[0, 3] = 10.0
    assert shared_percent(one, one, np.eye(4)) == 100.0
    assert shared_percent(one, one, half) == pytest.approx(50.0, abs=5)
    half[0, 3] = 25.0
    assert shared_percent(one, one, half) == 0.0
    assert shared_percent(Grid((5, 5, 5), np.eye(4)), one, np.eye(4)) == 100.0


# ---------------------------------------------------------------- alignments


@pytest.fixture(autouse=True)
def few_points(monkeypatch):
    """The phantoms are small: fewer points are enough for them and keep the tests quick."""
    monkeypatch.setattr(alignment, "POINTS", (3000, 5000, 8000))


@pytest.mark.parametrize(
    ("init", "expected"), [("identity", (0, 0, 0)), ("geometry", (10, -20, 5)), ("mass", (14, -17, 5))]
)
def test_plain_starts(fixed, init, expected):
    grid = centred((50, 44, 38), (2.0, 2.0, 2.0), center=(10, -20, 5))
    moving = phantom(grid, rigid((1, 0, 0), 0, (-14, 17, -5)))
    notes: list[str] = []
    matrix = initial_alignment(fixed, moving, Settings(init=init), notes=notes)
    np.testing.assert_allclose(matrix[:3, :3], np.eye(3), atol=1e-12)
    np.testing.assert_allclose(matrix[:3, 3], expected, atol=1.0)
    assert len(notes) == 1


@pytest.mark.parametrize(
    ("axis", "degrees", "shift", "flip", "contrast"),
    [
        ((0, 0, 1), 40, (60, 0, 0), None, 1.0),
        ((1, 1, 0), 38, (-30, 40, 30), 0, 1.0),
        ((-1, 2, 1), -40, (10, -50, -30), 2, -1.0),
    ],
)
def test_rigid_finds_large_rotations_shifts_and_mirrored_storage(fixed, axis, degrees, shift, flip, contrast):
    truth = rigid(axis, degrees, shift)
    grid = centred((48, 46, 44), (2.2, 2.0, 2.4), flip, center=shift)
    moving = phantom(grid, np.linalg.inv(truth), contrast)
    matrix = initial_alignment(fixed, moving, Settings(init="rigid"))
    points = foreground_points_mm(fixed)
    np.testing.assert_allclose(matrix[:3, :3] @ matrix[:3, :3].T, np.eye(3), atol=1e-5)
    assert np.linalg.det(matrix[:3, :3]) > 0
    assert error_mm(matrix, truth, points) < 0.7


def test_affine_finds_scale_and_shear_and_repeats_itself(fixed):
    stretch = np.eye(4)
    stretch[:3, :3] = [[1.12, 0.05, 0], [0.05, 0.92, 0.03], [0, 0.03, 1.05]]
    truth = rigid((1, 0, 2), 20, (12, 8, -20)) @ stretch
    moving = phantom(centred((56, 50, 46), (2, 2, 2), center=(12, 8, -20)), np.linalg.inv(truth))
    notes: list[str] = []
    matrix = initial_alignment(fixed, moving, Settings(), notes=notes)
    assert error_mm(matrix, truth, foreground_points_mm(fixed)) < 0.8
    assert "affine, rotation 2" in notes[0]
    np.testing.assert_array_equal(matrix, initial_alignment(fixed, moving, Settings()))


def test_a_smaller_field_of_view_is_found(fixed):
    truth = rigid((0, 1, 1), 25, (10, 15, -10))
    whole = phantom(centred((60, 60, 60), (2, 2, 2), center=(10, 15, -10)), np.linalg.inv(truth))
    cut = Volume(whole.data[18:48], whole.grid.cropped((18, 0, 0), (48, 60, 60)), "slab")
    matrix = initial_alignment(fixed, cut, Settings(init="rigid"))
    assert error_mm(matrix, truth, foreground_points_mm(fixed)) < 1.5


def test_masks_hide_what_does_not_correspond(fixed):
    """A bright block in the moving image only draws the alignment to itself unless it is masked out."""
    truth = rigid((0, 0, 1), 8, (4, -3, 2))
    moving = phantom(FIXED_GRID, np.linalg.inv(truth))
    data, marked = moving.data.clone(), torch.zeros(FIXED_GRID.shape, dtype=torch.int32)
    data[30:48, 26:42, 8:30] = 400.0
    marked[29:49, 25:43, 7:31] = 1
    spoiled = Volume(data, FIXED_GRID, "spoiled")
    masks = Masks(moving=Volume(marked, FIXED_GRID), exclude_moving=True)
    points = foreground_points_mm(fixed)
    masked = error_mm(initial_alignment(fixed, spoiled, Settings(), masks), truth, points)
    assert masked < 1.5
    assert error_mm(initial_alignment(fixed, spoiled, Settings()), truth, points) > 2 * masked


def test_two_dimensions_in_tilted_planes_and_mirrored_storage():
    generator = torch.Generator().manual_seed(3)
    plane = rigid((1, 0, 0), 30, (5, 6, 7))
    base = np.diag([1.0, 1.0, 4.0, 1.0])
    fixed_grid = Grid((70, 64), plane @ base)
    index = np.stack(np.meshgrid(np.arange(70), np.arange(64), indexing="ij"), -1).astype(float)
    spots = (
        torch.rand(6, 2, generator=generator).numpy() * 24 + 22,
        torch.rand(6, generator=generator).numpy(),
    )

    def picture(points):
        body = 1 / (1 + np.exp(((points - (34, 31)) ** 2 / (22**2, 16**2)).sum(-1) * 8 - 8))
        return body + sum(b * np.exp(-((points - c) ** 2).sum(-1) / 30) for c, b in zip(*spots, strict=True))

    a = np.radians(32)
    turn = np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]])
    flip = np.diag([-1.0, 1.0, 1.0, 1.0])
    flip[0, 3] = 69.0
    moving_grid = Grid((70, 64), plane @ rigid((0, 0, 1), 0, (40, -20, 3)) @ base @ flip)
    unflipped = np.stack([69 - index[..., 0], index[..., 1]], -1)
    fixed = Volume(torch.tensor(picture(index), dtype=torch.float32), fixed_grid, "fixed")
    shown = picture((unflipped - (34, 31)) @ turn + (34, 31))
    moving = Volume(torch.tensor(shown, dtype=torch.float32), moving_grid, "moving")
    matrix = initial_alignment(fixed, moving, Settings(init="rigid"))
    assert np.linalg.det(matrix[:3, :3]) == pytest.approx(1.0, abs=1e-4)
    inner = index[15:55, 15:50].reshape(-1, 2)
    position = moving_grid.index_from_world(
        fixed_grid.world_from_index(inner) @ matrix[:3, :3].T + matrix[:3, 3]
    )
    expected = (inner - (34, 31)) @ turn.T + (34, 31)
    expected[:, 0] = 69 - expected[:, 0]
    assert np.linalg.norm(position - expected, axis=1).mean() < 0.7


# ---------------------------------------------------------------- given transforms and refusals


def test_given_transform_is_taken_or_refined(fixed):
    truth = rigid((0, 0, 1), 30, (10, 0, 0))
    moving = phantom(centred((50, 50, 44), (2, 2, 2), center=(10, 0, 0)), np.linalg.inv(truth))
    near = truth @ rigid((1, 0, 0), 6, (3, -2, 1))
    np.testing.assert_array_equal(initial_alignment(fixed, moving, Settings(), initial=near), near)
    refined = initial_alignment(fixed, moving, Settings(init="rigid"), initial=near)
    points = foreground_points_mm(fixed)
    assert error_mm(refined, truth, points) < 0.7 < error_mm(near, truth, points)


@pytest.mark.parametrize("switched_off", [torch.no_grad, torch.inference_mode])
def test_it_searches_where_gradients_are_switched_off(fixed, switched_off):
    start = np.eye(4)
    start[:3, 3] = (3.0, -2.0, 1.0)
    wanted = initial_alignment(fixed, fixed, Settings(init="rigid"), initial=start)
    with switched_off():
        found = initial_alignment(fixed, fixed, Settings(init="rigid"), initial=start)
    np.testing.assert_array_equal(found, wanted)
    assert np.abs(found - start).max() > 0.5


def test_no_overlap_is_refused(fixed):
    away = phantom(centred((50, 44, 38), (2, 2, 2), center=(900, 0, 0)), rigid((1, 0, 0), 0, (-900, 0, 0)))
    with pytest.raises(NoOverlapError, match=r"share only 0\.0 %"):
        initial_alignment(fixed, away, Settings(init="identity"))
    found = initial_alignment(fixed, away, Settings(init="geometry"))
    np.testing.assert_allclose(found[:3, 3], (900, 0, 0), atol=1e-6)


def test_a_search_that_ends_worse_than_its_start_is_dropped(fixed, monkeypatch):
    """The headers are right; the optimiser is made to run away, and the start must be kept and said."""
    moving = phantom(FIXED_GRID)

    def astray(level, start, frames, affine, metric, most):
        return alignment.Candidate(start.linear, start.shift_mm + 12.0, start.loss)

    monkeypatch.setattr(alignment, "_refined", astray)
    notes: list[str] = []
    matrix = initial_alignment(fixed, moving, Settings(), notes=notes)
    np.testing.assert_allclose(matrix, np.eye(4), atol=1e-9)
    assert "the start is kept" in notes[0]
