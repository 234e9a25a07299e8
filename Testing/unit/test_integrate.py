"""From velocities to the finished map: the grid that covers, the fade, the ring, the steps, the inverse."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from DiffeoRegLib.errors import InputError
from DiffeoRegLib.flows import integrate as integrate_module
from DiffeoRegLib.flows.exponential import (
    LARGEST_MIDPOINT_STEP_VOX,
    exp,
    exp_time_varying,
    midpoint_squarings,
)
from DiffeoRegLib.flows.integrate import (
    FADE_MM,
    TAPER_PER_MM,
    WIDEST_TAPER_MM,
    covering_grid,
    faded,
    integrate,
    needed_taper_mm,
)
from DiffeoRegLib.space.field import compose, folded_percent
from DiffeoRegLib.space.filters import gaussian_smooth
from DiffeoRegLib.space.grid import Grid
from Testing.fake_run import hostile_grid


def flat_grid(shape=(20, 26), spacing=(2.0, 1.0)):
    matrix = np.diag([*spacing, *[1.0] * (4 - len(spacing))])
    matrix[:3, 3] = (-7.0, 30.0, 4.0)
    return Grid(shape, matrix)


GRIDS = [flat_grid(), hostile_grid((14, 16, 18))]
IDS = ["2d", "hostile 3d"]


def velocity_on(grid, size=1.5, times=1, sigma=2.5):
    velocity = gaussian_smooth(torch.randn(times, grid.dim, *grid.shape), sigma)
    return velocity * (size / velocity.abs().amax())


def ends_of(grid):
    """The outer corners of the field of view, RAS mm."""
    ends = list(itertools.product(*[(-0.5, n - 0.5) for n in grid.shape]))
    return grid.world_from_index(np.array(ends))


def start_in(wide, grid):
    """First voxel of `grid` in `wide`."""
    return np.rint(wide.index_from_world(grid.world_from_index([0.0] * grid.dim))).astype(int)


def part(field, wide, grid):
    first = start_in(wide, grid)
    return field[(..., *[slice(s, s + n) for s, n in zip(first, grid.shape, strict=True)])]


# ---------------------------------------------------------------- the grid


@pytest.mark.parametrize("grid", GRIDS, ids=IDS)
@pytest.mark.parametrize("beyond_mm", [0.0, 7.0])
def test_the_grid_covers_and_keeps_its_voxels(grid, beyond_mm):
    """Also a cover with other axes: every outer corner is inside, and one step less would not do."""
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(0.4), -np.sin(0.4)], [np.sin(0.4), np.cos(0.4)]]
    cover = Grid(
        tuple(n + 4 for n in grid.shape), turn @ grid.padded([3] * grid.dim, [1] * grid.dim).world_from_voxel
    )
    wide = covering_grid(grid, cover, beyond_mm)
    beyond = beyond_mm / np.array(grid.spacing)
    corners = wide.index_from_world(ends_of(cover))
    assert (corners - beyond >= -0.5 - 2e-3).all()
    assert (corners + beyond <= np.array(wide.shape) - 0.5 + 2e-3).all()
    np.testing.assert_allclose(wide.world_from_voxel[:3, :3], grid.world_from_voxel[:3, :3])
    first = start_in(wide, grid)
    np.testing.assert_allclose(
        wide.world_from_index(first), grid.world_from_index([0.0] * grid.dim), atol=1e-9
    )
    last = np.array(wide.shape) - first - np.array(grid.shape)
    assert (first >= 0).all()
    assert (last >= 0).all()
    lowest = (corners - beyond).min(axis=0)
    assert ((lowest < 0.5 + 2e-3) | (first == 0)).all()


def test_a_grid_that_covers_already_stays():
    grid = hostile_grid()
    assert covering_grid(grid, grid).same_as(grid)
    assert covering_grid(grid, grid.cropped([2, 3, 4], [9, 9, 9])).same_as(grid)
    fine = grid.refined([2, 2, 2])
    assert covering_grid(grid, fine).same_as(grid)


def test_a_coarse_grid_covers_the_outer_half_voxels():
    """Seven voxels in blocks of two: the last block sticks out, and covers."""
    fine = flat_grid((7, 9))
    coarse = fine.coarsened((2, 2))
    assert covering_grid(coarse, fine).same_as(coarse)
    narrow = fine.cropped([0, 0], [6, 8]).coarsened((2, 2))
    assert covering_grid(narrow, fine).shape == (4, 5)


# ---------------------------------------------------------------- fade and ring


@pytest.mark.parametrize("grid", GRIDS, ids=IDS)
def test_velocities_are_kept_inside_and_fade_outside(grid):
    velocity = velocity_on(grid, times=2)
    more = [int(np.ceil(FADE_MM / s)) + 2 for s in grid.spacing]
    wide = grid.padded(more, [m + 1 for m in more])
    out = faded(velocity, grid, wide, None, 0.0)
    assert out.shape == (2, grid.dim, *wide.shape)
    assert torch.equal(part(out, wide, grid), velocity)
    for axis in range(grid.dim):
        edge = out.select(2 + axis, more[axis])
        far = [float(out.select(2 + axis, more[axis] - k).abs().amax()) for k in range(more[axis] + 1)]
        assert far == sorted(far, reverse=True)
        assert far[0] == float(edge.abs().amax()) > 0
        assert far[-1] == 0
        distance = torch.tensor(grid.spacing[axis] * 2 / FADE_MM)
        share = float(0.5 + 0.5 * torch.cos(torch.pi * distance))
        torch.testing.assert_close(out.select(2 + axis, more[axis] - 2), share * edge)
        assert not out.select(2 + axis, wide.shape[axis] - 1).any()


@pytest.mark.parametrize("grid", GRIDS, ids=IDS)
@pytest.mark.parametrize("taper_mm", [4.0, 12.0])
def test_a_ring_leaves_the_view_alone_and_ends_in_rest(grid, taper_mm):
    cover = grid.cropped([1] * grid.dim, [n - 2 for n in grid.shape])
    velocity = velocity_on(grid)
    wide = covering_grid(grid, cover, taper_mm)
    out = faded(velocity, grid, wide, cover, taper_mm)
    assert torch.equal(part(out, wide, cover), part(velocity, grid, cover))
    for axis in range(grid.dim):
        for end in (0, -1):
            assert not out.select(2 + axis, end).any()


@pytest.mark.parametrize("taper_mm", [None, 8.0])
@pytest.mark.parametrize("grid", GRIDS, ids=IDS)
def test_the_map_is_the_identity_beyond_the_ring(grid, taper_mm):
    """A strong motion at the border: without a ring the field ends in a jump, with one at zero."""
    velocity = velocity_on(grid, size=2.0, sigma=4.0)
    jump = integrate(velocity, grid, grid, taper_mm=0.0)
    flow = integrate(velocity, grid, grid, taper_mm=taper_mm)
    for field in (flow.forward_vox, flow.inverse_vox):
        for axis in range(grid.dim):
            for end in (0, -1):
                assert float(field.select(2 + axis, end).abs().amax()) < 1e-6
    assert float(jump.forward_vox[:, :, 0].abs().amax()) > 0.1
    assert jump.grid.same_as(grid)
    ring = taper_mm or needed_taper_mm(velocity, grid, grid)
    assert covering_grid(grid, grid, ring).same_as(flow.grid)
    assert folded_percent(flow.forward_vox) == 0


def test_the_automatic_ring_grows_with_the_motion_at_the_border():
    grid = flat_grid()
    rest = torch.zeros(1, 2, *grid.shape)
    inside = rest.clone()
    inside[..., 8:12, 8:12] = 3.0
    assert needed_taper_mm(rest, grid, grid) == 0
    assert needed_taper_mm(inside, grid, grid) == 0
    at_border = rest.clone()
    at_border[0, 0, 5, 0] = 1.0  # one voxel of 2 mm, on the border of the second axis
    assert needed_taper_mm(at_border, grid, grid) == pytest.approx(2.0 * TAPER_PER_MM)
    assert needed_taper_mm(3 * at_border, grid, grid) == pytest.approx(6.0 * TAPER_PER_MM)
    assert needed_taper_mm(50 * at_border, grid, grid) == WIDEST_TAPER_MM
    wider = grid.padded([20, 40], [20, 40])
    assert needed_taper_mm(50 * at_border, grid, wider) == 0  # faded away before the border of the view


# ---------------------------------------------------------------- the flow


@pytest.mark.parametrize("grid", GRIDS, ids=IDS)
def test_the_inverse_undoes_the_flow(grid):
    """To a fiftieth of a voxel on average, in either order."""
    flow = integrate(velocity_on(grid, size=2.5), grid, grid)
    assert float(compose(flow.forward_vox, flow.inverse_vox).abs().mean()) < 0.02
    assert float(compose(flow.forward_vox, flow.inverse_vox).abs().amax()) < 0.2
    assert float(compose(flow.inverse_vox, flow.forward_vox).abs().mean()) < 0.02
    assert float(flow.forward_vox.abs().amax()) > 1.0
    assert flow.notes == []


@pytest.mark.parametrize("grid", GRIDS, ids=IDS)
def test_at_rest_nothing_moves(grid):
    flow = integrate(torch.zeros(1, grid.dim, *grid.shape), grid, grid)
    assert not flow.forward_vox.any()
    assert not flow.inverse_vox.any()
    assert flow.grid.same_as(grid)
    assert flow.steps == 4


@pytest.mark.parametrize(("steps", "taken"), [(1, 1), (2, 2), (3, 4), (16, 16), (17, 32)])
def test_steps_are_the_next_power_of_two(steps, taken):
    grid = flat_grid()
    velocity = velocity_on(grid)
    flow = integrate(velocity, grid, grid, steps, taper_mm=0.0)
    assert flow.steps == taken
    torch.testing.assert_close(flow.forward_vox, exp(velocity, int(np.log2(taken)), first_step=2))


@pytest.mark.parametrize("factor", [0.0, 0.9, 3.9, 4.0, 4.1, -8.0, 8.1, 70.0])
def test_automatic_steps_keep_the_first_one_short(factor):
    velocity = torch.zeros(1, 2, 5, 5)
    velocity[0, 1, 2, 2] = factor * LARGEST_MIDPOINT_STEP_VOX
    count = midpoint_squarings(velocity, fewest=1)
    assert abs(factor) * 0.5**count <= 1
    assert count == 1 or abs(factor) * 0.5 ** (count - 1) > 1
    assert midpoint_squarings(velocity, fewest=3) == max(3, count)
    velocity[0, 0, 0, 0] = torch.nan
    with pytest.raises(InputError, match="NaN"):
        midpoint_squarings(velocity)


def test_intervals_share_the_steps():
    """Each of T intervals is 1/T long: its first step is as short with fewer squarings."""
    grid = flat_grid()
    velocity = velocity_on(grid, size=16.0 * LARGEST_MIDPOINT_STEP_VOX, sigma=6.0)
    once = integrate(velocity, grid, grid, taper_mm=0.0)
    apart = integrate(velocity.expand(4, -1, -1, -1), grid, grid, taper_mm=0.0)
    assert (once.steps, apart.steps) == (16, 4)
    assert float((once.forward_vox - apart.forward_vox).abs().mean()) < 0.05


def test_a_time_varying_flow_that_folds_gets_more_steps(monkeypatch):
    """Folds are made up: the first map folds, the one with twice the steps does not."""
    grid = flat_grid()
    velocity = velocity_on(grid, size=1.0)
    both = torch.cat([velocity, velocity])
    shares = [1.0, 0.0]
    monkeypatch.setattr(integrate_module, "folded_percent", lambda _: shares.pop(0))
    least = midpoint_squarings(both / 2)
    flow = integrate(both, grid, grid, taper_mm=0.0)
    assert flow.steps == 2 ** (least + 1)
    torch.testing.assert_close(flow.forward_vox, exp_time_varying(both, least + 1, first_step=2))
    assert flow.notes == []


def test_folds_are_smoothed_out_and_said():
    grid = flat_grid((30, 30), (1.0, 1.0))
    velocity = velocity_on(grid, size=8.0, sigma=1.0)
    assert folded_percent(exp(velocity, 8, first_step=2)) > 0
    flow = integrate(velocity, grid, grid, taper_mm=0.0)
    assert folded_percent(flow.forward_vox) == 0
    assert len(flow.notes) == 1
    assert "smoothed" in flow.notes[0]


def test_folds_that_remain_are_said():
    grid = flat_grid((30, 30), (1.0, 1.0))
    flow = integrate(velocity_on(grid, size=6.0, sigma=1.0), grid, grid, 1, taper_mm=0.0)
    share = folded_percent(flow.forward_vox)
    assert share > 0
    assert len(flow.notes) == 1
    assert f"{share:.4f} %" in flow.notes[0]
    assert "1 time steps" in flow.notes[0]


def test_velocities_that_change_in_time():
    grid = flat_grid()
    velocity = velocity_on(grid, size=4.0, times=3)
    flow = integrate(velocity, grid, grid, 8, taper_mm=0.0)
    expected = exp_time_varying(velocity, 3, first_step=2)
    torch.testing.assert_close(flow.forward_vox, expected)
    mean = exp(velocity.mean(0, keepdim=True), 3, first_step=2)
    assert float((expected - mean).abs().amax()) > 0.05  # the order of the intervals matters
    back = exp_time_varying(velocity, 3, inverse=True, first_step=2)
    inner = (..., slice(3, -3), slice(3, -3))
    assert float((flow.inverse_vox - back)[inner].abs().amax()) < 0.15
    assert float(compose(flow.forward_vox, flow.inverse_vox).abs().mean()) < 0.02


def test_no_gradient_is_kept():
    grid = flat_grid()
    velocity = velocity_on(grid).requires_grad_()
    assert integrate(velocity, grid, grid).forward_vox.grad_fn is None
