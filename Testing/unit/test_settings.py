"""Settings and cards: what is accepted, what is refused and how it is said."""

from __future__ import annotations

import dataclasses
import math

import pytest

from DiffeoRegLib.catalog import CARDS, card
from DiffeoRegLib.errors import SettingsError, UnknownNameError
from DiffeoRegLib.methods import METHODS
from DiffeoRegLib.settings import (
    DEVICES,
    EFFORTS,
    INITS,
    INTERPOLATIONS,
    NOT_NEGATIVE,
    POSITIVE,
    PRESETS,
    SIMILARITIES,
    Settings,
)

KNOWN = {
    "preset": PRESETS,
    "effort": EFFORTS,
    "init": INITS,
    "device": DEVICES,
    "interpolation": INTERPOLATIONS,
    "similarity": SIMILARITIES,
}


def test_everything_has_a_default_that_works():
    assert Settings() == Settings(preset="general", effort="balanced", steps="auto")
    assert Settings() == dataclasses.replace(Settings())


@pytest.mark.parametrize(("name", "known"), KNOWN.items())
def test_names_are_known_ones(name, known):
    for value in known:
        assert getattr(Settings(**{name: value}), name) == value
    with pytest.raises(UnknownNameError) as refused:
        Settings(**{name: "no-such"})
    assert all(value in str(refused.value) for value in known)
    assert "no-such" in str(refused.value)


def test_a_near_name_is_proposed():
    with pytest.raises(UnknownNameError, match="Did you mean 'brain-mr'"):
        Settings(preset="brain-mri")


def test_a_device_may_have_a_number():
    assert Settings(device="cuda:1").device == "cuda:1"
    with pytest.raises(UnknownNameError):
        Settings(device="gpu:0")


@pytest.mark.parametrize("name", POSITIVE)
@pytest.mark.parametrize("value", [0, 0.0, -1.0, math.nan, math.inf])
def test_lengths_and_factors_are_greater_than_zero(name, value):
    assert getattr(Settings(**{name: 0.5}), name) == 0.5
    with pytest.raises(SettingsError, match=name):
        Settings(**{name: value})


@pytest.mark.parametrize("name", NOT_NEGATIVE)
@pytest.mark.parametrize("value", [-1e-3, -5, math.nan, math.inf])
def test_widths_and_weights_are_not_negative(name, value):
    assert getattr(Settings(**{name: 0.0}), name) == 0.0
    with pytest.raises(SettingsError, match=name):
        Settings(**{name: value})


@pytest.mark.parametrize("name", ["steps", "threads"])
@pytest.mark.parametrize("value", [0, -4, 2.0, True, "7", "Auto"])
def test_counts_are_whole_numbers_from_one(name, value):
    assert getattr(Settings(**{name: 3}), name) == 3
    with pytest.raises(SettingsError, match="whole number"):
        Settings(**{name: value})


@pytest.mark.parametrize("value", [-1, 2.0, True])
def test_dense_iterations_are_a_count(value):
    assert Settings(dense_iterations=0).dense_iterations == 0
    with pytest.raises(SettingsError, match="Dense"):
        Settings(dense_iterations=value)


@pytest.mark.parametrize("value", [(), (0.0,), (4.0, -2.0), (math.nan,), (math.inf, 1.0)])
def test_levels_are_lengths(value):
    assert Settings(levels_mm=(4.0, 0.5)).levels_mm == (4.0, 0.5)
    with pytest.raises(SettingsError, match="Levels"):
        Settings(levels_mm=value)


@pytest.mark.parametrize("value", [(), (-1,), (5, 2.5), (True,)])
def test_iterations_are_counts(value):
    assert Settings(iterations=(0, 30)).iterations == (0, 30)
    with pytest.raises(SettingsError, match="Iterations"):
        Settings(iterations=value)


def test_changes_make_a_checked_copy():
    settings = Settings(preset="abdomen", seed=4)
    changed = settings.with_changes(effort="fast")
    assert (settings.effort, changed.effort) == ("balanced", "fast")
    assert (changed.preset, changed.seed) == ("abdomen", 4)
    with pytest.raises(SettingsError):
        settings.with_changes(regularity=0.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.seed = 5


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_complete(name):
    preset = PRESETS[name]
    assert preset.similarity in SIMILARITIES
    assert tuple(preset.iterations) == EFFORTS
    assert list(preset.levels_mm) == sorted(preset.levels_mm, reverse=True)
    assert all(len(preset.iterations[e]) == len(preset.levels_mm) for e in EFFORTS)
    totals = [sum(preset.iterations[e]) for e in EFFORTS]
    assert totals == sorted(totals)
    assert tuple(preset.dense_iterations) == EFFORTS
    assert preset.title
    assert preset.use.endswith(".")


def test_every_deformable_card_has_a_method_and_every_method_a_card():
    assert {c.method for c in CARDS.values() if c.deformable and not c.needs_group} == set(METHODS)
    assert all(name == c.name and c.citation and c.use for name, c in CARDS.items())


def test_cards_by_name():
    assert card("svf") is CARDS["svf"]
    with pytest.raises(UnknownNameError, match=r"Known: affine, .*svf"):
        card("elastic")
