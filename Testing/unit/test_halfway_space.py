"""The space half-way between two images: who comes first, halves of alignments, its grid, joined maps."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from DiffeoRegLib.errors import MemoryLimitError, NoOverlapError
from DiffeoRegLib.flows import halfway
from DiffeoRegLib.flows.exponential import exp, midpoint_exp
from DiffeoRegLib.flows.halfway import LEAST_RING_MM, join
from DiffeoRegLib.flows.inversion import invert
from DiffeoRegLib.flows.logarithm import unfold, unfold_map
from DiffeoRegLib.methods.start import BACKWARD, find_start
from DiffeoRegLib.pipeline import to_patient
from DiffeoRegLib.settings import Settings
from DiffeoRegLib.space.field import compose, folded_percent, u_mm_from_vox
from DiffeoRegLib.space.filters import gaussian_smooth
from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.space.jacobian import minimum_corner_determinant
from DiffeoRegLib.space.transform import AffineTransform, DisplacementTransform
from DiffeoRegLib.volumes.halfway import (
    NO_MIDDLE,
    exchanged_masks,
    fixed_first,
    halves_of,
    network_grid,
    prepare_halfway,
)
from DiffeoRegLib.volumes.pair import Masks
from DiffeoRegLib.volumes.volume import Volume
from Testing.halfway_cases import hostile_pair
from Testing.scenes import CENTRE_MM, Scene, smooth_velocity, turned_grid

TURN = np.array([[0.8, -0.5, 0.1, 12.0], [0.6, 0.9, 0.05, -7.0], [0.02, -0.1, 1.1, 4.0], [0, 0, 0, 1.0]])
HALF_CIRCLE = np.diag([-1.0, -1.0, 1.0, 1.0])
GRID = Grid((24, 22, 20), np.diag([1.0, 1.0, 1.0, 1.0]))


def few_bytes(voxels):
    return 10 * voxels


# ---------------------------------------------------------------- order


def test_contents_decide_who_comes_first():
    _, fixed, moving = hostile_pair()
    order = fixed_first(fixed, moving)
    assert isinstance(order, bool)
    assert fixed_first(moving, fixed) is not order
    renamed = Volume(fixed.data.clone(), Grid(fixed.grid.shape, fixed.grid.world_from_voxel), "other name")
    assert fixed_first(renamed, moving) is order
    assert fixed_first(fixed, renamed) is None


def test_places_and_masks_tell_equal_images_apart():
    scene, fixed, _ = hostile_pair()
    matrix = fixed.grid.world_from_voxel.copy()
    matrix[0, 3] += 1e-9
    nudged = Volume(fixed.data, Grid(fixed.grid.shape, matrix), "nudged")
    assert fixed_first(fixed, nudged) is not fixed_first(nudged, fixed)
    masks = Masks(fixed=scene.labels(fixed))
    order = fixed_first(fixed, fixed, masks)
    assert order is not None
    assert fixed_first(fixed, fixed, exchanged_masks(masks)) is not order
    both = Masks(masks.fixed, masks.fixed, exclude_moving=True)
    assert fixed_first(fixed, fixed, both) is not None
    assert fixed_first(fixed, fixed, Masks(masks.fixed, masks.fixed)) is None
    assert exchanged_masks(None) is None


# ---------------------------------------------------------------- halves


def test_two_halves_make_the_alignment():
    halves, problem = halves_of(TURN)
    assert problem is None
    np.testing.assert_allclose(halves.moving_from_grid @ halves.grid_from_fixed, TURN, atol=1e-12)
    np.testing.assert_allclose(halves.fixed_from_grid @ halves.grid_from_fixed, np.eye(4), atol=1e-12)
    np.testing.assert_allclose(halves.grid_from_moving @ halves.moving_from_grid, np.eye(4), atol=1e-12)
    assert np.linalg.det(halves.grid_from_fixed[:3, :3]) ** 2 == pytest.approx(np.linalg.det(TURN[:3, :3]))
    turned = halves.exchanged()
    assert turned.grid_from_fixed is halves.grid_from_moving
    assert turned.moving_from_grid is halves.fixed_from_grid


def test_halves_of_nothing_are_exact():
    halves, problem = halves_of(np.eye(4))
    assert problem is None
    assert all(np.array_equal(m, np.eye(4)) for m in (halves.grid_from_fixed, halves.moving_from_grid))


def test_half_a_circle_has_no_half():
    """The images then meet in one of their spaces, which must be the same one in both orders."""
    halves, problem = halves_of(HALF_CIRCLE)
    assert problem == NO_MIDDLE
    np.testing.assert_array_equal(halves.moving_from_grid @ halves.grid_from_fixed, HALF_CIRCLE)
    _, fixed, moving = hostile_pair()
    around = np.eye(4)
    around[:3, 3] = CENTRE_MM
    matrix = around @ HALF_CIRCLE @ np.linalg.inv(around)
    settings, notes = Settings(method="sitreg", init="auto"), []
    start = AffineTransform(matrix)
    one = find_start(fixed, moving, None, start, settings, notes, halfway=True).halves
    other = find_start(moving, fixed, None, start.inverse(), settings, [], halfway=True).halves
    assert NO_MIDDLE in notes
    assert np.array_equal(one.grid_from_fixed, other.grid_from_moving)
    assert np.array_equal(one.fixed_from_grid, other.moving_from_grid)


def test_the_report_says_which_way_the_alignment_was_computed():
    _, fixed, moving = hostile_pair()
    settings = Settings(method="sitreg", init="rigid")
    said = []
    for pair in ((fixed, moving), (moving, fixed)):
        notes = []
        find_start(*pair, None, None, settings, notes, halfway=True)
        said.append(BACKWARD in notes)
    assert sorted(said) == [False, True]


# ---------------------------------------------------------------- grid


def test_the_grid_holds_both_objects_upright_at_the_networks_voxels():
    """Objects of known radius, 3D: axes S, A, R; the middle of both once they are carried half-way."""
    _, fixed, moving = hostile_pair()
    shift = np.eye(4)
    shift[:3, 3] = 6.0, 0.0, 0.0
    halves, _ = halves_of(shift)
    grid = network_grid(fixed, moving, Masks(), halves, (2.0, 2.0, 2.5), Settings())
    np.testing.assert_allclose(grid.world_from_voxel[:3, :3], np.eye(3)[:, ::-1] * [2.0, 2.0, 2.5])
    middle = grid.center_mm - CENTRE_MM
    assert np.abs(middle).max() < 4.0
    for radius in (13.0, -13.0):
        for axis in range(3):
            point = CENTRE_MM + radius * np.eye(3)[axis]
            for carried in (point + shift[:3, 3] / 2, point - shift[:3, 3] / 2):
                index = grid.index_from_world(carried)
                assert (index > 1).all()
                assert (index < np.array(grid.shape) - 2).all()
    turned = network_grid(moving, fixed, Masks(), halves.exchanged(), (2.0, 2.0, 2.5), Settings())
    assert turned.shape == grid.shape
    assert np.array_equal(turned.world_from_voxel, grid.world_from_voxel)
    wider = network_grid(fixed, moving, Masks(), halves, (2.0, 2.0, 2.5), Settings(padding_mm=5.0))
    assert [a - b for a, b in zip(wider.shape, grid.shape, strict=True)] == [6, 6, 4]


def test_a_plane_keeps_the_axes_of_the_image_that_comes_first():
    scene = Scene(flat=True)
    fixed = scene.fixed(turned_grid((40, 37), (1.4, 1.1), 20, (1,)))
    moving = scene.moving(turned_grid((35, 44), (1.2, 1.0), -15, (0,)))
    halves, _ = halves_of(np.eye(4))
    grid = network_grid(fixed, moving, Masks(), halves, (2.0, 2.0), Settings())
    turned = network_grid(moving, fixed, Masks(), halves, (2.0, 2.0), Settings())
    assert np.array_equal(turned.world_from_voxel, grid.world_from_voxel)
    first = (fixed if fixed_first(fixed, moving) else moving).grid
    expected = first.world_from_voxel[:3, :2] / np.linalg.norm(first.world_from_voxel[:3, :2], axis=0)
    np.testing.assert_allclose(grid.world_from_voxel[:3, :2] / 2.0, expected, atol=1e-12)
    assert grid.center_mm[2] == pytest.approx(CENTRE_MM[2])


def prepared(settings, *, refined=True, network_bytes=few_bytes, limit=None, masks=None):
    _, fixed, moving = hostile_pair()
    return prepare_halfway(
        fixed, moving, masks, None, settings, halves_of(np.eye(4))[0], network_mm=(3.0, 3.0, 3.0),
        refined=refined, network_bytes=network_bytes, memory_limit_bytes=limit,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "refined", "expected"),
    [
        (Settings(), True, 1.5),  # the images have 1.4 mm
        (Settings(working_spacing_mm=1.0), True, 1.0),
        (Settings(working_spacing_mm=1.0), False, 3.0),
        (Settings(working_spacing_mm=7.0), True, 3.0),
    ],
)
def test_working_voxels_are_whole_fractions_of_the_networks(settings, refined, expected):
    pair = prepared(settings, refined=refined)
    assert pair.grid.spacing == pytest.approx([expected] * 3)
    factor = round(3.0 / expected)
    assert all(n % factor == 0 for n in pair.grid.shape)
    assert pair.grid.coarsened([factor] * 3).spacing == pytest.approx([3.0] * 3)
    assert float(pair.fixed.max()) > 0.9
    assert float(pair.moving.max()) > 0.9


def test_a_mask_decides_how_much_the_grid_holds():
    _, fixed, _ = hostile_pair()
    small = torch.zeros(fixed.grid.shape, dtype=torch.int32)
    small[9:11, 12:15, 10:13] = 1
    mask = Volume(small, fixed.grid, "small", is_labels=True)
    masks = Masks(mask, mask)
    assert prepared(Settings(), masks=masks).grid.voxel_count < 0.5 * prepared(Settings()).grid.voxel_count
    excluding = Masks(mask, mask, exclude_fixed=True, exclude_moving=True)
    assert prepared(Settings(), masks=excluding).grid.shape == prepared(Settings()).grid.shape


def test_images_that_never_count_together():
    """The grid holds both of them, far apart; either may be the one that is elsewhere."""
    _, fixed, moving = hostile_pair()
    matrix = moving.grid.world_from_voxel.copy()
    matrix[0, 3] += 90.0
    far = Volume(moving.data, Grid(moving.grid.shape, matrix), "far")
    for pair in ((fixed, far), (far, fixed)):
        with pytest.raises(NoOverlapError, match="share no space"):
            prepare_halfway(
                *pair, None, None, Settings(), halves_of(np.eye(4))[0], network_mm=(3.0, 3.0, 3.0),
                refined=False, network_bytes=few_bytes,
            )  # fmt: skip


def test_memory_limits_the_working_grid_and_then_the_run():
    fine = Settings(working_spacing_mm=0.5)
    assert min(prepared(fine).grid.spacing) == pytest.approx(0.5)
    limited = prepared(fine, limit=450_000_000)
    assert min(limited.grid.spacing) > 0.6
    assert any("coarser than asked for" in note for note in limited.notes)
    with pytest.raises(MemoryLimitError, match="crop the images"):
        prepared(fine, limit=450_000_000, network_bytes=lambda voxels: 100_000 * voxels)
    with pytest.raises(MemoryLimitError, match=r"0\.1 GB may be used"):
        prepared(fine.with_changes(memory_limit_gb=0.1))


# ---------------------------------------------------------------- joined maps


def bumps(size=2.0):
    """Two half-way maps and a velocity that do not end at the border."""
    generator = torch.Generator().manual_seed(3)
    fields = [gaussian_smooth(torch.randn(1, 3, *GRID.shape, generator=generator), 4.0) for _ in range(3)]
    return [field * (size / field.abs().amax()) for field in fields]


def test_joined_maps_are_the_composition():
    """In the middle, against compositions by hand; smooth maps that end inside the grid."""
    first, second = (exp(smooth_velocity(GRID.shape, 1.5, seed), 5) for seed in (1, 2))
    velocity = smooth_velocity(GRID.shape, 1.0, 3)
    flow = join(velocity, (first, second), GRID)
    expected = compose(first, compose(exp(velocity, 5), invert(second)))
    inside = (slice(None), slice(None), *[slice(int(p), int(p) + n) for p, n in zip(
        flow.grid.index_from_world(GRID.world_from_index([0.0] * 3)), GRID.shape, strict=True)])  # fmt: skip
    assert float((flow.forward_vox[inside] - expected).abs().mean()) < 0.02
    assert float(expected.abs().mean()) > 0.2
    assert flow.notes == []


def test_both_directions_are_drawn_to_each_other(monkeypatch):
    """Resampled compositions alone undo each other half as well."""
    first, second = (exp(smooth_velocity(GRID.shape, 1.5, seed), 5) for seed in (1, 2))
    velocity, undone = smooth_velocity(GRID.shape, 1.0, 3), []
    for rounds in (halfway.CONSISTENT_ROUNDS, 0):
        monkeypatch.setattr(halfway, "CONSISTENT_ROUNDS", rounds)
        flow = join(velocity, (first, second), GRID)
        undone.append(float(compose(flow.forward_vox, flow.inverse_vox).square().sum(1).sqrt().mean()))
    assert undone[0] < 0.02
    assert undone[0] < 0.7 * undone[1]


def test_the_ring_is_as_wide_as_the_motion_needs():
    velocity, first, second = bumps()
    flow = join(velocity, (first, second), GRID)
    longest = max(float(u.square().sum(1).sqrt()[..., 1:-1].amax()) for u in (velocity, first, second))
    added = (flow.grid.shape[0] - GRID.shape[0]) // 2
    assert LEAST_RING_MM <= added <= 1 + 2.5 * 1.3 * longest + LEAST_RING_MM
    for field in (flow.forward_vox, flow.inverse_vox):
        assert folded_percent(field) == 0
        ends = [float(field.select(axis, end).abs().amax()) for axis in (2, 3, 4) for end in (0, -1)]
        assert max(ends) < 1e-5
    narrow = join(velocity * 0, (0.1 * first, 0.1 * second), GRID, taper_mm=3.0)
    assert narrow.grid.shape == GRID.padded([3] * 3, [3] * 3).shape


def test_a_ring_in_which_a_map_would_fold_is_widened():
    """A shift of 4 voxels cannot end within one."""
    shift = torch.full((1, 3, *GRID.shape), 4.0)
    flow = join(torch.zeros_like(shift), (shift, torch.zeros_like(shift)), GRID, taper_mm=2.0)
    assert flow.grid.shape[0] > GRID.shape[0] + 2 * 4
    assert folded_percent(flow.forward_vox) == 0
    assert folded_percent(flow.inverse_vox) == 0
    assert float(flow.forward_vox[0, 0, *[n // 2 for n in flow.grid.shape]]) == pytest.approx(4.0, abs=1e-3)


@pytest.mark.parametrize("steps", ["auto", 6])
def test_exchanged_maps_join_to_exchanged_ones(steps):
    """Also where the velocity folds and is smoothed."""
    velocity, first, second = bumps()
    for v in (velocity, crumpled()):
        one = join(v, (first, second), GRID, steps)
        other = join(-v, (second, first), GRID, steps)
        assert torch.equal(one.forward_vox, other.inverse_vox)
        assert torch.equal(one.inverse_vox, other.forward_vox)
        assert torch.equal(one.velocity_vox, -other.velocity_vox)
        assert folded_percent(one.forward_vox) == 0
        assert one.steps == other.steps == (one.steps if steps == "auto" else 8)
    assert any("smoothed" in note for note in one.notes)


def crumpled():
    """A velocity whose flow folds in some places and whose reversed flow folds in others."""
    noise = torch.randn(1, 3, *GRID.shape, generator=torch.Generator().manual_seed(8))
    smooth = gaussian_smooth(noise, 1.2)
    return smooth * (5.0 / smooth.abs().amax())


def test_unfolding_a_reversed_velocity_gives_the_reversed_result():
    wild = crumpled()
    places = [minimum_corner_determinant(midpoint_exp(sign * wild)) < 0.05 for sign in (1, -1)]
    assert all(0 < int(place.sum()) < 0.1 * place.numel() for place in places)
    assert not torch.equal(*places)
    found, rounds = unfold(wild)
    turned, others = unfold(-wild)
    assert rounds == others > 0
    assert torch.equal(found, -turned)


def test_unfolding_a_map():
    generator = torch.Generator().manual_seed(1)
    field = gaussian_smooth(torch.randn(1, 3, *GRID.shape, generator=generator), 2.0)
    field = field / field.abs().amax()
    same, none = unfold_map(field, 0.01)
    assert none == 0
    assert torch.equal(same, field)
    field[..., 10, 10, 10] += 1.5
    assert folded_percent(field) > 0
    repaired, rounds = unfold_map(field, 0.01)
    assert rounds > 0
    assert folded_percent(repaired) == 0
    assert math.isclose(float((repaired - field)[..., :3, :, :].abs().amax()), 0.0, abs_tol=1e-3)


def test_joined_maps_stand_between_the_halves_of_the_alignment():
    """Halves that differ: where the alignment has none, one of them is the identity."""
    first, second = (exp(smooth_velocity(GRID.shape, 1.5, seed), 5) for seed in (1, 2))
    flow, (halves, _) = join(torch.zeros_like(first), (first, second), GRID), halves_of(HALF_CIRCLE)
    transform, inverse = to_patient(flow, AffineTransform(HALF_CIRCLE), halves)
    points = GRID.center_mm + np.random.default_rng(0).uniform(-4, 4, (50, 3))
    there = transform.map_points(points @ HALF_CIRCLE[:3, :3])
    field = DisplacementTransform(flow.grid, u_mm_from_vox(flow.forward_vox, flow.grid))
    np.testing.assert_allclose(there, field.map_points(points), atol=1e-9)
    assert np.linalg.norm(there - points, axis=1).max() > 0.5
    np.testing.assert_allclose(inverse.map_points(there), points @ HALF_CIRCLE[:3, :3], atol=0.1)
