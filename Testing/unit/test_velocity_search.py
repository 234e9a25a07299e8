"""The search for velocities that change in time: its prior, its levels, what it needs."""

from __future__ import annotations

import math

import pytest
import torch

from DiffeoRegLib.catalog import card
from DiffeoRegLib.errors import Cancelled, SettingsError
from DiffeoRegLib.losses.regularity import diffusion
from DiffeoRegLib.methods.base import Motion
from DiffeoRegLib.methods.stepping import per_step, per_time, said
from DiffeoRegLib.methods.unused import unused_settings
from DiffeoRegLib.methods.velocity_search import (
    ITERATIONS,
    LDDMM_WAVE_VOX,
    Prior,
    iterations,
    prior_of,
    refined,
    search,
    search_bytes,
)
from DiffeoRegLib.settings import EFFORTS, Settings
from DiffeoRegLib.space.sample import warp
from Testing.scenes import pair_of, texture

TVF = Settings(method="transmorph-tvf", device="cpu")


def quiet(progress):
    """Nobody listens."""


def at_rest(pair, fields=3, order="paper"):
    grid = pair.grid.coarsened([2] * pair.grid.dim)
    return Motion(torch.zeros(fields, grid.dim, *grid.shape), grid, stepping=order)


@pytest.fixture(scope="module")
def shifted():
    """A picture and the same moved by two voxels along the first axis."""
    fixed = texture((32, 36), 3, sigma=2.5)
    u_vox = torch.zeros(1, 2, 32, 36)
    u_vox[:, 0] = 2.0
    return pair_of(fixed, warp(fixed, -u_vox), [1.0, 1.0])


# ---------------------------------------------------------------- prior


def test_the_prior_is_that_of_the_training():
    known = {
        "config": {"losses": [{"name": "lncc"}, {"name": "lddmm", "options": {"gamma": 0.01, "form": "x"}}]}
    }
    assert prior_of(known) == Prior("lddmm", gamma=0.01)
    for other in ({}, {"config": {}}, {"config": {"losses": [{"name": "gradient", "weight": 1}]}}):
        assert prior_of(other) == Prior("diffusion")


@pytest.mark.parametrize("beta", [1.0, 2.0])
def test_a_wave_of_eight_voxels_costs_the_same_by_both(beta):
    """Longer waves cost less by the operator, shorter ones more."""
    grid = (256, 8)
    for length, compared in ((16.0, "less"), (LDDMM_WAVE_VOX, "same"), (4.0, "more")):
        place = torch.arange(grid[0], dtype=torch.float64) + 0.5  # the border repeats the wave
        wave = torch.cos(2 * math.pi * place / length)
        field = torch.zeros(1, 2, *grid, dtype=torch.float64)
        field[0, 1] = wave[:, None]
        plain, other = (
            Prior(kind, beta=beta).energy([field] * 3, [1.0, 1.0]) for kind in ("diffusion", "lddmm")
        )
        ratio = float(other / plain)
        assert {"less": ratio < 0.6, "same": abs(ratio - 1) < 0.01, "more": ratio > 2}[compared]


