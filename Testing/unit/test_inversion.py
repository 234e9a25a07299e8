"""Inversion: the residual, the known inverse, the closed-form gradient three ways, arbitrary points."""

from __future__ import annotations

import math

import pytest
import torch

from DiffeoRegLib.errors import SettingsError, ShapeError, UnknownNameError
from DiffeoRegLib.flows.cells import solve, value_and_slopes
from DiffeoRegLib.flows.exponential import exp
from DiffeoRegLib.flows.inversion import inversion_residual, invert, invert_at, invert_with_report
from DiffeoRegLib.space.field import compose, minimum_corner_determinant
from DiffeoRegLib.space.filters import gaussian_smooth
from DiffeoRegLib.space.sample import identity_vox, sample, warp

DTYPE = torch.float64
SHAPES = [(14, 19), (12, 9, 13)]
METHODS = ["picard", "newton", "mixed"]


def _diffeomorphism(shape, size=3.0, seed=0, sigma=2.0, dtype=DTYPE, batch=1):
    """A random flow, several voxels far and proven free of folds at the corners."""
    generator = torch.Generator().manual_seed(seed)
    v = gaussian_smooth(torch.randn(batch, len(shape), *shape, dtype=dtype, generator=generator), sigma)
    u = exp(v * (size / v.abs().max()), 7)
    assert float(minimum_corner_determinant(u).min()) > 0
    return u


def _contraction(shape, seed=0, size=0.4):
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(1, len(shape), *shape, dtype=DTYPE, generator=generator)
    u = gaussian_smooth(noise, 1.0)
    return u * (size / u.abs().max())


@pytest.mark.parametrize("shape", SHAPES)
def test_value_and_derivative_of_the_interpolant(shape):
    d = len(shape)
    u = _diffeomorphism(shape)
    generator = torch.Generator().manual_seed(1)
    size = torch.tensor(shape, dtype=DTYPE)
    points = torch.rand(d, 200, dtype=DTYPE, generator=generator) * (size[:, None] + 3) - 2  # some outside
    points.requires_grad_()
    value, slopes = value_and_slopes(u[0], points.detach())
    read = sample(u, points[None])[0]
    torch.testing.assert_close(value, read.detach())
    for component in range(d):
        (expected,) = torch.autograd.grad(read[component].sum(), points, retain_graph=True)
        torch.testing.assert_close(torch.stack([slope[component] for slope in slopes]), expected)


@pytest.mark.parametrize("d", [2, 3])
def test_small_solves_are_linalg_solve(d):
    generator = torch.Generator().manual_seed(2)
    derivative = torch.rand(50, d, d, dtype=DTYPE, generator=generator) - 0.4
    right = torch.rand(50, d, dtype=DTYPE, generator=generator)
    matrix = torch.eye(d, dtype=DTYPE) + derivative
    slopes = [derivative[:, :, axis].T for axis in range(d)]
    torch.testing.assert_close(solve(slopes, right.T).T, torch.linalg.solve(matrix, right))
    torch.testing.assert_close(
        solve(slopes, right.T, transposed=True).T, torch.linalg.solve(matrix.mT, right)
    )
    singular = [-torch.eye(d, dtype=DTYPE)[:, axis : axis + 1] for axis in range(d)]
    assert bool(solve(singular, right[:1].T).isfinite().all())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("method", METHODS)
def test_forward_after_inverse_is_identity(shape, method):
    u = _contraction(shape)
    v, report = invert_with_report(u, method, 1e-8)
    assert float(compose(u, v).abs().max()) < 1e-8
    assert report.largest_residual_vox < 1e-8
    assert report.unsolved == 0
    assert float(v.abs().max()) > 0.2


@pytest.mark.parametrize("method", ["newton", "mixed"])
@pytest.mark.parametrize("shape", SHAPES)
def test_large_motion(shape, method):
    u = _diffeomorphism(shape, 5.0, batch=2, dtype=torch.float32)
    assert float(u.abs().max()) > 2.5
    v, report = invert_with_report(u, method, 1e-3)
    assert report.unsolved == 0
    assert float(inversion_residual(u, v).max()) <= 1e-3
    torch.testing.assert_close(invert(u[1:], method), v[1:])


def test_newton_converges_in_three_steps():
    u = _diffeomorphism((16, 14, 15), 3.0)
    sizes = [
        invert_with_report(u, "newton", 1e-13, most_iterations=n + 1)[1].largest_residual_vox
        for n in (1, 2, 3)
    ]
    assert sizes[1] < 0.1
    assert sizes[2] < 2e-3  # the paper's figures, 6.8e-2, 2.1e-4 ..., for a field near the largest amplitude
    assert sizes[2] < sizes[1] ** 1.5


@pytest.mark.parametrize("method", METHODS)
def test_linear_map_has_the_inverse_matrix(method):
    shape = (21, 19)
    a = torch.tensor([[0.2, -0.15], [0.1, -0.25]], dtype=DTYPE)
    offset = identity_vox(shape, DTYPE) - torch.tensor([10.0, 9.0], dtype=DTYPE).view(1, 2, 1, 1)
    u = torch.einsum("ab,nb...->na...", a, offset)
    expected = torch.linalg.inv(torch.eye(2, dtype=DTYPE) + a) - torch.eye(2, dtype=DTYPE)
    interior = (slice(None), slice(None), slice(6, -6), slice(6, -6))
    found = invert(u, method, 1e-10)
    torch.testing.assert_close(found[interior], torch.einsum("ab,nb...->na...", expected, offset)[interior])


