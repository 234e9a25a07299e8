"""Instance optimisation of one level: known motions are found, symmetrically, in mm, within masks."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import pytest
import torch

from DiffeoRegLib.errors import Cancelled
from DiffeoRegLib.flows.exponential import exp
from DiffeoRegLib.methods.svf import StationaryVelocity
from DiffeoRegLib.optimise import (
    CONVERGENCE_WINDOW,
    Level,
    optimise_level,
)
from DiffeoRegLib.settings import SIMILARITIES, Settings
from DiffeoRegLib.space.field import change_grid
from DiffeoRegLib.space.filters import gaussian_smooth
from DiffeoRegLib.space.sample import identity_vox, sample, warp
from DiffeoRegLib.volumes.pair import Pair
from Testing.level_plans import PLAN
from Testing.scenes import pair_of, smooth_velocity, texture

SHAPES = [(24, 28, 26), (36, 40)]


@dataclass
class Run:
    """What a level ends with."""

    velocity: torch.Tensor
    values: list[float]
    level: Level
    pair: Pair

    @property
    def u_vox(self):
        """Displacement on the working grid, its voxels."""
        return exp(change_grid(self.velocity, self.level.grid, self.pair.grid), 6)


def run(pair, plan=PLAN, settings=None):
    settings = settings or Settings()
    level, values = Level(pair, plan, settings), []
    start = torch.zeros(1, pair.grid.dim, *level.grid.shape)
    velocity = optimise_level(start, level, plan, settings, lambda _, value: values.append(value))
    return Run(velocity, values, level, pair)


def length(u, margin=4):
    return u[(..., *[slice(margin, n - margin) for n in u.shape[2:]])].square().sum(1).sqrt()


@pytest.fixture(scope="module", params=SHAPES, ids=["3d", "2d"])
def scene(request):
    """(fixed, moving, true displacement): fixed(x) = moving(x + u(x))."""
    moving = texture(request.param)
    u = exp(smooth_velocity(request.param), 6)
    return warp(moving, u), moving, u


@pytest.mark.parametrize(
    ("similarity", "fine"),
    [(s, f) for s in SIMILARITIES for f in (True, False) if not (s == "mind" and f)],
)
def test_a_known_motion_is_found(scene, similarity, fine):
    fixed, moving, u = scene
    plan = dataclasses.replace(PLAN, similarity=similarity, fine=fine)
    found = run(pair_of(fixed, moving), plan)
    assert found.values[-1] < found.values[0]
    left = float(length(found.u_vox - u).mean() / length(u).mean())
    assert left < (0.6 if similarity in ("mse", "mind", "nmi") else 0.3)


def test_more_than_one_voxel_of_motion_falls_by_far(scene):
    """The default similarity leaves little of a motion of two voxels, both in 2D and 3D."""
    fixed, moving, u = scene
    found = run(pair_of(fixed, moving))
    assert float(length(u).max()) > 1.5
    assert float(length(found.u_vox - u).mean()) < 0.2 * float(length(u).mean())


def weights_of(shape):
    """Two soft masks that leave out different corners."""
    index = identity_vox(shape)
    first = (index[:, :1] > 5).float()
    second = (index[:, 1:2] < shape[1] - 7).float()
    return gaussian_smooth(first, 1.0), gaussian_smooth(second, 1.0)


@pytest.mark.parametrize("fine", [True, False])
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_swapping_the_images_negates_the_velocity(similarity, fine):
    """Bit for bit: every operation treats both images alike, and rounding does not know signs.

    Not mutual information: its histogram is a matrix product, whose transpose is summed in another order.
    """
    if similarity == "mind":
        fine = False  # as svf.plans has it
    shape = (16, 20, 18)
    fixed, moving = texture(shape), texture(shape, seed=3)
    masks = weights_of(shape)
    points = 4 + 8 * torch.rand(1, 3, 4), 4 + 8 * torch.rand(1, 3, 4)
    labels = [(image > 0.6).int() + (image > 0.7).int() for image in (fixed, moving)]
    plan = dataclasses.replace(PLAN, similarity=similarity, fine=fine, iterations=8)
    there = run(
        pair_of(
            fixed, moving, (2.0, 1.0, 1.0), fixed_mask=masks[0], moving_mask=masks[1], fixed_labels=labels[0],
            moving_labels=labels[1], fixed_points_vox=points[0], moving_points_vox=points[1],
        ),
        plan,
    )  # fmt: skip
    back = run(
        pair_of(
            moving, fixed, (2.0, 1.0, 1.0), fixed_mask=masks[1], moving_mask=masks[0], fixed_labels=labels[1],
            moving_labels=labels[0], fixed_points_vox=points[1], moving_points_vox=points[0],
        ),
        plan,
    )  # fmt: skip
    assert there.velocity.abs().max() > 0.5
    if similarity == "nmi":
        assert (there.velocity + back.velocity).abs().max() < 1e-3
    else:
        assert torch.equal(there.velocity, -back.velocity)
        assert there.values == back.values


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_equal_images_stay_exactly_where_they_are(similarity):
    image = texture((16, 20, 18))
    plan = dataclasses.replace(PLAN, similarity=similarity, fine=similarity != "mind", iterations=5)
    assert not run(pair_of(image, image.clone()), plan).velocity.any()


def test_nearly_equal_images_stay_nearly_where_they_are(scene):
    """Steps are always as long as the plan says, so noise alone can move something, but not far."""
    moving = scene[1]
    found = run(pair_of(moving + 1e-4 * torch.randn(moving.shape), moving))
    assert float(length(found.u_vox, margin=0).mean()) < 0.05


@pytest.mark.parametrize("fine", [True, False])
def test_a_step_is_as_long_as_the_plan_says(scene, fine):
    """`step` of the velocity grid's nominal voxel, in millimetres, whatever the spacing along the axes."""
    fixed, moving, _ = scene
    spacing = (2.5, 1.0, 1.0)[: fixed.dim() - 2]
    plan = dataclasses.replace(PLAN, fine=fine, iterations=1, velocity_sigma=0.0, step=0.3)
    found = run(pair_of(fixed, moving, spacing), plan)
    mm = found.velocity * torch.tensor(found.level.grid.spacing).view(1, -1, *[1] * len(spacing))
    assert float(mm.square().sum(1).amax().sqrt()) == pytest.approx(0.3 * (2.0 if fine else 1.0), rel=1e-5)


