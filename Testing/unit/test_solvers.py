"""Solvers: stated orders are measured, on a formula and on a grid; jumps in time and going backwards."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.linalg import expm

from DiffeoRegLib.errors import SettingsError, ShapeError, UnknownNameError
from DiffeoRegLib.flows.solvers import EULER, RK4, SOLVERS, integrate, integrate_from, solver_named
from DiffeoRegLib.flows.velocity import StationaryVelocity, TimeVaryingVelocity
from DiffeoRegLib.space.field import compose
from DiffeoRegLib.space.sample import array_from_tensor, identity_vox

DTYPE = torch.float64


class Formula:
    """v(t, x) = (cos t x_2, sin x_1 + t, ...): no grid, no exact solution, smooth in time and space."""

    def __call__(self, time, position_vox):
        x = position_vox
        return torch.stack(
            [math.cos(2 * time) * x[:, 1].sin() + x[:, 0] / 3, (x[:, 0] + time).cos() * 1.5], 1
        )

    def pieces(self, start, stop):
        return [(start, stop, self)]


def _points(count, dim, low, high, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(1, dim, count, dtype=DTYPE, generator=generator)


def _linear_velocity(shape, scale=0.5):
    """v(x) = A (x - centre) on a grid, which linear interpolation reproduces; with A and the centre."""
    d = len(shape)
    a = torch.tensor([[0.2, -0.7, 0.3], [0.8, -0.3, 0.1], [-0.2, 0.4, 0.25]], dtype=DTYPE)[:d, :d] * scale
    centre = (torch.tensor(shape, dtype=DTYPE) - 1).view(1, d, *[1] * d) / 2
    return torch.einsum("ab,nb...->na...", a, identity_vox(shape, DTYPE) - centre), a, centre.flatten()


def _known_flow(a, centre, points, time=1.0):
    """expm(t A)(x - c) + c - x at points (1, d, n)."""
    matrix = torch.tensor(expm(array_from_tensor(a) * time))
    offset = points - centre.view(1, -1, 1)
    return torch.einsum("ab,nbk->nak", matrix, offset) - offset


@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_order_on_a_formula(name):
    solver, points = SOLVERS[name], _points(50, 2, -1.0, 1.0)
    reference = integrate_from(Formula(), points, steps=400, solver=RK4)
    errors = [
        float((integrate_from(Formula(), points, steps=n, solver=solver) - reference).abs().max())
        for n in (16, 32)
    ]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(solver.order, abs=0.25)


@pytest.mark.parametrize("shape", [(21, 25), (21, 17, 23)])
@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_order_on_a_gridded_linear_velocity(name, shape):
    solver, d = SOLVERS[name], len(shape)
    field, a, centre = _linear_velocity(shape)
    points = centre.view(1, d, 1) + _points(60, d, -3.0, 3.0)
    expected = _known_flow(a, centre, points)
    errors = [
        float(
            (integrate_from(StationaryVelocity(field), points, steps=n, solver=solver) - expected).abs().max()
        )
        for n in (4, 8)
    ]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(solver.order, abs=0.3)
    assert errors[1] < {"euler": 0.3, "midpoint": 0.02, "rk4": 1e-5}[name]


@pytest.mark.parametrize("time", [0.25, 0.6, -0.4])
def test_flow_at_any_time_is_the_matrix_exponential(time):
    field, a, centre = _linear_velocity((19, 21, 17))
    points = centre.view(1, 3, 1) + _points(40, 3, -3.0, 3.0)
    found = integrate_from(StationaryVelocity(field), points, steps=20, stop=time)
    torch.testing.assert_close(found, _known_flow(a, centre, points, time), atol=1e-7, rtol=0)


@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_backwards_in_time_is_the_inverse_flow(name):
    velocities = torch.cat([_linear_velocity((17, 15), s)[0] for s in (0.5, -0.3, 0.2)])
    velocity = TimeVaryingVelocity(velocities)
    there = integrate(velocity, (17, 15), steps=96, solver=SOLVERS[name], dtype=DTYPE)
    back = integrate(velocity, (17, 15), steps=96, solver=SOLVERS[name], start=1.0, stop=0.0, dtype=DTYPE)
    inner = (slice(None), slice(None), slice(5, -5), slice(5, -5))
    assert float(there[inner].abs().max()) > 0.15
    assert (
        float(compose(back, there)[inner].abs().max()) < {"euler": 6e-3, "midpoint": 2e-5, "rk4": 1e-8}[name]
    )


def test_pieces_do_not_cost_the_order():
    fields = [_linear_velocity((25, 27), s) for s in (0.6, -0.9, 0.4)]
    velocity = TimeVaryingVelocity(torch.cat([f[0] for f in fields]))
    centre = fields[0][2]
    points = centre.view(1, 2, 1) + _points(30, 2, -3.0, 3.0)
    expected = torch.zeros_like(points)
    for _, a, _ in fields:
        expected = expected + _known_flow(a, centre, points + expected, 1 / 3)
    # 10 steps do not divide into 3 intervals: a step across a jump would leave an error of first order.
    found = integrate_from(velocity, points, steps=10, solver=RK4)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_half_way_twice_is_the_whole_way():
    velocity = TimeVaryingVelocity(torch.cat([_linear_velocity((15, 15), s)[0] for s in (0.5, -0.2)]))
    points = _points(20, 2, 5.0, 9.0)
    half = integrate_from(velocity, points, steps=8, stop=0.37)
    rest = integrate_from(velocity, points + half, steps=8, start=0.37)
    whole = integrate_from(velocity, points, steps=16)
    torch.testing.assert_close(half + rest, whole, atol=1e-6, rtol=0)


def test_constant_velocity_is_a_translation_and_none_is_nothing():
    field = torch.tensor([1.25, -3.0, 0.5]).view(1, 3, 1, 1, 1).expand(1, 3, 4, 1, 5)
    for solver in SOLVERS.values():
        torch.testing.assert_close(
            integrate(StationaryVelocity(field), (4, 1, 5), steps=4, solver=solver), field
        )
        still = integrate(StationaryVelocity(torch.zeros_like(field)), (4, 1, 5), steps=3, solver=solver)
        assert torch.equal(still, torch.zeros_like(field))
        assert not integrate(StationaryVelocity(field), (4, 1, 5), steps=3, start=0.5, stop=0.5).any()


def test_velocity_at_a_time():
    velocity = TimeVaryingVelocity(torch.arange(3.0).view(3, 1, 1, 1).expand(3, 2, 2, 2))
    at = [float(velocity(t, torch.zeros(1, 2, 1))[0, 0, 0]) for t in (-1.0, 0.0, 0.32, 0.34, 0.9, 1.0, 7.0)]
    assert at == [0, 0, 0, 1, 2, 2, 2]
    assert [(round(a, 3), round(b, 3)) for a, b, _ in velocity.pieces(0.9, 0.1)] == [
        (0.9, 0.667),
        (0.667, 0.333),
        (0.333, 0.1),
    ]


def test_gradients_reach_every_interval():
    start = torch.cat([_linear_velocity((5, 4), s)[0] for s in (0.31, -0.23)]).requires_grad_()

    def flow(v):
        return integrate(TimeVaryingVelocity(v), (5, 4), steps=2, dtype=DTYPE)

    assert torch.autograd.gradcheck(flow, start)
    flow(start).square().sum().backward()
    assert bool((start.grad.flatten(1).abs().amax(1) > 0).all())


def test_bad_settings_are_named():
    velocity = StationaryVelocity(torch.zeros(1, 2, 4, 4))
    for steps in (0, -3):
        with pytest.raises(SettingsError):
            integrate(velocity, (4, 4), steps=steps)
    with pytest.raises(SettingsError):
        integrate(velocity, (4, 4), steps=2, stop=float("nan"))
    with pytest.raises(UnknownNameError, match="rk4"):
        solver_named("rk5")
    assert solver_named("euler") is EULER
    with pytest.raises(ShapeError):
        StationaryVelocity(torch.zeros(1, 3, 4, 4))
    with pytest.raises(SettingsError):
        TimeVaryingVelocity(torch.zeros(0, 2, 4, 4))