def test_inverse_of_a_flow_is_the_backward_flow():
    v = gaussian_smooth(_contraction((30, 32), size=2.0), 3.0) * 5
    taper = (
        torch.linspace(0, math.pi, 30, dtype=DTYPE).sin()[:, None]
        * torch.linspace(0, math.pi, 32, dtype=DTYPE).sin()
    )
    v = v * taper.square()  # a flow that stays inside: outside the grid u and v extend differently
    u, back = exp(v, 8, first_step=2), exp(-v, 8, first_step=2)
    assert float(u.abs().max()) > 0.5
    assert float((invert(u, tolerance_vox=1e-9) - back).abs().mean()) < 5e-3


@pytest.mark.parametrize("shape", [(5, 1), (1, 4, 3), (1, 1)])
@pytest.mark.parametrize("method", METHODS)
def test_translation_and_no_motion_are_exact(shape, method):
    u = torch.tensor([2.0, -0.75, 9.0])[: len(shape)].view(1, -1, *[1] * len(shape)).expand(1, -1, *shape)
    assert torch.equal(invert(u, method), -u)
    zero = torch.zeros(1, len(shape), *shape)
    assert torch.equal(invert(zero, method), zero)


def test_chunks_do_not_change_the_answer(monkeypatch):
    u = _diffeomorphism((9, 8, 7))
    whole = invert(u, "newton", 1e-9)
    monkeypatch.setattr("DiffeoRegLib.flows.inversion.POINTS_PER_CHUNK", 37)
    torch.testing.assert_close(invert(u, "newton", 1e-9), whole)


def test_a_fold_is_reported():
    u = torch.zeros(1, 2, 9, 9)
    u[0, 0, 4] = 2.5  # row 4 lands beyond row 6: the map goes forth, back and forth again
    v, report = invert_with_report(u, "mixed", 1e-3)
    assert bool(v.isfinite().all())
    u[0, 0, 4, 4] = float("nan")
    _, broken = invert_with_report(u, "newton", 1e-3)
    assert broken.unsolved > report.unsolved


@pytest.mark.parametrize("method", METHODS)
def test_gradcheck(method):
    u = _contraction((3, 4, 2)).requires_grad_()
    assert torch.autograd.gradcheck(lambda a: invert(a, method, 1e-12), u)
    flat = _contraction((4, 3)).expand(2, -1, -1, -1).clone()
    flat[1] *= -0.7
    assert torch.autograd.gradcheck(lambda a: invert(a, method, 1e-13), flat.requires_grad_())


@pytest.mark.parametrize("shape", [(9, 8), (7, 6, 8)])
def test_closed_form_gradient_is_that_of_the_converged_iteration(shape):
    u = _contraction(shape, size=0.5)
    goal = _contraction(shape, seed=5)
    one, other = u.clone().requires_grad_(), u.clone().requires_grad_()
    (invert(one, "newton", 1e-13) * goal).sum().backward()
    v = -other
    for _ in range(120):
        v = -warp(other, v)
    assert float(inversion_residual(other, v).detach().max()) < 1e-13
    (v * goal).sum().backward()
    torch.testing.assert_close(one.grad, other.grad, atol=1e-10, rtol=0)


def test_it_is_differentiable_once():
    u = _contraction((4, 4)).requires_grad_()
    (first,) = torch.autograd.grad(invert(u).square().sum(), u, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@pytest.mark.parametrize("shape", SHAPES)
def test_arbitrary_points_come_back_exactly(shape):
    d = len(shape)
    u = _diffeomorphism(shape, 4.0, dtype=torch.float32)
    generator = torch.Generator().manual_seed(4)
    points = torch.rand(500, d, dtype=DTYPE, generator=generator) * (torch.tensor(shape, dtype=DTYPE) + 6) - 3
    found = invert_at(u, points)
    again = found + sample(u.double(), found.T[None])[0].T
    assert float((again - points).abs().max()) < 1e-9
    assert found.dtype == DTYPE


def test_points_on_voxels_are_the_field():
    u = _diffeomorphism((10, 11))
    points = identity_vox((10, 11), DTYPE)[0].flatten(1).T
    field = invert(u, "newton", 1e-11)[0].flatten(1).T
    torch.testing.assert_close(invert_at(u, points, 1e-11), points + field, atol=1e-9, rtol=0)


def test_bad_settings_are_named():
    u = torch.zeros(1, 2, 4, 4)
    with pytest.raises(UnknownNameError, match="newton"):
        invert(u, "newtonn")
    for tolerance in (0.0, -1.0, float("nan")):
        with pytest.raises(SettingsError):
            invert(u, tolerance_vox=tolerance)
    with pytest.raises(SettingsError):
        invert(u, most_iterations=0)
    with pytest.raises(ShapeError):
        invert(torch.zeros(1, 3, 4, 4))
    with pytest.raises(ShapeError):
        invert_at(u, torch.zeros(5, 3))