# ---------------------------------------------------------------- millimetres


def patient(points_mm):
    """A texture known at every point (d first), mm."""
    image = texture((48, 48, 48), seed=8, sigma=2.0)
    return sample(image, points_mm[None] + 8.0)[0, 0]


def true_mm(points_mm):
    """A smooth displacement of about 2 mm along every axis."""
    z, y, x = points_mm
    return torch.stack(
        [1.8 * torch.sin(y / 8) * torch.cos(x / 9), 1.6 * torch.cos(z / 8), 1.7 * torch.sin((x + y) / 9)]
    )


def recovered_mm(spacing, shape):
    """Displacement found between scans of the patient with these voxels, and the true one, mm, inside."""
    index = identity_vox(shape)[0]
    scale = torch.tensor(spacing).view(3, 1, 1, 1)
    points = (index + 0.5) * scale - 0.5
    pair = pair_of(patient(points + true_mm(points))[None, None], patient(points)[None, None], spacing)
    settings = Settings(levels_mm=(4.0, 2.0, 1.0), iterations=(30, 30, 20), large_displacement=False)
    method = StationaryVelocity()
    motion = method.refine(method.predict(pair, settings, lambda _: None), pair, settings, lambda _: None)
    u = exp(change_grid(motion.velocity_vox, motion.grid, pair.grid), 6)[0] * scale
    inner = (slice(None), *[slice(round(5 / s), -round(5 / s)) for s in spacing])
    return u[inner], true_mm(points)[inner]


@pytest.fixture(scope="module")
def isotropic():
    return recovered_mm((1.0, 1.0, 1.0), (33, 33, 33))


@pytest.mark.parametrize("axis", [0, 2])
def test_thick_slices_see_the_same_motion(isotropic, axis):
    """The scene with 1 mm and with 3 mm along one axis: one motion in millimetres, also across the slices."""
    spacing, shape = [1.0, 1.0, 1.0], [33, 33, 33]
    spacing[axis], shape[axis] = 3.0, 11
    found, truth = recovered_mm(tuple(spacing), tuple(shape))
    error, before = (v.square().sum(0).sqrt().mean() for v in (found - truth, truth))
    assert float(error) < 0.35 * float(before)
    across = (found - truth)[axis].square().mean().sqrt() / truth[axis].square().mean().sqrt()
    assert float(across) < 0.5
    error, before = (v.square().sum(0).sqrt().mean() for v in (isotropic[0] - isotropic[1], isotropic[1]))
    assert float(error) < 0.25 * float(before)


# ---------------------------------------------------------------- masks and guidance


