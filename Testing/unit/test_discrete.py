"""The large-displacement start: cost volumes, coupled-convex smoothing, logarithms, the whole search."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from DiffeoRegLib.errors import Cancelled, InputError, SettingsError, ShapeError
from DiffeoRegLib.flows.exponential import exp
from DiffeoRegLib.flows.logarithm import logarithm, make_consistent, unfold
from DiffeoRegLib.losses.cost_volume import CostVolume, cost_volume
from DiffeoRegLib.methods.base import Pair, Progress
from DiffeoRegLib.methods.coupled_convex import coupled_convex
from DiffeoRegLib.methods.discrete import Stage, default_stages, discrete_start, search, search_grid
from DiffeoRegLib.settings import Settings
from DiffeoRegLib.space.field import change_grid, folded_percent
from DiffeoRegLib.space.filters import gaussian_smooth
from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.space.sample import identity_vox, warp

torch.set_num_threads(1)

Lengths = tuple[int, ...]
Mm = tuple[float, ...]


def silent(_: Progress) -> None:
    """A report nobody reads."""


def noise(shape: tuple[int, ...], channels: int = 3, seed: int = 0) -> Tensor:
    return torch.rand((1, channels, *shape), generator=torch.Generator().manual_seed(seed))


def texture(shape: tuple[int, ...], sigma: float, seed: int = 0) -> Tensor:
    """A smooth random image in [0, 1]."""
    image = gaussian_smooth(noise(shape, 1, seed), sigma)
    return (image - image.min()) / (image.max() - image.min())


def grid_of(shape: tuple[int, ...], spacing: tuple[float, ...]) -> Grid:
    matrix = np.eye(4)
    matrix[range(len(spacing)), range(len(spacing))] = spacing
    return Grid(shape, matrix)


def smooth_velocity(shape: tuple[int, ...], size: float, seed: int = 0) -> Tensor:
    field = gaussian_smooth(noise(shape, len(shape), seed) - 0.5, 3.0)
    return field * (size / field.abs().max())


# ---------------------------------------------------------------- cost volume


@pytest.mark.parametrize(("shape", "shift"), [((9, 8, 10), (2, -1, 1)), ((12, 9), (-1, 2))])
def test_the_cost_vanishes_at_the_true_offset(shape: tuple[int, ...], shift: tuple[int, ...]) -> None:
    fixed = noise(shape)
    moving = torch.roll(fixed, shift, tuple(range(2, fixed.dim())))
    radius = [abs(s) for s in shift]
    volume = cost_volume(fixed, moving, radius)
    inner = tuple(slice(3, -3) for _ in shape)
    row = int((volume.offsets == torch.tensor(shift)).all(1).nonzero())
    assert len(volume.offsets) == math.prod(2 * r + 1 for r in radius)
    assert volume.costs[(row, *inner)].abs().max() == 0
    assert (volume.costs[(slice(None), *inner)].argmin(0) == row).all()
    assert (volume.offsets[0] == 0).all()


def test_every_cost_is_the_mean_squared_difference() -> None:
    fixed, moving = noise((4, 5, 6), 2, 1), noise((4, 5, 6), 2, 2)
    volume = cost_volume(fixed, moving, (1, 2, 1))
    for number, (a, b, c) in enumerate(volume.offsets.long().tolist()):
        y = (min(max(1 + a, 0), 3), min(max(3 + b, 0), 4), min(max(5 + c, 0), 5))
        expected = (fixed[0, :, 1, 3, 5] - moving[0, :, *y]).square().mean()
        assert torch.isclose(volume.costs[number, 1, 3, 5], expected)
    half = cost_volume(fixed, moving, (1, 2, 1), dtype=torch.float16)
    assert half.costs.dtype == torch.float16
    assert (half.costs - volume.costs).abs().max() < 1e-3


def test_masks_take_away_opinions() -> None:
    fixed, moving = noise((8, 8), 4, 1), noise((8, 8), 4, 2)
    fixed_mask, moving_mask = torch.ones(1, 1, 8, 8), torch.ones(1, 1, 8, 8)
    fixed_mask[..., :4] = 0
    moving_mask[..., 6:, :] = 0
    costs = cost_volume(fixed, moving, (1, 1), fixed_mask, moving_mask).costs
    changed = moving.clone()
    changed[..., 7, :] += 5.0
    assert (costs[:, :, :4] == 0).all()
    assert costs[:, 4, 5].std() > 1e-3  # rows 3 to 5 of the moving image count
    again = cost_volume(fixed, changed, (1, 1), fixed_mask, moving_mask).costs
    assert torch.equal(costs, again)
    leaving = costs[:, 7, 4:][cost_volume(fixed, moving, (1, 1)).offsets[:, 0] >= 0]
    assert leaving.std() < 1e-6
    plain = cost_volume(fixed, moving, (1, 1)).costs
    assert 0.5 * plain.mean() < leaving.mean() < 2 * plain.mean()


def test_a_cost_volume_refuses_what_does_not_fit() -> None:
    with pytest.raises(ShapeError):
        cost_volume(noise((8, 8)), noise((8, 9)), (1, 1))
    with pytest.raises(SettingsError):
        cost_volume(noise((8, 8)), noise((8, 8)), (1, 1, 1))
    with pytest.raises(SettingsError):
        cost_volume(noise((8, 8)), noise((8, 8)), (1, -1))


# ---------------------------------------------------------------- coupled convex


def offsets_2d(radius: int = 2) -> Tensor:
    line = torch.arange(-radius, radius + 1.0)
    offsets = torch.cartesian_prod(line, line)
    return offsets[offsets.square().sum(1).argsort(stable=True)]


def test_one_clear_minimum_everywhere_is_the_answer() -> None:
    offsets = offsets_2d()
    costs = (offsets - torch.tensor([2.0, -1.0])).square().sum(1).view(-1, 1, 1).expand(-1, 6, 7)
    u_vox = coupled_convex(CostVolume(costs, offsets))
    assert torch.allclose(u_vox[0], torch.tensor([2.0, -1.0]).view(2, 1, 1).expand(2, 6, 7), atol=1e-6)


def test_no_opinion_means_no_motion() -> None:
    offsets = offsets_2d()
    assert coupled_convex(CostVolume(torch.full((25, 5, 5), 0.3), offsets)).abs().max() == 0


def test_a_voxel_that_errs_is_carried_by_its_neighbours() -> None:
    offsets = offsets_2d()
    costs = ((offsets - torch.tensor([1.0, 1.0])).square().sum(1) * 0.1).view(-1, 1, 1).repeat(1, 9, 9)
    costs[:, 4, 4] = (offsets - torch.tensor([-2.0, -2.0])).square().sum(1) * 0.02
    u_vox = coupled_convex(CostVolume(costs, offsets))
    assert (u_vox[0, :, 4, 4] - 1).abs().max() < 0.2
    loose = coupled_convex(CostVolume(costs, offsets), stiffness=1e-6)
    assert (loose[0, :, 4, 4] - 1).abs().max() > 0.2


def test_outside_the_mask_the_neighbours_decide() -> None:
    offsets, mask = offsets_2d(), torch.ones(1, 1, 9, 9)
    mask[..., 5:] = 0
    costs = (offsets - torch.tensor([1.0, 0.0])).square().sum(1).view(-1, 1, 1).repeat(1, 9, 9)
    costs[:, :, 5:] = (offsets - torch.tensor([-2.0, 2.0])).square().sum(1).view(-1, 1, 1)
    masked = coupled_convex(CostVolume(costs * mask[0], offsets), mask)
    assert (masked[0, 0, :, :6] - 1).abs().max() < 0.05  # one column of the five without a say
    assert masked[0, 1, :, :6].abs().max() < 0.05
    assert (coupled_convex(CostVolume(costs, offsets))[0, 0, :, 5] - 1).abs().min() > 1


def test_the_coupling_is_physical() -> None:
    """A disagreement of one voxel along an axis of long steps weighs more than along one of short steps."""
    offsets = offsets_2d(1)
    costs = torch.zeros(9, 9, 9)
    costs[:] = offsets.square().sum(1).view(-1, 1, 1)
    costs[:, 4, 4] = 0.04 * (offsets - 1).square().sum(1)
    u_vox = coupled_convex(CostVolume(costs, offsets), aspect=(3.0, 0.1), couplings=(0.1, 0.1), passes=1)
    assert u_vox[0, 1, 4, 4] > u_vox[0, 0, 4, 4] + 0.05


# ---------------------------------------------------------------- logarithm


@pytest.mark.parametrize("shape", [(14, 16, 15), (24, 20)])
def test_the_logarithm_finds_a_velocity_with_the_asked_flow(shape: tuple[int, ...]) -> None:
    velocity = smooth_velocity(shape, 2.0)
    found = logarithm(exp(velocity), exp(-velocity), torch.zeros_like(velocity), iterations=30)
    assert (found.velocity_vox - velocity).abs().mean() < 0.02
    assert found.residual_mean_vox < 0.02
    assert found.unfold_rounds == 0


def test_the_logarithm_of_a_rotation_is_its_generator() -> None:
    """Known answer: the flow of v = A x is expm(A) x."""
    generator = torch.tensor([[0.0, -0.3], [0.3, 0.0]], dtype=torch.float64)
    centred = identity_vox((31, 31), torch.float64) - 15
    steps = [torch.matrix_exp(s * generator) - torch.eye(2) for s in (1, -1)]
    asked = [torch.einsum("ab,nb...->na...", step, centred) for step in steps]
    found = logarithm(asked[0], asked[1], iterations=40, sigma_vox=0.5)
    expected = torch.einsum("ab,nb...->na...", generator, centred)
    inner = (slice(None), slice(None), slice(10, 21), slice(10, 21))
    assert (found.velocity_vox - expected)[inner].abs().max() < 0.03
    assert (asked[0][inner] - expected[inner]).abs().max() > 0.1  # the displacement itself is something else


def test_consistency_makes_two_fields_inverse() -> None:
    shape = (16, 15, 14)
    forward, backward = exp(smooth_velocity(shape, 1.5)), exp(-smooth_velocity(shape, 1.2, seed=5))
    before = (forward + warp(backward, forward)).abs().mean()
    forward, backward = make_consistent(forward, backward)
    assert (forward + warp(backward, forward)).abs().mean() < 0.05 * before


def test_unfolding_removes_folds_and_leaves_the_rest() -> None:
    velocity = torch.zeros(1, 2, 40, 40)
    velocity[0, :, 4:14, 4:14] = 8.0 * (noise((10, 10), 2)[0] - 0.5)
    velocity[0, 1, 32:, 32:] = 0.2
    assert folded_percent(exp(velocity, "auto")) > 0
    smoothed, rounds = unfold(velocity)
    assert rounds > 0
    for sign in (1, -1):
        assert folded_percent(exp(sign * smoothed, "auto")) == 0
    assert (smoothed - velocity)[..., 24:, 24:].abs().max() < 1e-3
    same, none = unfold(smoothed)
    assert none == 0
    assert torch.equal(same, smoothed)


def test_a_logarithm_refuses_what_has_none() -> None:
    field = torch.zeros(1, 2, 8, 8)
    with pytest.raises(InputError):
        logarithm(field * float("nan"), field)
    with pytest.raises(ShapeError):
        logarithm(field, torch.zeros(1, 2, 8, 9))


# ---------------------------------------------------------------- the search


def moved_pair(shape: Lengths, spacing: Mm, shift_mm: Mm) -> tuple[Pair, Tensor]:
    """A texture and the same carried by a smooth bump of `shift_mm`; with the true displacement, voxels."""
    centre = [(n - 1) / 2 for n in shape]
    x = identity_vox(shape)
    reach = sum(((x[:, a : a + 1] - centre[a]) / (0.32 * shape[a])) ** 2 for a in range(len(shape)))
    velocity = torch.exp(-0.5 * reach * reach) * torch.tensor(
        [m / s for m, s in zip(shift_mm, spacing, strict=True)]
    ).view(1, -1, *[1] * len(shape))
    moving = texture(shape, 2.5)
    fixed = warp(moving, exp(velocity, 8))
    return Pair(fixed, moving, grid_of(shape, spacing), np.eye(4)), exp(velocity, 8)


@pytest.mark.parametrize(
    ("shape", "spacing", "shift_mm"),
    [
        ((48, 40, 44), (2.0, 2.5, 2.2), (20.0, -9.0, 6.0)),
        ((30, 60, 50), (4.0, 2.0, 2.0), (12.0, 20.0, 0.0)),
        ((120, 110), (2.0, 2.0), (30.0, -10.0)),
    ],
)
def test_the_search_finds_large_motion_without_folds(
    shape: tuple[int, ...], spacing: tuple[float, ...], shift_mm: tuple[float, ...]
) -> None:
    pair, truth = moved_pair(shape, spacing, shift_mm)
    motion = discrete_start(pair, Settings(extras={"search_radius_mm": 32.0}), silent)
    assert motion.grid.same_as(search_grid(pair.grid, 4.0))
    assert motion.velocity_vox.shape == (1, len(shape), *motion.grid.shape)
    flow = exp(motion.velocity_vox, "auto")
    assert folded_percent(flow) == 0
    assert folded_percent(exp(-motion.velocity_vox, "auto")) == 0
    step_mm = torch.tensor(spacing).view(1, -1, *[1] * len(shape))
    error = (change_grid(flow, motion.grid, pair.grid) - truth) * step_mm
    wrong = (truth * step_mm).square().sum(1).sqrt()
    inner = wrong > 5.0
    assert error.square().sum(1).sqrt()[inner].mean() < 2.5  # of 4 mm voxels
    assert wrong[inner].mean() > 9.0


def test_equal_images_do_not_move() -> None:
    image = texture((40, 36, 32), 1.5)
    pair = Pair(image, image.clone(), grid_of((40, 36, 32), (2.0, 2.0, 2.0)), np.eye(4))
    assert discrete_start(pair, Settings(), silent).velocity_vox.abs().max() < 1e-6


def test_exchanging_the_images_reverses_the_velocity() -> None:
    pair, _ = moved_pair((40, 40, 36), (2.0, 2.0, 2.0), (14.0, 0.0, -8.0))
    turned = Pair(pair.moving, pair.fixed, pair.grid, np.eye(4))
    stages = (Stage(8.0, 16.0), Stage(4.0, 8.0))
    there, back = (search(p, stages, silent).motion.velocity_vox for p in (pair, turned))
    assert there.abs().max() > 1.0
    assert (there + back).abs().max() < 1e-3 * float(there.abs().max())


def test_what_a_mask_leaves_out_has_no_say() -> None:
    """An excluded block that jumps the other way does not disturb the rest, and would without the mask."""
    pair, truth = moved_pair((100, 100), (2.0, 2.0), (20.0, 0.0))
    block = (..., slice(35, 65), slice(40, 60))
    spoiled = pair.fixed.clone()
    spoiled[block] = torch.roll(pair.moving, (8, 0), (2, 3))[block]
    mask = torch.ones_like(spoiled)
    mask[..., 33:67, 38:62] = 0
    errors = []
    for weight in (mask, None):
        masked = Pair(spoiled, pair.moving, pair.grid, np.eye(4), weight, None)
        start = search(masked, default_stages(32.0), silent)
        u_vox = change_grid(exp(start.motion.velocity_vox, "auto"), start.motion.grid, pair.grid)
        errors.append(float((u_vox - truth).square().sum(1, keepdim=True).sqrt()[block].mean()))
    assert errors[0] < 0.65 * errors[1]


def test_numbers_are_reported_and_cancel_is_heard() -> None:
    pair, _ = moved_pair((64, 60), (2.0, 2.0), (16.0, 0.0))
    heard: list[Progress] = []
    start = search(pair, (Stage(8.0, 24.0), Stage(4.0, 8.0)), heard.append)
    fractions = [p.fraction for p in heard]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert f"{start.largest_mm:.1f} mm" in heard[-1].message
    assert 0 <= start.residual_mean_mm <= start.residual_max_mm
    assert 10 < start.largest_mm < 24

    def cancel(_: Progress) -> None:
        raise Cancelled("stop")

    with pytest.raises(Cancelled):
        discrete_start(pair, Settings(), cancel)


def test_wrong_settings_are_named() -> None:
    pair, _ = moved_pair((32, 32), (2.0, 2.0), (4.0, 0.0))
    for radius in (0, -3.0, "far", float("nan")):
        with pytest.raises(SettingsError, match="search_radius_mm"):
            discrete_start(pair, Settings(extras={"search_radius_mm": radius}), silent)
    with pytest.raises(SettingsError):
        Stage(0.0, 8.0)
    with pytest.raises(SettingsError):
        search(pair, (), silent)


def test_the_search_grid_covers_the_field_of_view_in_millimetres() -> None:
    grid = grid_of((60, 61, 24), (1.5, 2.0, 5.0))
    for target in (8.0, 4.0):
        coarse = search_grid(grid, target)
        assert np.allclose(coarse.extent_mm, grid.extent_mm)
        assert np.allclose(coarse.center_mm, grid.center_mm)
        assert np.allclose(coarse.spacing, target, rtol=0.05)
    assert search_grid(grid_of((3, 60), (1.0, 1.0)), 8.0).shape == (2, 8)
