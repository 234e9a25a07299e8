"""Properties of fields and flows on hostile shapes: tiny, flat, non-cubic, 2D and 3D."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from DiffeoRegLib.flows.exponential import exp
from DiffeoRegLib.flows.inversion import invert, invert_at, invert_with_report
from DiffeoRegLib.flows.solvers import integrate
from DiffeoRegLib.flows.velocity import StationaryVelocity
from DiffeoRegLib.space.field import (
    compose,
    downsample_field,
    jacobian_determinant,
    minimum_cell_bound,
    minimum_corner_determinant,
    upsample_field,
)
from DiffeoRegLib.space.filters import gaussian_smooth
from DiffeoRegLib.space.sample import sample

DTYPE = torch.float64
shapes = st.integers(2, 3).flatmap(lambda d: st.tuples(*[st.integers(1, 7)] * d))
cells = st.integers(2, 3).flatmap(lambda d: st.tuples(*[st.integers(2, 6)] * d))
seeds = st.integers(0, 2**31)
quick = settings(max_examples=40, deadline=None)


def _field(shape, seed, size):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(1, len(shape), *shape, dtype=DTYPE, generator=generator) - 0.5) * 2 * size


def _contraction(shape, seed):
    """Sum over axes of |differences| below 0.9 for every component: invertible on the whole space."""
    u = gaussian_smooth(_field(shape, seed, 1.0), 0.8)
    slope = sum(float(u.diff(dim=2 + a).abs().max()) if n > 1 else 0.0 for a, n in enumerate(shape))
    return u * min(5.0, 0.9 / max(slope, 0.1))


@quick
@given(shapes, seeds)
def test_contractions_are_inverted(shape, seed):
    u = _contraction(shape, seed)
    v, report = invert_with_report(u, "newton", 1e-9)
    assert report.unsolved == 0
    torch.testing.assert_close(invert(u, "mixed", 1e-9), v, atol=1e-7, rtol=0)
    generator = torch.Generator().manual_seed(seed)
    points = (torch.rand(20, len(shape), dtype=DTYPE, generator=generator) - 0.3) * 2 * max(shape)
    found = invert_at(u, points)
    assert float((found + sample(u, found.T[None])[0].T - points).abs().max()) < 1e-8


@quick
@given(cells, seeds)
def test_contractions_do_not_fold(shape, seed):
    u = _contraction(shape, seed)
    assert float(minimum_corner_determinant(u).min()) > 0
    assert float(minimum_cell_bound(u).min()) > 0


@quick
@given(cells, seeds, st.floats(0.1, 3.0))
def test_the_cell_bound_is_never_optimistic(shape, seed, size):
    u = _field(shape, seed, size)
    bound, corners = minimum_cell_bound(u), minimum_corner_determinant(u)
    assert bool((bound <= corners + 1e-9).all())
    assert torch.equal(corners[:, 0], jacobian_determinant(u, "corners").amin(1))


@quick
@given(shapes, seeds, st.floats(0.0, 2.0))
def test_squaring_is_stepping_for_small_flows(shape, seed, size):
    v = gaussian_smooth(_field(shape, seed, size), 2.0)
    found, reference = exp(v, 8, first_step=2), integrate(StationaryVelocity(v), shape, steps=16, dtype=DTYPE)
    assert found.shape == v.shape
    assert float((found - reference).abs().max()) <= 0.02 * float(v.abs().max()) + 1e-12


@quick
@given(shapes, st.lists(st.floats(-20, 20), min_size=3, max_size=3), st.integers(0, 8))
def test_translations_add(shape, shift, squarings):
    t = torch.tensor(shift[: len(shape)], dtype=DTYPE).view(1, -1, *[1] * len(shape)).expand(1, -1, *shape)
    torch.testing.assert_close(exp(t, squarings), t, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(compose(t, t), 2 * t, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(invert(t, tolerance_vox=1e-9), -t, atol=1e-12, rtol=1e-12)


@quick
@given(shapes, st.lists(st.integers(1, 5), min_size=3, max_size=3), seeds)
def test_levels_keep_shapes_constants_and_bounds(shape, strides, seed):
    strides = strides[: len(shape)]
    u = _field(shape, seed, 2.0)
    coarse = downsample_field(u, strides)
    assert tuple(coarse.shape[2:]) == tuple(math.ceil(n / s) for n, s in zip(shape, strides, strict=True))
    again = upsample_field(coarse, strides, shape)
    assert again.shape == u.shape
    assert float(again.abs().max()) <= float(u.abs().max()) + 1e-12
    one = torch.ones_like(u)
    torch.testing.assert_close(upsample_field(downsample_field(one, strides), strides, shape), one)
