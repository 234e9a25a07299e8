"""RDMM geodesics: LDDMM as a special case, energy and its sign, carried pre-weights, exact gradients."""

from __future__ import annotations

import math

import pytest
import torch

from DiffeoRegLib.errors import SettingsError, ShapeError
from DiffeoRegLib.flows.momentum import MomentumMetric
from DiffeoRegLib.flows.regional import (
    RegionalMetric,
    local_sigma,
    preweights_from_regions,
    preweights_from_scores,
)
from DiffeoRegLib.flows.runge_kutta import DOPRI5
from DiffeoRegLib.flows.shooting import Plan, energy, shoot, trace
from DiffeoRegLib.space.field import compose, folded_percent
from DiffeoRegLib.space.sample import warp
from Testing.shooting_cases import (
    PREWEIGHT_SIGMA,
    SIGMAS,
    WEIGHTS,
    drift,
    lengths,
    plain_shoot,
    push,
    unit_spacing,
    varied_preweights,
)

D = torch.float64
CENTRE = (0.5, 0.4, 0.5)
SMALL = {"sigmas": (0.26, 0.3, 0.5), "preweight_sigma": 0.15}


def _toy(
    shape, voxels=17.0, centre=CENTRE, dtype=D, sigmas=SIGMAS, preweight_sigma=PREWEIGHT_SIGMA, **options
):
    metric = RegionalMetric(shape, unit_spacing(shape), sigmas, preweight_sigma, dtype=dtype, **options)
    h = varied_preweights(shape, centre[: len(shape)], dtype)
    momentum = push(
        lambda m: metric.sources(metric.start(m, h))[0], shape, centre[: len(shape)], voxels, dtype
    )
    return metric, momentum, h


@pytest.fixture(scope="module")
def toy():
    """Metric, momentum, pre-weights and path of the 2D toy: 17 voxels of motion on 96 x 96."""
    metric, momentum, h = _toy((96, 96))
    return metric, momentum, h, trace(metric, metric.start(momentum, h), Plan(20))


@pytest.mark.parametrize("centre", [CENTRE, (0.5, 0.08), (0.05, 0.06)])
def test_energy_is_kept_to_the_error_of_the_steps(centre):
    metric, momentum, h = _toy((96, 96), centre=centre)
    drifts = [drift(trace(metric, metric.start(momentum, h), Plan(steps))) for steps in (20, 40)]
    assert drifts[0] < 5e-5
    assert drifts[1] < drifts[0] / 15


@pytest.mark.parametrize("order", [2, 4])
@pytest.mark.parametrize("shape", [(17, 14), (12, 10, 11)])
def test_the_rates_themselves_conserve_energy(order, shape):
    """dE/dt = <dm/dt, v> + sum_i <dh_i/dt, G(m . nu_i)>, whatever the state."""
    sigmas = (0.3, 0.5)
    metric = RegionalMetric(shape, unit_spacing(shape), sigmas, 0.1, dtype=D, order=order)
    m = torch.randn(2, len(shape), *shape, dtype=D)
    state = (m, preweights_from_scores(torch.randn(2, 2, *shape, dtype=D)), torch.zeros_like(m))
    sources = metric.sources(state)
    dm, dh, _ = metric.rate(state, sources)
    by_momentum = (dm * sources[0]).sum()
    by_weights = (dh * metric.density(m, sources[1])).sum()
    assert float(abs(by_momentum)) > 1e-3
    assert float(abs(by_momentum + by_weights) / abs(by_momentum)) < 1e-10


@pytest.mark.parametrize("sign", [0.0, -1.0])
def test_energy_is_lost_without_the_source_of_momentum_or_with_its_sign_turned(toy, sign):
    class Wrong(RegionalMetric):
        """The source of momentum with another factor."""

        def density(self, m, nu):
            return sign * super().density(m, nu)

    metric, momentum, h, _ = toy
    wrong = Wrong((96, 96), metric.spacing, SIGMAS, PREWEIGHT_SIGMA, dtype=D)
    assert drift(trace(wrong, wrong.start(momentum, h), Plan(40))) > 1e-3


