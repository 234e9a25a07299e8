"""Any value of any setting: it runs and gives numbers, or is refused in one sentence; it never breaks."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from DiffeoRegLib.catalog import METHOD_CARDS
from DiffeoRegLib.errors import DiffeoRegError, SettingsError
from DiffeoRegLib.pipeline import register
from DiffeoRegLib.settings import (
    EFFORTS,
    INITS,
    INTEGRATORS,
    INTERPOLATIONS,
    KERNEL_UNITS,
    PRESETS,
    SIMILARITIES,
    Settings,
)
from DiffeoRegLib.space.transform import AffineTransform
from DiffeoRegLib.worker.inputs import settings_of
from Testing.robustness.profile import examples
from Testing.scenes import Scene, points_of, turned_grid

PLAIN = [
    card.name
    for card in METHOD_CARDS
    if not (card.own_weights or card.needs_group or card.needs_region_labels)
]
FIELDS = [field.name for field in dataclasses.fields(Settings)]
QUICK = {"effort": "fast", "init": "identity", "device": "cpu", "iterations": (2,), "levels_mm": (4.0,),
         "dense_iterations": 0}  # fmt: skip

positive = st.one_of(st.sampled_from([1e-6, 0.3, 1.0, 50.0, 1e6]), st.floats(1e-6, 1e6))
whole = st.integers(0, 4)
VALUES: dict[str, st.SearchStrategy] = {
    "method": st.sampled_from(PLAIN),
    "preset": st.sampled_from(sorted(PRESETS)),
    "effort": st.sampled_from(EFFORTS),
    "init": st.sampled_from([init for init in INITS if init not in ("auto", "rigid", "affine")]),
    "steps": st.one_of(st.just("auto"), st.integers(1, 40)),
    "similarity": st.sampled_from(SIMILARITIES),
    "large_displacement": st.booleans(),
    "working_spacing_mm": positive,
    "levels_mm": st.lists(positive, min_size=1, max_size=1).map(tuple),
    "iterations": st.lists(whole, min_size=1, max_size=1).map(tuple),
    "dense_iterations": st.integers(0, 2),
    "window_vox": positive,
    "update_sigma": positive,
    "velocity_sigma": positive,
    "regularity": positive,
    "guidance_weight": positive,
    "padding_mm": st.floats(0, 40),
    "taper_mm": positive,
    "interpolation": st.sampled_from(INTERPOLATIONS),
    "memory_limit_gb": st.floats(1e-6, 8),
    "seed": st.integers(-3, 2**70),
    "kernel_sigmas": st.lists(positive, min_size=1, max_size=3).map(tuple),
    "kernel_weights": st.lists(positive, min_size=1, max_size=3).map(tuple),
    "kernel_units": st.sampled_from(KERNEL_UNITS),
    "preweight_sigma": positive,
    "kinetic": positive,
    "integrator": st.sampled_from(INTEGRATORS),
}
UNTRIED = {"device", "threads", "weights", "accepted_licences", "extras"}
"""They name a machine or files; extras are each method's own."""

json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=6)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=4,
)


def test_every_setting_is_tried():
    assert set(VALUES) | UNTRIED == set(FIELDS)


def refused_in_words(error: DiffeoRegError) -> None:
    assert str(error).strip()


def pair(flat: bool):
    scene = Scene(radius_mm=9.0, size_mm=1.0, flat=flat)
    if flat:
        return scene.fixed(turned_grid((14, 13), (2.0, 2.2), 20)), scene.moving(
            turned_grid((13, 15), (2.1, 2.0), -10)
        )
    return scene.fixed(turned_grid((10, 11, 12), (2.4, 2.2, 2.0), 20)), scene.moving(
        turned_grid((11, 10, 12), (2.2, 2.4, 2.0))
    )


PAIRS = {flat: pair(flat) for flat in (False, True)}


@examples(30)
@given(
    st.booleans(),
    st.dictionaries(st.sampled_from(sorted(VALUES)), st.none(), min_size=1, max_size=5),
    st.data(),
)
def test_any_value_runs_or_is_refused(flat, names, data):
    changes = {name: data.draw(VALUES[name], label=name) for name in names}
    fixed, moving = PAIRS[flat]
    torch.set_num_threads(1)
    try:
        result = register(fixed, moving, Settings(**(QUICK | changes)))
    except DiffeoRegError as error:
        refused_in_words(error)
        return
    points = points_of(fixed.grid)
    for way in (result.transform, result.inverse, result.initial):
        assert np.isfinite(way.map_points(points)).all()
    assert bool(result.moved.data.isfinite().all())
    if not isinstance(result.transform, AffineTransform):
        folds = result.report["folds"]
        assert folds["minimum_determinant"] > 0 or folds["folded_percent"] > 0, "folds are to be said"


@examples(120)
@given(st.sampled_from(FIELDS), json_values)
def test_anything_a_program_may_send_is_refused_in_words(name, value):
    try:
        settings_of({name: value})
    except SettingsError as error:
        refused_in_words(error)


@examples(60)
@given(st.dictionaries(st.sampled_from(FIELDS), json_values, max_size=4))
def test_any_settings_in_python_are_refused_in_words(values):
    try:
        Settings(**values)
    except SettingsError as error:
        refused_in_words(error)
