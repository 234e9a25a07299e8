"""Gaussian kernels: symmetric matrices, both forms one operator, widths in millimetres."""

from __future__ import annotations

import itertools

import pytest
import torch

from DiffeoRegLib.errors import SettingsError, ShapeError
from DiffeoRegLib.space.fourier import GaussianKernels, reflecting_gaussian
from DiffeoRegLib.space.sample import identity_vox

D = torch.float64
CPU = torch.device("cpu")
CASES = [((24, 31), (1.0, 1.5)), ((14, 17, 20), (1.0, 0.8, 1.3))]


def _kernels(shape, spacing, form, dtype=D, sigmas=(2.5, 4.0, 9.0)):
    return GaussianKernels(shape, spacing, sigmas, form=form, dtype=dtype)


@pytest.mark.parametrize(("shape", "spacing"), CASES)
@pytest.mark.parametrize("form", ["separable", "fourier"])
def test_kernels_are_symmetric_and_positive(shape, spacing, form):
    kernels = _kernels(shape, spacing, form)
    a, b = torch.randn(2, 2, 3, len(shape), *shape, dtype=D)
    left, right = (kernels.each(a) * b).sum(), (a * kernels.each(b)).sum()
    assert float(abs(left - right) / abs(left)) < 1e-12
    assert float((kernels.each(a) * a).sum()) > 0
    weights = (0.5, 0.0, 2.0)
    left, right = (
        (kernels.mixed(a[:, 0], weights) * b[:, 0]).sum(),
        (a[:, 0] * kernels.mixed(b[:, 0], weights)).sum(),
    )
    assert float(abs(left - right) / abs(left)) < 1e-12


@pytest.mark.parametrize(("shape", "spacing"), CASES)
@pytest.mark.parametrize(("dtype", "largest"), [(D, 1e-13), (torch.float32, 2e-6)])
def test_both_forms_are_one_operator(shape, spacing, dtype, largest):
    x = torch.randn(2, 3, len(shape), *shape, dtype=dtype)
    separable, fourier = (_kernels(shape, spacing, form, dtype) for form in ("separable", "fourier"))
    assert float((separable.each(x) - fourier.each(x)).abs().max()) < largest
    mixed = separable.mixed(x[:, 1], (0.2, 0.3, 0.5))
    assert float((mixed - fourier.mixed(x[:, 1], (0.2, 0.3, 0.5))).abs().max()) < largest
    every = separable.each(x[:, 1:2].expand_as(x).contiguous())
    sum_of_each = torch.einsum("nk...,k->n...", every, torch.tensor([0.2, 0.3, 0.5], dtype=dtype))
    assert float((mixed - sum_of_each).abs().max()) < largest


@pytest.mark.parametrize("form", ["separable", "fourier"])
@pytest.mark.parametrize(("shape", "spacing"), [((61, 71), (1.0, 0.7)), ((41, 31, 35), (1.0, 1.2, 1.1))])
def test_an_impulse_becomes_a_gaussian_of_that_width_in_millimetres(form, shape, spacing):
    sigma = 3.0
    kernels = GaussianKernels(shape, spacing, (sigma,), form=form, dtype=D)
    x = torch.zeros(1, 1, *shape, dtype=D)
    place = tuple(n // 3 for n in shape)
    x[(0, 0, *place)] = 1
    step = torch.tensor(spacing, dtype=D).view(1, -1, *[1] * len(shape))
    offset = (identity_vox(shape, D) - torch.tensor(place).view_as(step)) * step
    expected = torch.exp(-0.5 * (offset / sigma).square().sum(1, keepdim=True))
    expected *= step.prod() / (2 * torch.pi * sigma**2) ** (len(shape) / 2)
    found = kernels.mixed(x, (1.0,))
    assert float((found - expected).abs().max() / expected.max()) < 1e-9
    # No step meets the far side of the grid, as a periodic transform would.
    x = torch.zeros(1, 1, *shape, dtype=D)
    x[(0, 0, *[0] * len(shape))] = 1
    assert float(kernels.mixed(x, (1.0,))[(0, 0, *[-1] * len(shape))].abs()) < 1e-15


@pytest.mark.parametrize("shape", [(9, 30), (7, 12, 10)])
@pytest.mark.parametrize("sigma", [0.4, 1.3, 8.0])
def test_reflecting_gaussian(shape, sigma):
    smooth = reflecting_gaussian(shape, (sigma,) * len(shape), D, CPU)
    ones = torch.ones(1, 1, *shape, dtype=D)
    assert float((smooth(ones) - 1).abs().max()) < 1e-12
    a, b = torch.randn(2, 1, 2, *shape, dtype=D)
    left, right = (smooth(a) * b).sum(), (a * smooth(b)).sum()
    assert float(abs(left - right)) < 1e-12 * float(a.norm() * b.norm())
    assert float(smooth(a.square()).min()) > 0
    assert float(smooth(a).square().mean()) < 0.9 * float(a.square().mean())


def test_kernels_are_differentiable():
    for form, shape in itertools.product(("separable", "fourier"), ((6, 5), (4, 5, 4))):
        kernels = GaussianKernels(shape, (1.0,) * len(shape), (1.6, 2.2), form=form, dtype=D)
        x = torch.randn(1, 2, 1, *shape, dtype=D, requires_grad=True)
        assert torch.autograd.gradcheck(kernels.each, x)
        assert torch.autograd.gradcheck(lambda y, k=kernels: k.mixed(y[:, 0], (0.3, 0.7)), x)


def test_bad_input_is_named():
    with pytest.raises(SettingsError, match=r"at least 1\.5 grid steps"):
        GaussianKernels((20, 20), (1.0, 2.0), (2.9,))
    GaussianKernels((20, 20), (1.0, 2.0), (3.0,))
    for sigmas in ((), (float("nan"),), (float("inf"),), (-3.0,)):
        with pytest.raises(SettingsError, match="widths"):
            GaussianKernels((20, 20), (1.0, 1.0), sigmas)
    for shape, spacing in (((20,), (1.0,)), ((20, 20), (1.0,)), ((20, 20), (1.0, 0.0))):
        with pytest.raises(ShapeError, match="positive spacings"):
            GaussianKernels(shape, spacing, (3.0,))
    with pytest.raises(SettingsError, match="form"):
        GaussianKernels((20, 20), (1.0, 1.0), (3.0,), form="dense")
    kernels = GaussianKernels((20, 20), (1.0, 1.0), (3.0, 4.0))
    with pytest.raises(ShapeError, match="2 kernels"):
        kernels.each(torch.zeros(1, 3, 2, 20, 20))
    with pytest.raises(ShapeError, match="2 kernels"):
        kernels.mixed(torch.zeros(1, 2, 20, 20), (1.0,))
    with pytest.raises(SettingsError, match="width above zero"):
        reflecting_gaussian((20, 20), (1.0, 0.0), D, CPU)
