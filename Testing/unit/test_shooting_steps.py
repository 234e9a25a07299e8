"""Steps of geodesics: those of dopri5 follow the error, those of either scheme keep little for gradients."""

from __future__ import annotations

import itertools

import pytest
import torch

from DiffeoRegLib.flows import shooting
from DiffeoRegLib.flows.momentum import MomentumMetric
from DiffeoRegLib.flows.regional import RegionalMetric
from DiffeoRegLib.flows.runge_kutta import DOPRI5, RK4
from DiffeoRegLib.flows.shooting import Plan, ShootingDiverged, shoot, trace
from Testing.shooting_cases import (
    PREWEIGHT_SIGMA,
    SIGMAS,
    drift,
    push,
    unit_spacing,
    varied_preweights,
)

D = torch.float64
CENTRE = (0.5, 0.4, 0.5)


def _start(shape=(64, 64), voxels=11.0, sigmas=SIGMAS, dtype=D, order=2, scale=1.0):
    """RDMM; scale: of the unit of length, with a momentum that moves the same way."""
    spacing = tuple(scale * s for s in unit_spacing(shape))
    sigmas = tuple(scale * s for s in sigmas)
    metric = RegionalMetric(shape, spacing, sigmas, scale * PREWEIGHT_SIGMA, dtype=dtype, order=order)
    centre = CENTRE[: len(shape)]
    h = varied_preweights(shape, centre, dtype)
    size = torch.tensor(spacing, dtype=dtype).view(1, -1, *[1] * len(shape))
    momentum = (
        push(lambda m: metric.sources(metric.start(m / size, h))[0], shape, centre, voxels, dtype) / size
    )
    return metric, metric.start(momentum, h)


@pytest.fixture(scope="module")
def watched():
    """A path of dopri5 whose first step is far too long, and the error of every step that was tried."""
    metric, start = _start()
    errors = []
    plain = shooting._Clock._error

    def heard(clock, *args):
        errors.append(plain(clock, *args))
        return errors[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shooting._Clock, "_error", heard)
        path = trace(metric, start, Plan(1, DOPRI5, tolerance=1e-6))
    return metric, start, path, errors


def test_no_rejected_step_stands(watched):
    metric, start, path, errors = watched
    stands = [error <= 1 for error in errors]
    assert not stands[0]
    assert sum(stands) == len(path.times) - 1 >= 5
    assert path.times[1] < 0.5
    assert all(b > a for a, b in itertools.pairwise(path.times))
    fine = shoot(metric, start, Plan(80))
    for found, expected, largest in zip(path.states[-1], fine, (1e-4, 1e-4, 1e-3), strict=True):
        scale = 1.0 if largest == 1e-3 else float(expected.abs().max())
        assert float((found - expected).abs().max()) < largest * scale


@pytest.mark.parametrize("order", [2, 4])
def test_both_schemes_agree_in_3d_with_either_difference(order):
    metric, start = _start((20, 22, 21), 3.0, (0.08, 0.1, 0.2), order=order)
    fine = shoot(metric, start, Plan(20))
    adaptive = trace(metric, start, Plan(5, DOPRI5, tolerance=1e-6))
    assert float((adaptive.states[-1][-1] - fine[-1]).abs().max()) < 1e-3
    assert float(fine[-1].abs().max()) > 2
    assert drift(adaptive) < 1e-5


def test_every_tensor_has_its_own_tolerance():
    """The same geodesic in units a thousand times smaller takes the same steps."""
    paths = [
        trace(*_start((40, 40), 6.0, (0.06, 0.1, 0.2), scale=scale), Plan(5, DOPRI5, tolerance=1e-5))
        for scale in (1.0, 1000.0)
    ]
    sizes = [float(path.states[0][0].square().mean().sqrt()) for path in paths]
    assert sizes[1] > 1e5 * sizes[0]
    assert paths[0].times == pytest.approx(paths[1].times, rel=1e-6)
    for path in paths:
        metric, state = path.metric, path.states[0]
        fine = shoot(metric, state[:-1], Plan(60))
        momentum = path.states[-1][0] - fine[0]
        assert float(momentum.norm() / fine[0].norm()) < 1e-4


@pytest.mark.parametrize("steps", [6, 31])
def test_a_last_step_shorter_than_any_is_no_stiffness(steps):
    """1/6 + 5/6 and 1/31 + 5/31 + 25/31 miss 1 by rounding."""
    metric = MomentumMetric((20, 24), (1.0, 1.0), (3.0, 5.0), (1.0, 1.0))
    path = trace(metric, metric.start(torch.zeros(1, 2, 20, 24)), Plan(steps, DOPRI5))
    assert path.times[-1] == 1.0
    assert torch.equal(path.states[-1][-1], torch.zeros(1, 2, 20, 24))


def test_underflow_of_the_step_is_a_named_error(monkeypatch):
    metric, start = _start((24, 24), 3.0, (0.1, 0.15, 0.3), dtype=torch.float32)
    with pytest.raises(ShootingDiverged, match="too stiff for dopri5"):
        shoot(metric, (1e6 * start[0], start[1]), Plan(5, DOPRI5))
    # Below the rounding of the numbers: ever more steps, none of them too short.
    monkeypatch.setattr(shooting, "MOST_ADAPTIVE_STEPS", 40)
    with pytest.raises(ShootingDiverged, match="too stiff for dopri5"):
        shoot(metric, start, Plan(5, DOPRI5, tolerance=1e-12))


def test_single_precision_leads_to_the_same_map_in_3d():
    metric, start = _start((24, 28, 26), 5.0, (0.08, 0.1, 0.2))
    exact = shoot(metric, start, Plan(10))[-1]
    single = RegionalMetric((24, 28, 26), metric.spacing, (0.08, 0.1, 0.2), PREWEIGHT_SIGMA)
    found = shoot(single, tuple(part.float() for part in start), Plan(10))[-1]
    assert float((found.double() - exact).abs().max()) < 1e-3


@pytest.mark.parametrize("scheme", [RK4, DOPRI5])
def test_gradients_keep_one_state_a_step_and_what_there_is_room_for(scheme):
    metric, start = _start((24, 24), 3.0, (0.1, 0.15, 0.3))
    leaves = tuple(part.requires_grad_() for part in start)
    state_bytes = sum(part.nbytes for part in start) + start[0].nbytes
    for steps in (5, 20, 80):
        for room in (0, 700_000):
            plan = Plan(steps, scheme, keep_bytes=room)
            end = shoot(metric, leaves, plan)[-1]
            held = end.grad_fn
            taken = len(held.lengths)
            states = sum(part.nbytes for state in held.states for part in state)
            stages = sum(
                part.nbytes
                for kept in held.stages.values()
                for group in kept
                for parts in group
                for part in parts
            )
            assert taken == steps or scheme is DOPRI5
            # The displacement at the start is 0 and kept all the same.
            assert states == taken * state_bytes
            assert stages <= room
            assert (stages > 0) == (room > 0)
