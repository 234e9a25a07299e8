"""Flows of velocities that change in time: units, order of convergence, inverses, gradients."""

from __future__ import annotations

import itertools
from fractions import Fraction
from functools import lru_cache

import pytest
import torch
from torch.nn import functional

from DiffeoRegLib.errors import InputError, SettingsError, ShapeError, UnknownNameError
from DiffeoRegLib.flows.time_varying import (
    MOST_SUBSTEPS,
    advance,
    enough_steps,
    full_resolution,
    in_steps,
    integrate_steps,
    inverse_of_steps,
    largest_slope,
    position_at,
    published_warp,
    safe_substeps,
    states,
    substeps_for,
    until,
)
from DiffeoRegLib.space.field import compose, downsample_image
from DiffeoRegLib.space.filters import gaussian_smooth
from DiffeoRegLib.space.jacobian import minimum_corner_determinant
from DiffeoRegLib.space.sample import identity_vox, warp


def noise(count, shape, sigma=2.0, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    fields = torch.randn(count, len(shape), *shape, generator=generator).to(dtype)
    smooth = gaussian_smooth(fields, sigma)
    return smooth / smooth.std()


def velocities(count, shape, largest=0.5, sigma=2.0, seed=0):
    """Fields that change in time; the largest step has this length."""
    fields = noise(count, shape, sigma, seed)
    return list((fields * (largest / fields.norm(dim=1).max())).split(1))


def inner(u_vox, margin):
    return u_vox[(slice(None), slice(None), *[slice(margin, -margin)] * (u_vox.dim() - 2))]


@pytest.mark.parametrize("order", ["paper", "residual"])
@pytest.mark.parametrize("shape", [(9, 12), (11, 13), (8, 9, 7)])
def test_no_velocity_is_no_motion_to_the_bit(order, shape):
    half = [-(-n // 2) for n in shape]
    still = [torch.zeros(1, len(shape), *half)] * 3
    u_vox = full_resolution(integrate_steps(still, order, 2), shape)
    assert torch.equal(u_vox, torch.zeros(1, len(shape), *shape))
    image = torch.rand(1, 1, *shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(warp(image, u_vox), image, rtol=0, atol=1e-6)


def test_the_official_order_moves_a_still_image():
    """Its sampling is off by up to half a voxel, and its outside is black."""
    image = torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(0)) + 1
    read = published_warp(image, torch.zeros(1, 2, 16, 16))
    ramp = identity_vox((16, 16))
    moved = inner(published_warp(ramp, torch.zeros(1, 2, 16, 16)) - ramp, 1)
    assert 0.4 < float(moved.abs().max()) < 0.5
    torch.testing.assert_close(read[0, 0, 0, 0], image[0, 0, 0, 0] / 4)


@pytest.mark.parametrize("order", ["paper", "residual"])
@pytest.mark.parametrize("shape", [(10, 14), (9, 11, 8)])
def test_a_constant_velocity_adds_up_and_doubles_on_the_full_grid(order, shape):
    dim, steps = len(shape), 5
    step = torch.tensor([0.7, -0.4, 0.25][:dim], dtype=torch.float64).view(1, dim, *[1] * dim)
    fields = [step.expand(1, dim, *[-(-n // 2) for n in shape])] * steps
    u_vox = integrate_steps(fields, order)
    torch.testing.assert_close(u_vox, (steps * step).expand_as(u_vox), rtol=1e-12, atol=0)
    full = full_resolution(u_vox, shape)
    torch.testing.assert_close(full, (2 * steps * step).expand(1, dim, *shape), rtol=1e-12, atol=0)
    unscaled = full_resolution(u_vox, shape, "official")
    torch.testing.assert_close(unscaled, full / 2, rtol=1e-12, atol=0)


def test_one_step_is_the_same_in_both_orders_and_two_are_not():
    fields = velocities(2, (12, 13), 2.0)
    assert torch.equal(integrate_steps(fields[:1], "paper"), integrate_steps(fields[:1], "residual"))
    two = [integrate_steps(fields, order) for order in ("paper", "residual")]
    assert float((two[0] - two[1]).abs().max()) > 0.1
    torch.testing.assert_close(two[0], fields[0] + warp(fields[1], fields[0]))
    torch.testing.assert_close(two[1], fields[1] + warp(fields[0], fields[1]))
    self_warped = sum(published_warp(v, v) for v in fields)
    torch.testing.assert_close(integrate_steps(fields, "official"), self_warped)


def rotation(radius, angle):
    """A velocity w x r over unit time, its exact displacement, and what lies within the radius; float64."""
    position = identity_vox([2 * radius + 7] * 3, torch.float64) - (radius + 3)
    x, y, z = torch.tensor([0.3, -0.2, 0.9], dtype=torch.float64) * angle / 0.94**0.5
    turn = torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=torch.float64)
    exact = torch.linalg.matrix_exp(turn) - torch.eye(3, dtype=torch.float64)
    fields = [torch.einsum("ab,nb...->na...", matrix, position) for matrix in (turn, exact)]
    return *fields, position.norm(dim=1) <= radius


@pytest.mark.parametrize("order", ["paper", "residual"])
def test_a_rotation_converges_with_the_first_order(order):
    velocity, exact, inside = rotation(9, 0.5)
    errors = []
    for steps in (8, 16, 32):
        u_vox = integrate_steps([velocity / steps] * steps, order)
        errors.append(float((u_vox - exact).norm(dim=1)[inside].max()))
    assert errors == pytest.approx([0.1415, 0.0705, 0.0352], rel=0.02)
    for before, after in itertools.pairwise(errors):
        assert before / after == pytest.approx(2, rel=0.03)


def test_parts_of_steps_are_more_steps():
    velocity, exact, inside = rotation(5, 0.5)
    once = integrate_steps([velocity / 16] * 16)
    torch.testing.assert_close(integrate_steps([velocity / 4] * 4, substeps=4), once)
    error = [
        float((integrate_steps([velocity / 4] * 4, substeps=k) - exact).norm(dim=1)[inside].max())
        for k in (1, 4)
    ]
    assert error[0] / error[1] == pytest.approx(4, rel=0.1)


def test_the_state_after_every_field_and_at_any_time():
    fields = velocities(4, (12, 14))
    path = list(states(fields))
    assert len(path) == 4
    torch.testing.assert_close(path[1], integrate_steps(fields[:2]))
    torch.testing.assert_close(path[-1], integrate_steps(fields))
    for time, expected in ((0.5, path[1]), (1.0, path[3]), (0.0, torch.zeros_like(path[0]))):
        torch.testing.assert_close(integrate_steps(until(fields, time)), expected)
    between = integrate_steps(until(fields, 0.625))
    torch.testing.assert_close(between, advance(path[1], fields[2] / 2))
    with pytest.raises(SettingsError, match=r"0 \.\.\. 1"):
        until(fields, 1.2)


KINDS = ("official", "not reversed", "negated", "per-step")
TABLE = {
    2.4: ((0.0737, 0.685), (0.0194, 0.182), (0.0159, 0.161), (0.0059, 0.060)),
    4.6: ((0.3024, 2.742), (0.0727, 0.571), (0.0565, 0.479), (0.0118, 0.126)),
    7.5: ((0.8630, 8.044), (0.2029, 1.587), (0.1541, 1.395), (0.0211, 0.349)),
}
"""Of the fields below: mean and largest error of KINDS, voxels, by the length of the longest displacement."""
SPECIFIED = {
    2.4: ((0.078, 0.73), (0.020, 0.17), (0.016, 0.16), (0.006, 0.06)),
    4.6: ((0.313, 2.91), (0.072, 0.60), (0.057, 0.57), (0.010, 0.18)),
    7.5: ((0.979, 8.53), (0.223, 1.65), (0.173, 1.61), (0.018, 0.35)),
}
"""Measured when the method was specified, on fields like these; their random numbers are not known."""


@lru_cache(maxsize=4)
def inverse_errors(largest):
    """Mean and largest |phi o inverse - id|, voxels, away from the border, for every way to invert."""
    fields = fields_of(largest)
    u_vox = integrate_steps(fields)
    wrong = sum(warp(v, v) for v in fields), sum(warp(-v, -v) for v in fields)
    found = {
        "official": compose(*wrong),
        "not reversed": compose(u_vox, integrate_steps([-v for v in fields])),
        "negated": compose(u_vox, inverse_of_steps(fields, "negated")),
        "per-step": compose(u_vox, inverse_of_steps(fields, "per-step")),
        "global": compose(u_vox, inverse_of_steps(fields, "global", tolerance_vox=1e-5)),
    }
    lengths = {name: inner(gap, 7).norm(dim=1) for name, gap in found.items()}
    return {name: (float(length.mean()), float(length.max())) for name, length in lengths.items()}


def fields_of(largest):
    """Eight velocities on 48^3 voxels, linear between 6^3 random vectors, and nearly alike."""
    generator = torch.Generator().manual_seed(9)
    coarse = torch.randn(9, 3, 6, 6, 6, generator=generator)
    fields = functional.interpolate(coarse, scale_factor=8, mode="trilinear", align_corners=False)
    fields = fields[:1] + 0.4 * fields[1:]
    scale = largest / float(fields.sum(0).norm(dim=0).max())
    for _ in range(3):
        u_vox = integrate_steps(list((fields * scale).split(1)))
        scale *= largest / float(u_vox.norm(dim=1).max())
    return list((fields * scale).split(1))


@pytest.mark.parametrize("largest", TABLE)
def test_the_errors_of_the_inverses(largest):
    """Better with every refinement, and the global inverse is one."""
    found = inverse_errors(largest)
    for name, expected in zip(KINDS, TABLE[largest], strict=True):
        assert found[name] == pytest.approx(expected, rel=0.02), name
    assert found["global"][1] < 1e-4
    means = [mean for mean, _ in found.values()]
    assert means == sorted(means, reverse=True)


def test_the_errors_of_the_inverses_are_those_of_the_specification():
    """Within 10 % where motion is small; within 20 % where it is large, but for one of sixteen."""
    ratios = {
        largest: [
            ours / theirs
            for name, pair in zip(KINDS, SPECIFIED[largest], strict=True)
            for ours, theirs in zip(inverse_errors(largest)[name], pair, strict=True)
        ]
        for largest in SPECIFIED
    }
    assert all(abs(ratio - 1) < 0.1 for ratio in ratios[2.4])
    far = [ratio for largest in (4.6, 7.5) for ratio in ratios[largest] if abs(ratio - 1) > 0.2]
    # The largest error of a single voxel.
    assert far == pytest.approx([0.70], abs=0.02)


@pytest.mark.parametrize("order", ["paper", "residual"])
@pytest.mark.parametrize("substeps", [1, 3])
def test_the_inverses_belong_to_their_order(order, substeps):
    fields = velocities(3, (26, 28), 0.8, sigma=3.0)
    u_vox = integrate_steps(fields, order, substeps)
    for kind, most in (("global", 2e-3), ("per-step", 0.02), ("negated", 0.3 / substeps)):
        gap = compose(u_vox, inverse_of_steps(fields, kind, order, substeps))
        assert float(inner(gap, 5).norm(dim=1).max()) < most, kind


def test_reversing_the_steps_matters():
    fields = velocities(4, (26, 28), 1.2, sigma=3.0)
    u_vox = integrate_steps(fields)
    reversed_ = compose(u_vox, inverse_of_steps(fields, "negated"))
    straight = compose(u_vox, integrate_steps([-v for v in fields]))
    assert float(inner(reversed_, 5).norm(dim=1).mean()) < 0.7 * float(inner(straight, 5).norm(dim=1).mean())


def test_the_slope_of_a_field_and_steps_that_cannot_fold():
    x = identity_vox((9, 10), torch.float64)
    shear = torch.stack([0.5 * x[:, 0] - 0.75 * x[:, 1], 0.25 * x[:, 0]], 1)
    assert largest_slope(shear) == pytest.approx(1.25)
    kink = torch.zeros(1, 2, 9, 10)
    kink[0, 0, 4, 5] = 1.0
    assert largest_slope(kink) == 2.0
    assert safe_substeps([kink]) == 3
    assert safe_substeps([kink * 0.4]) == 1
    fields = velocities(2, (20, 22), 4.0, sigma=1.5, seed=3)
    parts = safe_substeps(fields)
    assert 2 < parts < MOST_SUBSTEPS
    lowest = [float(minimum_corner_determinant(field).min()) for field in (fields[0], fields[0] / parts)]
    assert lowest[0] < 0 < lowest[1]
    with pytest.raises(InputError, match="NaN"):
        safe_substeps([kink * float("nan")])


@pytest.mark.parametrize("order", ["paper", "residual", "official"])
def test_gradients_of_the_flow(order):
    generator = torch.Generator().manual_seed(1)
    fields = [
        (0.3 * torch.randn(1, 2, 4, 5, dtype=torch.float64, generator=generator)).requires_grad_()
        for _ in range(3)
    ]
    parts = 1 if order == "official" else 2
    assert torch.autograd.gradcheck(
        lambda *v: full_resolution(integrate_steps(v, order, parts), (8, 9), order), fields, fast_mode=True
    )


def test_gradients_in_three_dimensions_and_of_the_inverse():
    generator = torch.Generator().manual_seed(2)
    fields = [
        (0.08 * torch.randn(1, 3, 4, 3, 4, dtype=torch.float64, generator=generator)).requires_grad_()
        for _ in range(2)
    ]
    assert torch.autograd.gradcheck(lambda *v: integrate_steps(v), fields, fast_mode=True)
    exact = {"kind": "global", "tolerance_vox": 1e-12}
    assert torch.autograd.gradcheck(lambda *v: inverse_of_steps(v, **exact), fields, fast_mode=True)


def test_steps_are_multiples_of_the_fields():
    assert [substeps_for(steps, 8) for steps in (8, 16, 8 * MOST_SUBSTEPS)] == [1, 2, MOST_SUBSTEPS]
    for steps in (0, 4, 12, 8 * MOST_SUBSTEPS + 8):
        with pytest.raises(SettingsError, match="multiple of 8 steps"):
            substeps_for(steps, 8)


def test_half_resolution_is_cell_centred():
    """A linear displacement survives the way to the half grid and back, but for the border."""
    shape = (12, 14)
    full = 0.1 * identity_vox(shape, torch.float64)
    half = downsample_image(full, [2, 2]) / 2
    torch.testing.assert_close(inner(full_resolution(half, shape), 1), inner(full, 1))


def test_what_cannot_be_integrated():
    fields = velocities(2, (6, 7))
    cases = [
        (ShapeError, "at least one velocity", ([],), {}),
        (ShapeError, "one grid", ([fields[0], fields[1][:, :, 1:]],), {}),
        (UnknownNameError, "order of composition", (fields, "eulerian"), {}),
        (SettingsError, "parts, not 0", (fields, "paper", 0), {}),
        (SettingsError, "has no shorter ones", (fields, "official", 2), {}),
    ]
    for error, sentence, arguments, options in cases:
        with pytest.raises(error, match=sentence):
            integrate_steps(*arguments, **options)
    with pytest.raises(SettingsError, match="global inverse"):
        inverse_of_steps(fields, "negated", "official")
    with pytest.raises(UnknownNameError, match="kind of inverse"):
        inverse_of_steps(fields, "exact")


# ---------------------------------------------------------------- other steps, and a time on the way


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 8, 12, 16, 128])
def test_other_steps_carry_the_same_velocity(steps):
    """Every step is the integral over its interval of what is constant between the old ones."""
    fields = velocities(8, (9, 12))
    found = in_steps(fields, steps)
    assert len(found) == steps
    edges = [Fraction(number, steps) for number in range(steps + 1)]
    for (begin, end), step in zip(itertools.pairwise(edges), found, strict=True):
        expected = torch.zeros_like(step)
        for number, field in enumerate(fields):
            first, last = max(begin, Fraction(number, 8)), min(end, Fraction(number + 1, 8))
            if first < last:
                expected += float((last - first) * 8) * field
        torch.testing.assert_close(step, expected, rtol=1e-12, atol=1e-15)


def test_as_many_steps_as_fields_are_the_fields():
    fields = velocities(3, (9, 12))
    assert all(torch.equal(one, other) for one, other in zip(in_steps(fields, 3), fields, strict=True))
    for steps in (0, -2):
        with pytest.raises(SettingsError, match="1 step or more"):
            in_steps(fields, steps)


@pytest.mark.parametrize("order", ["paper", "residual"])
def test_more_steps_converge_at_first_order(order):
    fields = velocities(4, (16, 18), largest=1.2, sigma=2.5)
    best = position_at(fields, 512, order)
    errors = [float((position_at(fields, steps, order) - best).abs().max()) for steps in (4, 8, 16, 32)]
    for coarse, fine in itertools.pairwise(errors):
        assert 1.7 < coarse / fine < 2.4


@pytest.mark.parametrize(("order", "steps"), [("paper", 3), ("residual", 8), ("official", 4)])
def test_a_position_on_the_way(order, steps):
    """The identity at 0; whole steps at their times; the end bit for bit whatever is asked."""
    fields = velocities(4, (12, 14), largest=0.8)
    assert not position_at(fields, steps, order, 0.0).any()
    twice = 2 if order == "official" else 1
    parts = [twice * step for step in (fields if order == "official" else in_steps(fields, steps))]
    for number, state in enumerate(states(parts, order), start=1):
        found = position_at(fields, steps, order, number / steps)
        torch.testing.assert_close(found, state / twice, rtol=0, atol=1e-12)
    assert torch.equal(position_at(fields, steps, order, 1.0), position_at(fields, steps, order))


def test_official_velocities_are_read_by_twice_their_true_length():
    fields = velocities(3, (12, 14), largest=0.8)
    expected = integrate_steps([2 * field for field in fields], "official")
    torch.testing.assert_close(2 * position_at(fields, 3, "official"), expected, rtol=1e-12, atol=0)
    with pytest.raises(SettingsError, match="in one step each, not in 6"):
        position_at(fields, 6, "official")
    with pytest.raises(UnknownNameError):
        position_at(fields, 3, "newest")


def test_enough_steps_are_the_fewest_that_are_one_to_one_within_what_is_offered():
    fields = velocities(4, (12, 14), largest=0.8)
    slope = max(largest_slope(field) for field in fields)
    for times, parts in ((0.5, 1), (1.5, 2), (2.5, 3)):
        scaled = [field * (times * 0.9 / slope) for field in fields]
        assert enough_steps(scaled, 128) == 4 * parts
        assert enough_steps(scaled, 9) == 4 * min(parts, 2)
        assert enough_steps(scaled, 3) == 4
