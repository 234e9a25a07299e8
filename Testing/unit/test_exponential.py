"""Scaling and squaring against the matrix exponential, a fine integration, and itself backwards."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.linalg import expm

from DiffeoRegLib.errors import InputError, SettingsError, ShapeError
from DiffeoRegLib.flows.exponential import choose_squarings, exp, exp_time_varying
from DiffeoRegLib.flows.solvers import integrate
from DiffeoRegLib.flows.velocity import StationaryVelocity, TimeVaryingVelocity
from DiffeoRegLib.space.field import compose, minimum_corner_determinant
from DiffeoRegLib.space.filters import gaussian_smooth
from DiffeoRegLib.space.sample import array_from_tensor, identity_vox

DTYPE = torch.float64


def _linear(shape, scale=0.5):
    """v(x) = A (x - centre), its flow expm(A)(x - c) + c - x, and an interior that stays inside."""
    d = len(shape)
    a = torch.tensor([[0.2, -0.7, 0.3], [0.8, -0.3, 0.1], [-0.2, 0.4, 0.25]], dtype=DTYPE)[:d, :d] * scale
    centre = (torch.tensor(shape, dtype=DTYPE) - 1).view(1, d, *[1] * d) / 2
    offset = identity_vox(shape, DTYPE) - centre
    flow = torch.tensor(expm(array_from_tensor(a))) - torch.eye(d, dtype=DTYPE)
    interior = (slice(None), slice(None), *[slice(n // 2 - n // 5, n // 2 + n // 5) for n in shape])
    return (
        torch.einsum("ab,nb...->na...", a, offset),
        torch.einsum("ab,nb...->na...", flow, offset),
        interior,
    )


def _smooth(shape, largest, seed=0, sigma=3.0, dtype=DTYPE, batch=1):
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(batch, len(shape), *shape, dtype=dtype, generator=generator)
    v = gaussian_smooth(noise, sigma)
    return v * (largest / v.abs().max())


@pytest.mark.parametrize("shape", [(31, 35), (25, 21, 27)])
@pytest.mark.parametrize(("first_step", "order", "largest"), [(1, 1, 0.02), (2, 2, 2e-4)])
def test_linear_velocity_gives_the_matrix_exponential(shape, first_step, order, largest):
    v, expected, interior = _linear(shape)
    errors = [float((exp(v, k, first_step=first_step) - expected)[interior].abs().max()) for k in (5, 6)]
    assert errors[1] < largest
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("shape", [(31, 35), (25, 21, 27)])
def test_inverse_of_a_linear_flow(shape):
    v, expected, interior = _linear(shape)
    forward, backward = exp(v, 7, first_step=2), exp(-v, 7, first_step=2)
    assert float(expected[interior].abs().max()) > 1.0  # paired with the known answer above
    assert float(compose(backward, forward)[interior].abs().max()) < 1e-4


def test_a_curved_flow_agrees_with_fine_integration():
    v = _smooth((24, 20, 22), 3.0)
    reference = integrate(StationaryVelocity(v), (24, 20, 22), steps=32, dtype=DTYPE)
    found = exp(v, 6)
    assert float((found - reference).abs().mean()) < 2e-3  # linear interpolation of each squaring
    assert float((found - reference).abs().max()) < 0.1
    assert float(compose(exp(-v, 6), found).abs().mean()) < 0.01
    assert float(found.abs().max()) > 2.0


@pytest.mark.parametrize("shape", [(5, 1), (1, 7, 3), (2, 2, 2)])
def test_constant_and_no_velocity(shape):
    v = torch.tensor([2.5, -1.0, 0.25])[: len(shape)].view(1, -1, *[1] * len(shape)).expand(1, -1, *shape)
    torch.testing.assert_close(exp(v, "auto"), v)
    zero = torch.zeros(1, len(shape), *shape)
    assert torch.equal(exp(zero, 6), zero)
    assert torch.equal(exp(zero, 6, first_step=2), zero)
    assert torch.equal(exp(v, 0), v)


def test_batches_do_not_mix():
    v = _smooth((8, 9), 2.0, batch=3)
    torch.testing.assert_close(exp(v)[1:2], exp(v[1:2]))


def test_automatic_squarings_keep_the_first_step_below_half_a_voxel():
    v = torch.zeros(1, 2, 4, 4)
    assert choose_squarings(v) == 4
    for largest, expected in ((8.0, 4), (8.1, 5), (16.0, 5), (100.0, 8)):
        v[0, 1, 2, 2] = -largest
        assert choose_squarings(v) == expected
    smooth = _smooth((20, 22), 12.0, sigma=4.0)
    assert torch.equal(exp(smooth, "auto"), exp(smooth, 5))


def test_more_squarings_unfold_what_one_step_folds():
    v = _smooth((24, 26), 9.0, seed=3)
    assert float(minimum_corner_determinant(exp(v, 0)).min()) < 0
    assert float(minimum_corner_determinant(exp(v, "auto")).min()) > 0


def test_time_varying_is_the_composition_in_order_of_time():
    shape = (22, 24)
    velocities = torch.cat([_smooth(shape, 4.0, seed) for seed in (1, 2, 3)])
    found = exp_time_varying(velocities, 6, first_step=2)
    reference = integrate(TimeVaryingVelocity(velocities), shape, steps=60, dtype=DTYPE)
    wrong = integrate(TimeVaryingVelocity(velocities.flip(0)), shape, steps=60, dtype=DTYPE)
    assert float((found - reference).abs().mean()) < 0.01
    assert float((wrong - reference).abs().mean()) > 0.05  # the order of time matters here
    inverse = exp_time_varying(velocities, 6, inverse=True, first_step=2)
    assert float(compose(inverse, found).abs().mean()) < 0.02


def test_equal_intervals_are_one_stationary_flow():
    v, expected, interior = _linear((25, 27))
    found = exp_time_varying(v.expand(4, -1, -1, -1), 6, first_step=2)
    assert float((found - expected)[interior].abs().max()) < 1e-4


@pytest.mark.parametrize("first_step", [1, 2])
def test_gradients(first_step):
    v = _smooth((4, 5, 3), 0.9, sigma=0.7).requires_grad_()
    assert torch.autograd.gradcheck(lambda a: exp(a, 3, first_step=first_step), v)
    pair = torch.cat([_smooth((4, 5), 0.7, s, 0.7) for s in (1, 2)]).requires_grad_()
    assert torch.autograd.gradcheck(lambda a: exp_time_varying(a, 2, inverse=True), pair)


def test_the_velocity_is_left_alone():
    v = _smooth((6, 7), 2.0)
    before = v.clone()
    exp(v, 0)
    exp(v, 3, first_step=2)
    assert torch.equal(v, before)


def test_bad_settings_are_named():
    v = torch.zeros(1, 2, 4, 4)
    for squarings in (-1, 21):
        with pytest.raises(SettingsError):
            exp(v, squarings)
    with pytest.raises(SettingsError):
        exp(v, 2, first_step=3)
    with pytest.raises(ShapeError):
        exp(torch.zeros(1, 3, 4, 4))
    with pytest.raises(SettingsError):
        exp_time_varying(v[:0])
    v[0, 0, 0, 0] = float("nan")
    with pytest.raises(InputError):
        exp(v, "auto")
