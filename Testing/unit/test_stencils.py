"""Fused differences against plain ones, and the transposition that conserves energy."""

from __future__ import annotations

import pytest
import torch

from DiffeoRegLib.errors import SettingsError, ShapeError
from DiffeoRegLib.space import stencils
from DiffeoRegLib.space.sample import identity_vox
from DiffeoRegLib.space.stencils import Stencil
from Testing.shooting_cases import divergence, gradient, map_gradient

D = torch.float64
SHAPES = [(7, 9), (5, 8, 6)]


def _all(grid, operation, *layouts, like):
    out = grid.blank(like)
    for at in grid.chunks(like):
        operation(out, *layouts, at)
    return grid.inside(out)


def _random(shape, *channels):
    return [torch.randn(2, c, *shape, dtype=D) for c in channels]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("chunk", [1 << 16, 10])
def test_terms_of_order_two_are_the_plain_ones(shape, chunk, monkeypatch):
    monkeypatch.setattr(stencils, "VALUES_PER_CHUNK", chunk)
    monkeypatch.setattr(stencils, "FEWEST_POINTS_PER_CHUNK", 1)
    dim = len(shape)
    grid = Stencil(shape)
    v, f, g = _random(shape, dim, 3, 3)
    even_v, even_f, odd_g = grid.even(v), grid.even(f), grid.odd(g)
    found = _all(grid, grid.transport, even_f, even_v, like=f)
    expected = sum(v[:, d : d + 1] * gradient(f, d) for d in range(dim))
    assert float((found - expected).abs().max()) < 1e-14
    found = _all(grid, grid.pull, odd_g, even_f, like=v)
    expected = torch.stack([(g * gradient(f, d)).sum(1) for d in range(dim)], 1)
    assert float((found - expected).abs().max()) < 1e-14
    found = _all(grid, grid.flux, even_v, odd_g, like=g)
    expected = sum(divergence(v[:, d : d + 1] * g, d) for d in range(dim))
    assert float((found - expected).abs().max()) < 1e-14
    found = _all(grid, grid.transport, even_f, grid.even(grid.map_speed(v)), like=f)
    expected = sum(v[:, d : d + 1] * map_gradient(f, d) for d in range(dim))
    assert float((found - expected).abs().max()) < 1e-14


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("order", [2, 4])
def test_divergence_is_minus_the_transposed_gradient(shape, order):
    grid = Stencil(shape, order)
    v, f, g = _random(shape, len(shape), 3, 3)
    along = _all(grid, grid.transport, grid.even(f), grid.even(v), like=f)
    back = _all(grid, grid.flux, grid.even(v), grid.odd(g), like=g)
    size = float(along.norm() * g.norm())
    assert float(abs((along * g).sum() + (f * back).sum())) < 1e-12 * size
    pulled = _all(grid, grid.pull, grid.odd(g), grid.even(f), like=v)
    assert float(abs((pulled * v).sum() - (along * g).sum())) < 1e-12 * size
    assert float(back.sum().abs()) < 1e-12 * size  # nothing leaves through the wall


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("order", [2, 4])
def test_a_linear_map_is_carried_exactly_up_to_the_border(shape, order):
    dim = len(shape)
    grid = Stencil(shape, order)
    matrix = torch.randn(dim, dim, dtype=D)
    u = torch.einsum("ab,nb...->na...", matrix, identity_vox(shape, D))
    v = torch.randn(1, dim, *shape, dtype=D)
    found = _all(grid, grid.transport, grid.even(u), grid.even(grid.map_speed(v)), like=u)
    assert float((found - torch.einsum("ab,nb...->na...", matrix, v)).abs().max()) < 1e-12


def test_order_four_converges_with_order_four():
    errors = []
    for n in (24, 48):
        grid = Stencil((n, n), 4)
        x = (identity_vox((n, n), D) + 0.5) / n * torch.pi
        f = (torch.cos(x[:, :1]) * torch.cos(2 * x[:, 1:])).contiguous()  # even about both walls
        v = torch.ones(1, 2, n, n, dtype=D)
        found = _all(grid, grid.transport, grid.even(f), grid.even(v), like=f) * n / torch.pi
        exact = -torch.sin(x[:, :1]) * torch.cos(2 * x[:, 1:]) - 2 * torch.cos(x[:, :1]) * torch.sin(
            2 * x[:, 1:]
        )
        errors.append(float((found - exact).abs().max()))
    assert 14 < errors[0] / errors[1] < 18


def test_bad_input_is_named():
    with pytest.raises(SettingsError, match="order 2 or 4"):
        Stencil((8, 8), 3)
    for shape, order in (((8,), 2), ((1, 8), 2), ((3, 8, 8), 4)):
        with pytest.raises(ShapeError, match="voxels per axis"):
            Stencil(shape, order)
