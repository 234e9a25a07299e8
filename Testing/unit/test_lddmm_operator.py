"""The LDDMM operator: two ways to the same numbers, its spectrum, the three forms of its energy."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from DiffeoRegLib.errors import SettingsError, ShapeError, UnknownNameError
from DiffeoRegLib.losses.label_mse import warped_label_mse
from DiffeoRegLib.losses.lddmm_operator import (
    end_point_diffusion,
    lddmm_energy,
    operator_by_differences,
    operator_by_fourier,
    operator_symbol,
)
from DiffeoRegLib.losses.overlap import one_hot
from DiffeoRegLib.space.sample import identity_vox, warp
from DiffeoRegLib.training.velocity_terms import VELOCITY_LOSSES

FACTORS = {"alpha": 0.4, "gamma": 0.03}


def noise(*shape, seed=0, dtype=torch.float64):
    return torch.randn(1, len(shape), *shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(8, 11), (6, 7, 8)])
@pytest.mark.parametrize("beta", [1, 2, 3])
def test_differences_and_waves_agree_on_a_grid_that_wraps_around(shape, beta):
    v = noise(*shape)
    near = operator_by_differences(v, **FACTORS, beta=beta, boundary="periodic")
    torch.testing.assert_close(operator_by_fourier(v, **FACTORS, beta=beta), near, rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize(
    "operator",
    [
        lambda v: operator_by_differences(v, **FACTORS),
        lambda v: operator_by_differences(v, **FACTORS, boundary="periodic"),
        lambda v: operator_by_fourier(v, **FACTORS, beta=1.7),
    ],
)
def test_the_operator_is_symmetric_and_positive(operator):
    one, other = noise(6, 7, 5), noise(6, 7, 5, seed=1)
    assert float((operator(one) * other).sum() - (one * operator(other)).sum()) == pytest.approx(0, abs=1e-10)
    assert float((operator(one) * one).sum()) > 0


def test_plane_waves_are_scaled_by_the_symbol():
    shape, wave = (12, 10), (3, 2)
    x = identity_vox(shape, torch.float64)
    phase = sum(2 * math.pi * k / n * x[:, a] for a, (k, n) in enumerate(zip(wave, shape, strict=True)))
    v = torch.stack([phase.cos(), 2 * phase.sin()], 1)
    expected = 0.03 + 2 * 0.4 * sum(
        1 - math.cos(2 * math.pi * k / n) for k, n in zip(wave, shape, strict=True)
    )
    assert float(operator_symbol(shape, **FACTORS)[wave]) == pytest.approx(expected, rel=1e-12)
    for beta in (2, 0.5):
        torch.testing.assert_close(operator_by_fourier(v, **FACTORS, beta=beta), expected**beta * v)
    near = operator_by_differences(v, **FACTORS, boundary="periodic")
    torch.testing.assert_close(near, expected**2 * v, rtol=1e-10, atol=1e-10)


def test_powers_multiply():
    v = noise(7, 8)
    twice = operator_by_fourier(operator_by_fourier(v, **FACTORS, beta=1.5), **FACTORS, beta=1.5)
    torch.testing.assert_close(twice, operator_by_fourier(v, **FACTORS, beta=3.0))


def test_a_constant_velocity_costs_gamma_only():
    """Borders are repeated: beyond them nothing bends."""
    v = torch.full((2, 3, 5, 6, 7), 2.0, dtype=torch.float64)
    energy = float(lddmm_energy([v, v], **FACTORS))
    assert energy == pytest.approx(2 * (3 * 5 * 6 * 7) * (0.03**2 * 2.0) ** 2)
    assert float(lddmm_energy([v, v], **FACTORS, form="paper_mean")) == pytest.approx(energy / (5 * 6 * 7))
    inside = 3 * 3 * 4 * 5
    assert float(lddmm_energy([v], **FACTORS, form="official")) == pytest.approx(inside * (0.03 * 2.0) ** 4)


def test_the_forms_on_white_noise():
    """Alike in size there, of different powers in scale; a grid without borders costs a little more."""
    v = noise(16, 18, 20)
    official, summed = (float(lddmm_energy([v], form=form)) for form in ("official", "paper_sum"))
    assert official == pytest.approx(0.69, rel=0.08)
    assert summed == pytest.approx(0.415, rel=0.02)
    around = float(operator_by_fourier(v).square().sum())
    assert around == pytest.approx(0.49, rel=0.03)
    assert around / (16 * 18 * 20) == pytest.approx(8.5e-5, rel=0.03)
    assert float(lddmm_energy([2 * v], form="official")) == pytest.approx(16 * official)
    assert float(lddmm_energy([2 * v])) == pytest.approx(4 * summed)
    assert float(lddmm_energy([v, 2 * v])) == pytest.approx(5 * summed)


def test_smooth_velocities_cost_next_to_nothing_beside_rough_ones():
    x = identity_vox((24, 24), torch.float64)
    smooth, rough = torch.sin(2 * math.pi * x / 24), noise(24, 24)
    rough = rough * smooth.norm() / rough.norm()
    assert float(lddmm_energy([smooth])) < 1e-2 * float(lddmm_energy([rough]))


def test_energies_have_gradients_and_any_power():
    v = noise(5, 6).requires_grad_()
    for options in ({}, {"beta": 1.5}, {"form": "official"}):
        assert torch.autograd.gradcheck(
            lambda v, options=options: lddmm_energy([v, v * 2], alpha=0.3, gamma=0.1, **options),
            [v],
            fast_mode=True,
        )
    by_waves = operator_by_fourier(v, 0.3, 0.1, 1.5).square().sum()
    torch.testing.assert_close(lddmm_energy([v], alpha=0.3, gamma=0.1, beta=1.5), by_waves)


def test_only_the_last_velocity_counts_at_the_end_point():
    x = identity_vox((9, 8), torch.float64)
    bent = torch.stack([0.5 * x[:, 0] + 0.25 * x[:, 1], torch.zeros_like(x[:, 0])], 1)
    expected = ((0.5**2 + 0) / 2 + (0.25**2 + 0) / 2) / 2
    assert float(end_point_diffusion([noise(9, 8), bent])) == pytest.approx(expected)
    assert float(end_point_diffusion([bent, torch.ones_like(bent)])) == 0.0


def test_terms_of_a_training():
    maps = SimpleNamespace(velocities_vox=(noise(5, 6), noise(5, 6, seed=1)))
    energy = VELOCITY_LOSSES["lddmm"](maps, ("12",), None, form="paper_mean", gamma=0.01)
    torch.testing.assert_close(energy, lddmm_energy(maps.velocities_vox, form="paper_mean", gamma=0.01))
    slope = VELOCITY_LOSSES["end-point"](maps, ("12", "21"), 3)
    torch.testing.assert_close(slope, end_point_diffusion(maps.velocities_vox))
    for name, term in VELOCITY_LOSSES.items():
        with pytest.raises(SettingsError, match=f"loss {name} needs a network that predicts velocities"):
            term(SimpleNamespace(u12=noise(5, 6)), ("12",), None)


def test_what_cannot_be_measured():
    v = noise(5, 6)
    cases = [
        (UnknownNameError, "form of the LDDMM energy", lambda: lddmm_energy([v], form="mean")),
        (ShapeError, "at least one velocity", lambda: lddmm_energy([])),
        (ShapeError, "at least one velocity", lambda: end_point_diffusion([])),
        (SettingsError, "not both 0", lambda: lddmm_energy([v], alpha=0, gamma=0)),
        (SettingsError, "power above 0", lambda: operator_by_fourier(v, beta=0)),
        (SettingsError, "power of the operator is whole", lambda: operator_by_differences(v, beta=1.5)),
        (UnknownNameError, "border rule", lambda: operator_by_differences(v, boundary="zero")),
        (ShapeError, "at least 3 voxels", lambda: lddmm_energy([noise(2, 6)], form="official")),
    ]
    for error, sentence, call in cases:
        with pytest.raises(error, match=sentence):
            call()


def test_the_difference_of_label_maps():
    """Ten labels: more than are in memory at a time."""
    generator = torch.Generator().manual_seed(0)
    fixed, moving = torch.randint(0, 10, (2, 1, 1, 9, 8), generator=generator).unbind(0)
    still = identity_vox((9, 8), torch.float64)
    assert float(warped_label_mse(fixed, fixed, still)) < 1e-30
    u_vox = (0.4 * noise(9, 8)).requires_grad_()
    found = warped_label_mse(fixed, moving, still + u_vox)
    read = warp(one_hot(moving, range(10), torch.float64), u_vox)
    expected = (one_hot(fixed, range(10), torch.float64) - read).square().mean()
    torch.testing.assert_close(found, expected)
    grads = [torch.autograd.grad(value, u_vox)[0] for value in (found, expected)]
    torch.testing.assert_close(*grads)
    some = warped_label_mse(fixed, moving, still, labels=[3])
    assert float(some) == pytest.approx(float(((fixed == 3) != (moving == 3)).double().mean()))
    for arguments, options, sentence in (
        ((fixed[0], moving, still), {}, "one pair at a time"),
        ((fixed, moving, still[:, :1]), {}, "do not fit labels"),
        ((fixed, moving, still), {"labels": []}, "at least one label"),
    ):
        with pytest.raises(ShapeError, match=sentence):
            warped_label_mse(*arguments, **options)