def test_energy_is_kept_in_3d_in_float32():
    options = {"sigmas": (0.06, 0.1, 0.2), "preweight_sigma": 0.06}
    metric, momentum, h = _toy((28, 32, 28), 5.0, dtype=torch.float32, **options)
    path = trace(metric, metric.start(momentum, h), Plan(20))
    assert drift(path) < 1e-4
    assert float(path.at(1.0).inverse_vox.abs().max()) > 4
    assert folded_percent(path.at(1.0).inverse_vox) == 0


@pytest.mark.parametrize(("shape", "voxels"), [((96, 96), 17.0), ((20, 24, 22), 4.0)])
@pytest.mark.parametrize(("dtype", "largest"), [(D, 1e-12), (torch.float32, 1e-4)])
def test_constant_preweights_are_lddmm(shape, voxels, dtype, largest):
    sigmas = SIGMAS if len(shape) == 2 else (0.08, 0.1, 0.2)
    spacing = unit_spacing(shape)
    lddmm = MomentumMetric(shape, spacing, sigmas, WEIGHTS, dtype=dtype)
    rdmm = RegionalMetric(shape, spacing, sigmas, PREWEIGHT_SIGMA, dtype=dtype)
    momentum = push(lambda m: lddmm.sources(lddmm.start(m))[0], shape, CENTRE[: len(shape)], voxels, dtype)
    c = torch.tensor(WEIGHTS, dtype=dtype).view(1, -1, *[1] * len(shape))
    h = preweights_from_scores(c.log().expand(1, 3, *shape))
    expected = shoot(lddmm, lddmm.start(momentum), Plan(20))
    found = shoot(rdmm, rdmm.start(momentum, h), Plan(20))
    assert float(expected[-1].abs().max()) > 0.7 * voxels
    assert float((found[-1] - expected[-1]).abs().max()) < largest
    assert float((found[1] - h).abs().max()) < largest


def test_one_kernel_of_weight_one_is_lddmm_with_it():
    shape, spacing = (40, 44), (1.0, 1.3)
    lddmm = MomentumMetric(shape, spacing, (5.0,), (1.0,), dtype=D)
    rdmm = RegionalMetric(shape, spacing, (5.0,), 2.0, dtype=D)
    momentum = 30 * torch.randn(1, 2, *shape, dtype=D)
    expected = shoot(lddmm, lddmm.start(momentum), Plan(8))[-1]
    found = shoot(rdmm, rdmm.start(momentum, torch.ones(1, 1, *shape, dtype=D)), Plan(8))[-1]
    assert float(expected.abs().max()) > 1
    assert float((found - expected).abs().max()) < 1e-12
    still = shoot(rdmm, rdmm.start(0 * momentum, torch.ones(1, 1, *shape, dtype=D)), Plan(8))[-1]
    assert torch.equal(still, torch.zeros_like(still))


def test_phi_undoes_its_inverse(toy):
    end = toy[3].at(1.0)
    rest = lengths(compose(end.forward_vox, end.inverse_vox))
    assert float(rest.max()) < 0.3
    assert float(rest.mean()) < 0.02


def test_preweights_move_with_the_image(toy):
    _, _, h, path = toy
    end = path.at(1.0)
    moved = warp(h, end.inverse_vox)
    assert float((end.state[1] - h).abs().max()) > 0.08
    assert float((end.state[1] - moved).abs().mean()) < 2e-3
    assert float((end.state[1] - moved).abs().max()) < 0.1
    half = path.at(0.5)
    assert float((half.state[1] - warp(h, half.inverse_vox)).abs().mean()) < 2e-3