@pytest.mark.parametrize("side", ["fixed", "moving"])
def test_what_lies_outside_a_mask_has_no_say(scene, side):
    """The same velocity, bit for bit, whatever is destroyed there; without the mask it is another one."""
    fixed, moving, u = scene
    images = {"fixed": fixed, "moving": moving}
    mask = torch.ones_like(fixed)
    mask[(..., *[slice(n // 2, None) for n in fixed.shape[2:]])] = 0.0
    damaged = images | {side: images[side].clone()}
    deep = (..., *[slice(n // 2 + 5, None) for n in fixed.shape[2:]])
    damaged[side][deep] = 1 - damaged[side][deep]
    masked = {f"{side}_mask": mask}
    clean, ruined = (run(pair_of(**each, **masked)) for each in (images, damaged))
    assert torch.equal(clean.velocity, ruined.velocity)
    assert clean.values == ruined.values
    assert not torch.equal(run(pair_of(**images)).velocity, run(pair_of(**damaged)).velocity)
    compared = (mask > 0).expand(1, 1, *mask.shape[2:])
    left = (clean.u_vox - u).square().sum(1, keepdim=True).sqrt()[compared].mean()
    assert float(left) < 0.5 * float(u.square().sum(1, keepdim=True).sqrt()[compared].mean())


def gap_vox(found, fixed, moving):
    return float((fixed + sample(found.u_vox, fixed) - moving).square().sum(1).sqrt().mean())


@pytest.mark.parametrize("fine", [True, False])
def test_landmarks_pull_where_there_is_no_contrast(fine):
    """An image that is flat but for one corner; two landmarks in the flat part."""
    shape = (24, 28, 26)
    image = torch.full((1, 1, *shape), 0.5)
    image[..., :8, :8, :8] = texture((8, 8, 8))
    fixed = torch.tensor([[14.0, 17.0], [15.0, 19.0], [13.0, 18.0]])[None]
    moving = fixed + torch.tensor([2.0, -2.0, 1.5]).view(1, 3, 1)
    pair = pair_of(image, image.clone(), (1.0, 1.2, 0.9), fixed_points_vox=fixed, moving_points_vox=moving)
    plan = dataclasses.replace(PLAN, fine=fine, iterations=40)
    found = run(pair, plan)
    assert gap_vox(found, fixed, moving) < 0.3 * 3.2
    untouched = run(pair, plan, Settings(guidance_weight=0.0))
    assert gap_vox(untouched, fixed, moving) > 3.1


def test_labels_pull_where_there_is_no_contrast():
    shape = (24, 28, 26)
    image = torch.full((1, 1, *shape), 0.5)
    image[..., :6, :6, :6] = texture((6, 6, 6))

    def ball(*centre):
        return ((identity_vox(shape) - torch.tensor(centre).view(1, 3, 1, 1, 1)).square().sum(1) < 36)[
            :, None
        ]

    labels = 3 * ball(14.0, 15.0, 13.0).int(), 3 * ball(16.0, 13.5, 14.0).int()
    pair = pair_of(image, image.clone(), fixed_labels=labels[0], moving_labels=labels[1])

    def dice(found):
        moved = warp((labels[1] > 0).float(), found.u_vox) > 0.5
        fixed = labels[0] > 0
        return 2 * float((moved & fixed).sum()) / float(moved.sum() + fixed.sum())

    plan = dataclasses.replace(PLAN, iterations=40)
    assert dice(run(pair, plan, Settings(guidance_weight=0.0))) < 0.75
    assert dice(run(pair, plan)) > 0.93


def test_guidance_and_images_share_the_step_by_weight(scene):
    """Landmarks that contradict the images win only with a large weight."""
    fixed, moving, u = scene
    middle = torch.tensor([float(n // 2) for n in fixed.shape[2:]]).view(1, -1, 1)
    wrong = middle + sample(u, middle) + 2.0
    pair = pair_of(fixed, moving, fixed_points_vox=middle, moving_points_vox=wrong)
    gaps = [gap_vox(run(pair, PLAN, Settings(guidance_weight=w)), middle, wrong) for w in (0.0, 0.2, 5.0)]
    assert gaps[0] > gaps[1] > gaps[2]
    assert gaps[2] < 0.5 * gaps[0]


# ---------------------------------------------------------------- stopping


def test_a_level_stops_when_nothing_is_gained(scene):
    fixed, moving, _ = scene
    plan = dataclasses.replace(PLAN, iterations=200)
    values = run(pair_of(fixed, moving), plan).values
    assert 2 * CONVERGENCE_WINDOW <= len(values) < 100


def test_nothing_moves_where_only_rounding_is_left(scene):
    """The longest step has a set length: without a stop it would follow differences of 1e-6."""
    _, moving, _ = scene
    for noise in (0.0, 1e-6, 1e-2):
        other = moving + noise * torch.randn(moving.shape, generator=torch.Generator().manual_seed(1))
        found = run(pair_of(moving, other), dataclasses.replace(PLAN, iterations=5))
        assert (len(found.values) == 1) == (noise < 1e-4)
        assert bool(found.velocity.any()) == (noise > 1e-4)


def test_every_step_is_told_and_can_stop_the_run(scene):
    fixed, moving, _ = scene
    pair = pair_of(fixed, moving)
    level, told = Level(pair, PLAN, Settings()), []

    def tell(iteration, value):
        told.append((iteration, value))
        if iteration == 3:
            raise Cancelled("stop")

    start = torch.zeros(1, pair.grid.dim, *level.grid.shape)
    with pytest.raises(Cancelled):
        optimise_level(start, level, PLAN, Settings(), tell)
    assert [number for number, _ in told] == [0, 1, 2, 3]
    assert not start.any()