def test_the_energy_is_that_of_the_velocity_in_time():
    """The same flow in twice as many steps costs the same."""
    field = torch.randn(1, 2, 9, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = diffusion(3 * field, [2.0, 2.0])
    for parts in (1, 2):
        steps = [field / parts] * (3 * parts)
        torch.testing.assert_close(Prior().energy(steps, [2.0, 2.0]), expected)


# ---------------------------------------------------------------- search


@pytest.mark.parametrize("order", ["paper", "residual", "official"])
def test_a_shift_is_found_in_every_order(shifted, order):
    settings = TVF.with_changes(iterations=(15, 10), similarity="mse", regularity=0.2)
    motion = at_rest(shifted, order=order)
    found = search(motion, shifted, (1.0, 1.0), Prior(), settings, quiet)
    middle = found.velocity_vox.mean(0)[:, 5:-5, 5:-5].mean((1, 2))
    # The official order reads images a little off its places, also at rest.
    torch.testing.assert_close(2 * middle, torch.tensor([2.0, 0.0]), rtol=0, atol=0.35)
    assert found.grid is motion.grid
    assert not motion.velocity_vox.any()


def test_the_search_stops_when_it_is_told_to(shifted):
    def stop(progress):
        raise Cancelled("enough")

    with pytest.raises(Cancelled):
        search(at_rest(shifted), shifted, (1.0, 1.0), Prior(), TVF.with_changes(iterations=(3,)), stop)


def test_progress_never_goes_back(shifted):
    told = []
    settings = TVF.with_changes(iterations=(4, 3), similarity="mse")
    search(at_rest(shifted), shifted, (1.0, 1.0), Prior(), settings, told.append)
    fractions = [step.fraction for step in told]
    assert fractions == sorted(fractions)
    assert fractions[-1] == pytest.approx(1.0)
    assert "2 mm, step 1 of 4" in told[0].message


def test_what_an_effort_means():
    assert set(ITERATIONS) == set(EFFORTS)
    assert [refined(TVF.with_changes(effort=effort)) for effort in EFFORTS] == [False, True, True]
    assert iterations(TVF.with_changes(iterations=(5,))) == (5,)
    assert not refined(TVF.with_changes(effort="accurate", iterations=(0, 0)))
    for wrong in ({"iterations": (1,) * 4}, {"iterations": (1, 2), "levels_mm": (4.0,)}):
        with pytest.raises(SettingsError):
            iterations(TVF.with_changes(**wrong))


def test_what_the_search_needs():
    """The finest level moves eight times as many velocities; more velocities need more."""
    coarse, fine = (TVF.with_changes(iterations=(5, 5, last)) for last in (0, 5))
    size = 80 * 96 * 80
    assert search_bytes(fine, 2.0, 8, 3, size) > 3 * search_bytes(coarse, 2.0, 8, 3, size)
    assert search_bytes(fine, 2.0, 12, 3, size) > 1.3 * search_bytes(fine, 2.0, 8, 3, size)
    assert search_bytes(fine, 2.0, 8, 3, size) == pytest.approx(2.4e9, rel=0.05)
    named = TVF.with_changes(iterations=(5, 5), levels_mm=(2.0, 1.0))
    assert search_bytes(named, 2.0, 8, 3, size) == search_bytes(fine, 2.0, 8, 3, size)


# ---------------------------------------------------------------- what is said


def test_settings_without_use_are_named():
    (said_,) = unused_settings(card("transmorph-tvf"), TVF.with_changes(dense_iterations=3, update_sigma=2.0))
    assert "update_sigma, dense_iterations" in said_
    assert unused_settings(card("transmorph-tvf"), TVF) == []


def test_velocities_per_step_and_per_time():
    velocity = torch.randn(4, 2, 5, 6, generator=torch.Generator().manual_seed(0))
    steps = per_step(velocity)
    assert [tuple(step.shape) for step in steps] == [(1, 2, 5, 6)] * 4
    assert torch.equal(per_time(steps), velocity)  # a power of two


@pytest.mark.parametrize(
    ("slope", "steps", "order", "words"),
    [
        (0.5, 2, "paper", "2 time steps of the order 'paper'; every step is one to one: its slope is 0.5"),
        (1.5, 2, "paper", "the steepest slope of a step is 1.5, and only below 1"),
        (
            1.5,
            4,
            "residual",
            "4 time steps of the order 'residual', where the network was trained with 2; every",
        ),
        (0.5, 2, "official", "no composition of steps"),
    ],
)
def test_the_report_says_how_time_was_stepped(slope, steps, order, words):
    ramp = torch.zeros(2, 2, 6, 6)
    ramp[:, 0] = 2 * slope * torch.arange(6.0)[:, None]
    assert words in said(ramp, order, steps)
