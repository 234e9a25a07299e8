"""LDDMM geodesics: energy, direction, both maps, transport of momentum, the path, exact gradients."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from DiffeoRegLib.errors import SettingsError, ShapeError, UnknownNameError
from DiffeoRegLib.flows import shooting
from DiffeoRegLib.flows.exponential import exp
from DiffeoRegLib.flows.momentum import MomentumMetric
from DiffeoRegLib.flows.runge_kutta import DOPRI5, RK4, scheme_named
from DiffeoRegLib.flows.shooting import Plan, ShootingDiverged, energy, shoot, steps_for, trace
from DiffeoRegLib.space.field import compose, folded_percent, jacobian_determinant
from DiffeoRegLib.space.sample import identity_vox, sample, warp
from Testing.shooting_cases import (
    SIGMAS,
    WEIGHTS,
    disc,
    drift,
    lengths,
    map_gradient,
    plain_shoot,
    push,
    unit_spacing,
)

D = torch.float64
CENTRE = (0.5, 0.4, 0.5)


def _toy(shape, voxels=17.0, centre=CENTRE, dtype=D, sigmas=SIGMAS, **options):
    metric = MomentumMetric(shape, unit_spacing(shape), sigmas, WEIGHTS, dtype=dtype, **options)
    momentum = push(lambda m: metric.sources(metric.start(m))[0], shape, centre[: len(shape)], voxels, dtype)
    return metric, momentum


@pytest.fixture(scope="module")
def toy():
    """Metric, momentum and path of the 2D toy: 17 voxels of motion on 96 x 96."""
    metric, momentum = _toy((96, 96))
    return metric, momentum, trace(metric, metric.start(momentum), Plan(20))


@pytest.mark.parametrize("centre", [CENTRE, (0.5, 0.08), (0.05, 0.06)])
def test_energy_is_kept_to_the_error_of_the_steps(centre):
    metric, momentum = _toy((96, 96), centre=centre)
    drifts = [drift(trace(metric, metric.start(momentum), Plan(steps))) for steps in (20, 40)]
    assert drifts[0] < 5e-5
    assert drifts[1] < drifts[0] / 15


def test_energy_is_kept_in_3d_with_order_four_in_float32():
    for order in (2, 4):
        metric, momentum = _toy((28, 32, 28), 5.0, dtype=torch.float32, sigmas=(0.06, 0.1, 0.2), order=order)
        path = trace(metric, metric.start(momentum), Plan(20))
        assert drift(path) < 1e-4
        assert float(path.at(1.0).inverse_vox.abs().max()) > 4
        assert folded_percent(path.at(1.0).inverse_vox) == 0


def test_the_image_moves_with_the_momentum(toy):
    _, momentum, path = toy
    image = disc((96, 96), CENTRE[:2], 0.12, 0.01, D)
    u = path.at(1.0).inverse_vox
    moved = warp(image, u)
    along = identity_vox((96, 96), D)[:, 1:]
    shift = float((moved * along).sum() / moved.sum() - (image * along).sum() / image.sum())
    pulled = float(-(moved * u[:, 1:]).sum() / moved.sum())
    assert float((momentum[:, 1:] * image).sum()) > 0
    assert pulled > 5
    assert 0.6 * pulled < shift < 1.1 * pulled


def test_phi_undoes_its_inverse(toy):
    errors = []
    for n in (48, 96):
        if n == 96:
            end = toy[2].at(1.0)
        else:
            metric, momentum = _toy((n, n), 17.0 * (n - 1) / 95)
            end = trace(metric, metric.start(momentum), Plan(20)).at(1.0)
        rest = lengths(compose(end.forward_vox, end.inverse_vox)) / (n - 1)
        errors.append((float(rest.max()), float(rest.mean())))
    assert errors[1][0] * 95 < 0.3
    assert errors[1][1] * 95 < 0.02
    assert errors[1][0] < errors[0][0] / 2
    assert errors[1][1] < errors[0][1] / 2


def test_the_way_back_is_the_geodesic_of_the_final_momentum_negated(toy):
    metric, _, path = toy
    end = path.at(1.0)
    back = shoot(metric, (-end.state[0],), Plan(20))[-1]
    rest = lengths(back - end.forward_vox)
    assert float(rest.max()) < 0.3
    assert float(rest.mean()) < 0.02


def test_momentum_is_carried_as_a_density_of_covectors(toy):
    metric, _, path = toy
    first, end = path.states[0][0], path.at(1.0)
    u = end.inverse_vox
    slopes = [map_gradient(u, axis) for axis in range(2)]
    carried = warp(first, u)
    turned = torch.stack(
        [sum((slopes[a][:, k] + float(a == k)) * carried[:, k] for k in range(2)) for a in range(2)], 1
    )
    expected = turned * jacobian_determinant(u)[:, None]
    found = metric.sources((end.state[0],))[0]
    expected = metric.sources((expected,))[0]
    assert float((found - expected).norm() / found.norm()) < 0.03


def test_the_path_at_a_time_is_the_geodesic_of_a_shorter_momentum(toy):
    metric, momentum, path = toy
    middle = path.at(0.5)
    half = shoot(metric, metric.start(0.5 * momentum), Plan(10))
    assert float((middle.inverse_vox - half[-1]).abs().max()) < 1e-12
    assert float((metric.momentum_of(middle.state) - 2 * metric.momentum_of(half)).abs().max()) < 1e-12
    between = path.at(0.53)
    part = trace(metric, metric.start(0.53 * momentum), Plan(40)).at(1.0)
    assert float((between.inverse_vox - part.inverse_vox).abs().max()) < 2e-3
    assert float((between.forward_vox - part.forward_vox).abs().max()) < 2e-3
    start = path.at(0.0)
    assert float(start.inverse_vox.abs().max()) == float(start.forward_vox.abs().max()) == 0
    assert float((metric.momentum_of(start.state) - momentum).abs().max()) < 1e-15 * float(
        momentum.abs().max()
    )
    assert path.times[-1] == 1.0
    assert len(path.times) == 21
    for time in (-0.1, 1.1, float("nan")):
        with pytest.raises(SettingsError, match="from time 0 to 1"):
            path.at(time)


def test_dopri5_agrees_with_rk4(toy):
    metric, momentum, path = toy
    start = metric.start(momentum)
    fine = shoot(metric, start, Plan(80))
    adaptive = trace(metric, start, Plan(5, DOPRI5, tolerance=1e-6))
    assert float((adaptive.at(1.0).inverse_vox - fine[-1]).abs().max()) < 1e-3
    assert float((path.at(1.0).inverse_vox - fine[-1]).abs().max()) < 0.02
    assert sum(b - a for a, b in zip(adaptive.times, adaptive.times[1:], strict=False)) == pytest.approx(1)
    loose = trace(metric, start, Plan(5, DOPRI5, tolerance=1e-3))
    assert len(loose.times) < len(adaptive.times)
    assert drift(adaptive) < 1e-5
    order = [
        float(
            (
                shoot(metric, start, Plan(n, dataclasses.replace(DOPRI5, error_weights=())))[-1] - fine[-1]
            ).norm()
        )
        for n in (10, 20)
    ]
    assert order[0] / order[1] > 12


def test_the_flow_of_a_frozen_velocity_is_its_exponential(toy):
    metric, momentum, _ = toy
    v = metric.sources(metric.start(momentum))[0]

    class Frozen(MomentumMetric):
        """vSVF: the velocity of the start for the whole time."""

        def sources(self, state):
            return (v,)

    frozen = Frozen((96, 96), metric.spacing, SIGMAS, WEIGHTS, dtype=D)
    carried = shoot(frozen, frozen.start(momentum), Plan(40))[-1]
    rest = lengths(exp(-v, 7) - carried)
    assert float(rest.max()) < 0.25
    assert float(rest.mean()) < 0.01
    rest = lengths(compose(exp(v, 7), exp(-v, 7)))
    assert float(rest.max()) < 0.4
    assert float(rest.mean()) < 0.015


@pytest.mark.parametrize("order", [2, 4])
def test_physical_units(order):
    """One momentum in mm on three grids: the same motion in mm."""
    found = []
    for spacing in ((1.0, 1.0), (1.0, 2.0), (0.5, 1.0)):
        shape = tuple(round(64 / s) for s in spacing)
        metric = MomentumMetric(shape, spacing, (5.0, 8.0), (0.5, 0.5), dtype=D, order=order)
        step = torch.tensor(spacing, dtype=D).view(1, 2, 1, 1)
        x = (identity_vox(shape, D) + 0.5) * step
        centre = torch.tensor([32.0, 28.0], dtype=D).view(1, 2, 1, 1)
        blob = torch.exp(-0.5 * ((x - centre) / 6).square().sum(1, keepdim=True))
        momentum = blob * torch.tensor([6.0, 14.0], dtype=D).view(1, 2, 1, 1)
        start = metric.start(momentum)
        u_mm = shoot(metric, start, Plan(10))[-1] * step
        there = (identity_vox((20, 20), D) * 2 + 12.0) / step - 0.5
        found.append((float(energy(metric, start)), sample(u_mm, there, mode="cubic")))
    assert float(found[0][1].abs().max()) > 4
    for value, u_mm in found[1:]:
        assert value == pytest.approx(found[0][0], rel=1e-3)
        assert float((u_mm - found[0][1]).abs().max()) < 0.1


def test_exchanging_axes_exchanges_the_motion():
    shape, order = (12, 14, 16), (2, 0, 1)
    metric = MomentumMetric(shape, (1.0, 1.2, 0.9), (2.5, 4.0), (0.4, 0.6), dtype=D)
    momentum = 20 * torch.randn(1, 3, *shape, dtype=D)
    turned = MomentumMetric([shape[a] for a in order], (0.9, 1.0, 1.2), (2.5, 4.0), (0.4, 0.6), dtype=D)
    u = shoot(metric, metric.start(momentum), Plan(5))[-1]
    other = momentum[:, list(order)].permute(0, 1, *[2 + a for a in order])
    found = shoot(turned, turned.start(other), Plan(5))[-1]
    assert float(u.abs().max()) > 1
    assert float((found - u[:, list(order)].permute(0, 1, *[2 + a for a in order])).abs().max()) < 1e-12


def test_samples_of_a_batch_do_not_meet():
    metric, momentum = _toy((40, 44), 5.0, sigmas=(0.05, 0.1, 0.2))
    both = torch.cat([momentum, -0.5 * momentum])
    together = shoot(metric, metric.start(both), Plan(5))[-1]
    for index in range(2):
        alone = shoot(metric, metric.start(both[index : index + 1]), Plan(5))[-1]
        assert float((alone - together[index : index + 1]).abs().max()) < 1e-12


def test_no_momentum_is_no_motion():
    metric, momentum = _toy((20, 24), 2.0, sigmas=(0.1, 0.2, 0.3))
    for scheme in (RK4, DOPRI5):
        u = shoot(metric, metric.start(0 * momentum), Plan(5, scheme))[-1]
        assert torch.equal(u, torch.zeros_like(u))
    assert steps_for(metric, metric.start(0 * momentum)) == 5


def test_single_precision_and_both_kernel_forms_agree():
    metric, momentum = _toy((96, 96))
    exact = shoot(metric, metric.start(momentum), Plan(20))[-1]
    for form in ("separable", "fourier"):
        single = MomentumMetric((96, 96), unit_spacing((96, 96)), SIGMAS, WEIGHTS, form=form)
        u = shoot(single, single.start(momentum.float()), Plan(20))[-1]
        assert float((u.double() - exact).abs().max()) < 1e-3


@pytest.mark.parametrize("scheme", [RK4, dataclasses.replace(DOPRI5, error_weights=())])
@pytest.mark.parametrize("order", [2, 4])
def test_the_gradient_is_that_of_the_discrete_scheme(scheme, order):
    metric, momentum = _toy((12, 12), 3.0, sigmas=(0.15, 0.2, 0.4), order=order)
    weight = torch.randn(3, 1, 2, 12, 12, dtype=D)

    def value(m, keep=1 << 30):
        state = shoot(metric, metric.start(m), Plan(4, scheme, keep_bytes=keep))
        return (
            (weight[0] * state[-1]).sum()
            + (weight[1] * state[-1].square()).sum()
            + (weight[2] * state[0]).sum()
        )

    leaf = momentum.clone().requires_grad_()
    (found,) = torch.autograd.grad(value(leaf), leaf)
    (short,) = torch.autograd.grad(value(leaf, keep=0), leaf)
    (partly,) = torch.autograd.grad(value(leaf, keep=60_000), leaf)
    assert torch.equal(found, short)
    assert torch.equal(found, partly)
    for direction in torch.randn(4, *momentum.shape, dtype=D):
        step = 1e-5 * float(momentum.abs().max())
        with torch.no_grad():
            slope = (value(momentum + step * direction) - value(momentum - step * direction)) / (2 * step)
        assert float(abs((found * direction).sum() - slope) / abs(slope)) < 1e-7


@pytest.mark.parametrize("shape", [(12, 12), (8, 9, 7)])
def test_map_and_gradient_are_those_of_the_plain_form(shape):
    metric, momentum = _toy(shape, 2.0, sigmas=(0.26, 0.3, 0.5))
    results = []
    for run in (lambda s: shoot(metric, s, Plan(4)), lambda s: plain_shoot(metric, s, 4)):
        leaf = momentum.clone().requires_grad_()
        start = metric.start(leaf)
        state = run(start)
        value = state[-1].square().sum() + state[0].sin().sum() + energy(metric, start).sum()
        results.append((*state, *torch.autograd.grad(value, leaf)))
    for ours, plain in zip(*results, strict=True):
        assert float((ours - plain).detach().abs().max()) < 1e-12 * float(
            plain.detach().abs().max().clamp(min=1)
        )


def test_the_gradient_of_the_energy_is_the_velocity():
    metric, momentum = _toy((16, 18), 2.0, sigmas=(0.15, 0.2, 0.4))
    start = tuple(part.requires_grad_() for part in metric.start(momentum))
    (found,) = torch.autograd.grad(energy(metric, start).sum(), start)
    assert float((found * 16 * 18 - metric.sources(start)[0]).detach().abs().max()) < 1e-12


def test_steps_follow_the_speed_and_too_few_are_refused(toy):
    metric, momentum, _ = toy
    start = metric.start(momentum)
    rate = float(metric.sources(start)[0].abs().sum(1).max())
    assert steps_for(metric, start) == -int(-rate // 2)
    fine = MomentumMetric((96, 96), metric.spacing, SIGMAS, WEIGHTS, dtype=D, order=4)
    assert steps_for(fine, start) > steps_for(metric, start)
    with pytest.raises(ShootingDiverged, match=r"5 steps allow 12\.5"):
        shoot(metric, start, Plan(5))
    hole = momentum.clone()
    hole[0, 0, 3, 3] = float("nan")
    with pytest.raises(ShootingDiverged, match="crosses nan"):
        shoot(metric, metric.start(hole), Plan(20))
    with pytest.raises(ShootingDiverged, match="contains NaN"):
        steps_for(metric, metric.start(hole))
    with pytest.raises(ShootingDiverged, match="too stiff"):
        shoot(metric, metric.start(hole), Plan(20, DOPRI5))


def test_overflow_on_the_way_is_an_error_not_a_map(toy, monkeypatch):
    metric, momentum, _ = toy
    monkeypatch.setattr(shooting, "LARGEST_STEP_VOX", 1e9)
    with pytest.raises(ShootingDiverged, match="overflowed in 6 steps"):
        shoot(metric, metric.start(300 * momentum), Plan(6))


def test_bad_input_is_named():
    for weights in ((1.0,), (0.0, 0.0, 0.0), (0.5, -0.1, 0.6), (float("nan"), 0.5, 0.5)):
        with pytest.raises(SettingsError, match="3 kernels need as many weights"):
            MomentumMetric((20, 20), (1.0, 1.0), (2.0, 3.0, 4.0), weights)
    metric = MomentumMetric((20, 22), (1.0, 1.0), (2.0, 3.0), (1.0, 3.0))
    assert metric.weights == (0.25, 0.75)
    for shape in ((1, 2, 22, 20), (1, 3, 20, 22), (2, 20, 22)):
        with pytest.raises(ShapeError, match="momentum should be"):
            metric.start(torch.zeros(shape))
    with pytest.raises(SettingsError, match="at least one step"):
        Plan(0)
    with pytest.raises(SettingsError, match="positive tolerance"):
        Plan(5, DOPRI5, tolerance=0.0)
    assert scheme_named("dopri5") is DOPRI5
    with pytest.raises(UnknownNameError, match="rk4"):
        scheme_named("euler")
