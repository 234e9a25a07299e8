"""Energies of pre-weights: their ends, their formulas, and how one gives way to the other."""

from __future__ import annotations

import math

import pytest
import torch

from DiffeoRegLib.errors import SettingsError, ShapeError
from DiffeoRegLib.flows.regional import preweights_from_scores
from DiffeoRegLib.losses.preweights import range_energy, range_share, transport_energy

D = torch.float64
SIGMAS = (0.02, 0.04, 0.06, 0.08)
SHARES = (0.1, 0.3, 0.3, 0.3)


def _constant(shares, shape=(5, 6), batch=2):
    row = torch.tensor(shares, dtype=D).sqrt().view(1, -1, *[1] * len(shape))
    return row.expand(batch, -1, *shape).clone()


def test_transport_is_zero_for_the_widest_kernel_and_one_for_the_narrowest():
    assert float(transport_energy(_constant((0, 0, 0, 1)), SIGMAS)) == 0.0
    assert float(transport_energy(_constant((1, 0, 0, 0)), SIGMAS)) == pytest.approx(1, abs=1e-12)
    # The order of the widths does not matter.
    assert float(transport_energy(_constant((1, 0, 0, 0)), SIGMAS[::-1])) == 0.0


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_transport_is_the_formula(power):
    shares = torch.rand(4, dtype=D)
    shares /= shares.sum()
    expected = sum(
        float(q) * (math.log(0.08 / s) / math.log(4)) ** power for q, s in zip(shares, SIGMAS, strict=True)
    )
    found = transport_energy(_constant(tuple(shares), (3, 4, 5)), SIGMAS, power=power)
    assert float(found) == pytest.approx(expected, abs=1e-12)


def test_transport_lies_between_zero_and_one_and_does_not_know_the_grid():
    h = preweights_from_scores(3 * torch.randn(2, 4, 8, 9, dtype=D))
    found = float(transport_energy(h, SIGMAS))
    assert 0 < found < 1
    finer = h.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert float(transport_energy(finer, SIGMAS)) == pytest.approx(found, abs=1e-12)


def test_kernels_of_one_width_have_no_distance():
    assert float(transport_energy(_constant((0.5, 0.5)), (0.1, 0.1))) == 0.0


def test_range_is_zero_at_the_shares_and_quadratic_around_them():
    weights = _constant(SHARES)
    assert float(range_energy(weights, SHARES)) == 0.0
    away = 0.1 * torch.randn_like(weights)
    expected = away.square().sum(1).mean()
    assert float(range_energy(weights + away, SHARES)) == pytest.approx(float(expected), rel=1e-12)


def test_gradients_are_exact():
    scores = torch.randn(1, 3, 4, 5, dtype=D, requires_grad=True)

    def both(s):
        h = preweights_from_scores(s)
        return transport_energy(h, SIGMAS[:3]) + range_energy(h, (0.2, 0.3, 0.5))

    assert torch.autograd.gradcheck(both, scores)


def test_the_pull_to_the_shares_fades_slowly_to_its_floor():
    assert [range_share(e) for e in (0, 5, 9.5)] == [1, 1, 1]
    assert range_share(10) == pytest.approx(10 / 11)
    assert range_share(20) == pytest.approx(10 / (10 + math.e))
    values = [range_share(e) for e in range(200)]
    assert values == sorted(values, reverse=True)
    assert values[-1] == range_share(1e9) == 0.1
    assert range_share(20, scale=5) < range_share(20)


def test_bad_input_is_named():
    with pytest.raises(ShapeError):
        transport_energy(_constant(SHARES), SIGMAS[:3])
    with pytest.raises(ShapeError):
        range_energy(_constant(SHARES), (1.0,))
    with pytest.raises(SettingsError):
        transport_energy(_constant(SHARES), (0.0, 0.1, 0.2, 0.3))
    with pytest.raises(SettingsError):
        range_energy(_constant(SHARES), (-0.1, 0.4, 0.4, 0.3))