def test_a_stiff_region_moves_less():
    """One push at the border of a soft and a stiff half: neighbours move together in the stiff one."""
    shape = (64, 64)
    metric = RegionalMetric(shape, unit_spacing(shape), (0.03, 0.25), 0.03, dtype=D)
    regions = torch.zeros(1, 1, *shape, dtype=torch.long)
    regions[:, :, :, 32:] = 1
    h = preweights_from_regions(regions, [(1.0, 0.0), (0.0, 1.0)], metric.spacing, 0.02, dtype=D)
    momentum = torch.zeros(1, 2, *shape, dtype=D)
    momentum[:, 0, 24:40, 12:20] = momentum[:, 0, 24:40, 44:52] = 1.0
    u = shoot(metric, metric.start(0.08 * momentum, h), Plan(10))[-1]
    soft, stiff = u[:, 0, :, :28].abs(), u[:, 0, :, 36:].abs()
    assert float(soft.max()) > 3 * float(stiff.max())
    assert float(stiff.mean() / stiff.max()) > 2 * float(soft.mean() / soft.max())


def test_dopri5_agrees_with_rk4(toy):
    metric, momentum, h, _ = toy
    start = metric.start(momentum, h)
    fine = shoot(metric, start, Plan(60))
    adaptive = shoot(metric, start, Plan(5, DOPRI5, tolerance=1e-6))
    assert float((adaptive[-1] - fine[-1]).abs().max()) < 1e-3
    assert float((adaptive[1] - fine[1]).abs().max()) < 1e-4


def test_single_precision_and_both_kernel_forms_agree(toy):
    _, momentum, h, path = toy
    for form in ("separable", "fourier"):
        single = RegionalMetric((96, 96), unit_spacing((96, 96)), SIGMAS, PREWEIGHT_SIGMA, form=form)
        u = shoot(single, single.start(momentum.float(), h.float()), Plan(20))[-1]
        assert float((u.double() - path.states[-1][-1]).abs().max()) < 1e-3


@pytest.mark.parametrize("order", [2, 4])
def test_the_gradient_is_that_of_the_discrete_scheme(order):
    metric, momentum, h = _toy((12, 12), 3.0, order=order, **SMALL)
    scores = 2 * h.log()
    weight = torch.randn(3, 1, 1, 12, 12, dtype=D)

    def value(m, a, keep=1 << 30):
        state = shoot(metric, metric.start(m, preweights_from_scores(a)), Plan(4, keep_bytes=keep))
        return sum((w * part.sin()).sum() for w, part in zip(weight, state, strict=True))

    leaves = tuple(part.clone().requires_grad_() for part in (momentum, scores))
    found = torch.autograd.grad(value(*leaves), leaves)
    for keep in (0, 150_000):
        for kept, visited in zip(found, torch.autograd.grad(value(*leaves, keep=keep), leaves), strict=True):
            assert torch.equal(kept, visited)
    for index in range(2):
        for direction in torch.randn(4, *leaves[index].shape, dtype=D):
            step = 1e-5 * float(leaves[index].detach().abs().max())
            ends = []
            for side in (1, -1):
                moved = [leaf.detach().clone() for leaf in leaves]
                moved[index] += side * step * direction
                ends.append(float(value(*moved)))
            slope = (ends[0] - ends[1]) / (2 * step)
            assert abs(float((found[index] * direction).sum()) / slope - 1) < 1e-7


@pytest.mark.parametrize("shape", [(12, 12), (8, 9, 7)])
def test_map_and_gradient_are_those_of_the_plain_form(shape):
    metric, momentum, h = _toy(shape, 2.0, **SMALL)
    results = []
    for run in (lambda s: shoot(metric, s, Plan(4)), lambda s: plain_shoot(metric, s, 4)):
        leaves = tuple(part.clone().requires_grad_() for part in (momentum, h))
        start = metric.start(*leaves)
        state = run(start)
        value = (
            sum((k + 1) * part.square().sum() for k, part in enumerate(state)) + energy(metric, start).sum()
        )
        results.append((*state, *torch.autograd.grad(value, leaves)))
    for ours, plain in zip(*results, strict=True):
        scale = float(plain.detach().abs().max().clamp(min=1))
        assert float((ours - plain).detach().abs().max()) < 1e-12 * scale


def test_squares_of_preweights_sum_to_one():
    scores = 5 * torch.randn(2, 4, 6, 7, dtype=D)
    h = preweights_from_scores(scores)
    assert float((h.square().sum(1) - 1).abs().max()) < 1e-12
    c = torch.tensor([0.1, 0.3, 0.3, 0.3], dtype=D)
    h = preweights_from_scores(c.log().view(1, 4, 1, 1).expand(1, 4, 6, 7))
    assert float((h.square() - c.view(1, 4, 1, 1)).abs().max()) < 1e-12


def test_preweights_of_regions():
    regions = torch.zeros(1, 1, 30, 40, dtype=torch.long)
    regions[:, :, 10:22, 12:30] = 1
    table = [(0.0, 0.0, 2.0), (0.2, 0.5, 0.3)]
    h = preweights_from_regions(regions, table, (1.0, 1.0), 1.5, dtype=D)
    assert float((h.square().sum(1) - 1).abs().max()) < 1e-12
    assert h[0, :, 16, 20].square().tolist() == pytest.approx([0.2, 0.5, 0.3], abs=1e-4)
    assert h[0, :, 0, 0].square().tolist() == pytest.approx([0.0, 0.0, 1.0], abs=1e-6)
    assert 0.1 < float(h[0, 1, 10, 20]) < math.sqrt(0.5)  # no edge
    sharp = preweights_from_regions(regions, table, (1.0, 1.0), 0.0, dtype=D)
    assert sharp[0, :, 10, 20].square().tolist() == pytest.approx([0.2, 0.5, 0.3])
    sigma = local_sigma(sharp, (1.0, 2.0, 4.0))
    assert float(sigma[0, 0, 0, 0]) == pytest.approx(4.0)
    assert float(sigma[0, 0, 16, 20]) == pytest.approx(math.sqrt(0.2 + 0.5 * 4 + 0.3 * 16))


def test_bad_input_is_named():
    metric = RegionalMetric((20, 22), (1.0, 1.0), (2.0, 3.0), 1.0)
    momentum = torch.zeros(1, 2, 20, 22)
    with pytest.raises(ShapeError, match="momentum should be"):
        metric.start(torch.zeros(1, 2, 22, 20), torch.ones(1, 2, 20, 22))
    for shape in ((1, 3, 20, 22), (2, 2, 20, 22), (1, 2, 22, 20)):
        with pytest.raises(ShapeError, match="pre-weights should be"):
            metric.start(momentum, torch.ones(shape))
    with pytest.raises(SettingsError, match="width above zero"):
        RegionalMetric((20, 22), (1.0, 1.0), (2.0, 3.0), 0.0)
    regions = torch.tensor([[[[0, 1], [2, 0]]]])
    table = [(1.0, 0.0), (0.0, 1.0)]
    for bad in (regions, regions - 1, regions.float()):
        with pytest.raises(SettingsError, match="integers from 0 to 1"):
            preweights_from_regions(bad, table, (1.0, 1.0), 0.0)
    for rows in ([(1.0, 0.0), (1.0,)], [(1.0, 0.0), (0.0, 0.0)], [(1.0, 0.0), (-1.0, 2.0)]):
        with pytest.raises(SettingsError, match="2 kernels need as many weights"):
            preweights_from_regions(regions % 2, rows, (1.0, 1.0), 0.0)
    with pytest.raises(SettingsError, match="width of 0 or more"):
        preweights_from_regions(regions % 2, table, (1.0, 1.0), float("nan"))
    with pytest.raises(ShapeError, match=r"\(N, 1, \*shape\)"):
        preweights_from_regions(regions[0], table, (1.0, 1.0), 0.0)
