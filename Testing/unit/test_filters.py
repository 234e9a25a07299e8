"""Gaussian and box filters against scipy, their adjoints and border rules."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from DiffeoRegLib.errors import SettingsError, ShapeError
from DiffeoRegLib.space.filters import (
    Banded,
    apply_banded,
    box_mean,
    box_sum,
    gaussian_smooth,
    linear_resize_matrix,
)
from DiffeoRegLib.space.sample import array_from_tensor

SHAPES = [(7, 70), (5, 40, 9), (1, 33, 2)]


def _random(shape, dtype=torch.float64):
    return torch.rand(2, 2, *shape, dtype=dtype, generator=torch.Generator().manual_seed(3)) - 0.3


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("boundary", "mode"), [("replicate", "nearest"), ("zero", "constant")])
def test_gaussian_is_scipys(shape, boundary, mode):
    x = _random(shape)
    sigmas = [1.7, 0.8, 3.1][: len(shape)]
    ours = array_from_tensor(gaussian_smooth(x, sigmas, boundary))
    theirs = ndimage.gaussian_filter(array_from_tensor(x), [0, 0, *sigmas], mode=mode, cval=0.0)
    np.testing.assert_allclose(ours, theirs, atol=1e-13)


def test_renormalised_gaussian_is_a_masked_mean():
    x = _random((9, 11))
    expected = gaussian_smooth(x, 2.0, "zero") / gaussian_smooth(torch.ones_like(x), 2.0, "zero")
    torch.testing.assert_close(gaussian_smooth(x, 2.0, "renormalise"), expected)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("boundary", ["zero", "replicate"])
def test_box_sum_is_a_window_sum(shape, boundary):
    x = _random(shape)
    radii = [2, 3, 1][: len(shape)]
    size = [1, 1, *[2 * r + 1 for r in radii]]
    mode = "constant" if boundary == "zero" else "nearest"
    theirs = ndimage.uniform_filter(array_from_tensor(x), size, mode=mode, cval=0.0) * np.prod(size)
    np.testing.assert_allclose(array_from_tensor(box_sum(x, radii, boundary)), theirs, atol=1e-11)


def test_box_mean_keeps_constants_where_the_window_is_larger_than_the_image():
    x = torch.full((1, 1, 4, 3, 1), 2.5)
    torch.testing.assert_close(box_mean(x, 6), x)
    assert float(box_sum(x, 6)[0, 0, 0, 0, 0]) == pytest.approx(12 * 2.5)


@pytest.mark.parametrize("boundary", ["replicate", "renormalise"])
def test_constants_stay(boundary):
    x = torch.full((1, 3, 8, 67, 5), -3.25)
    torch.testing.assert_close(gaussian_smooth(x, (1.0, 9.0, 30.0), boundary), x, rtol=2e-6, atol=0)


def test_zero_boundary_is_self_adjoint_and_replicate_is_not():
    x, y = _random((6, 35)), _random((6, 35)).flip(-1) ** 2
    for smooth in (lambda a: gaussian_smooth(a, 2.0, "zero"), lambda a: box_sum(a, 3)):
        assert float((smooth(x) * y).sum()) == pytest.approx(float((x * smooth(y)).sum()), rel=1e-12)
    left = float((gaussian_smooth(x, 2.0) * y).sum())
    assert left != pytest.approx(float((x * gaussian_smooth(y, 2.0)).sum()), rel=1e-6)


def test_zero_width_changes_nothing():
    x = _random((5, 6))
    assert torch.equal(gaussian_smooth(x, 0.0), x)
    assert torch.equal(box_sum(x, 0), x)


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_banded_product_is_the_dense_product(axis):
    generator = torch.Generator().manual_seed(1)
    dense = torch.rand(83, 45, dtype=torch.float64, generator=generator).tril(3).triu(-60)
    x = torch.rand(45, 45, 45, dtype=torch.float64, generator=generator)
    expected = torch.tensordot(dense, x, dims=([1], [axis])).movedim(0, axis)
    torch.testing.assert_close(apply_banded(x, Banded.from_dense(dense), axis), expected)
    back = torch.tensordot(dense.T, expected, dims=([1], [axis])).movedim(0, axis)
    torch.testing.assert_close(apply_banded(expected, Banded.from_dense(dense).adjoint(), axis), back)


def test_gradients():
    x = _random((3, 5, 4)).requires_grad_()
    assert torch.autograd.gradcheck(lambda a: gaussian_smooth(a, (1.0, 0.7, 2.0)), x)
    assert torch.autograd.gradcheck(lambda a: box_mean(a, 1), x)
    assert torch.autograd.gradgradcheck(lambda a: box_sum(a, (1, 2, 0)) ** 2, x)


def test_a_transposed_view_is_filtered_like_its_copy():
    x = _random((6, 9)).transpose(2, 3)
    torch.testing.assert_close(gaussian_smooth(x, (1.0, 2.0)), gaussian_smooth(x.contiguous(), (1.0, 2.0)))


def test_linear_resize_reads_between_voxels_and_repeats_the_border():
    matrix = linear_resize_matrix(4, 3, 1.5, -1.0, torch.float64, torch.device("cpu"))
    x = torch.tensor([10.0, 20.0, 40.0], dtype=torch.float64)
    read = apply_banded(x[None], matrix, 1)[0]
    torch.testing.assert_close(read, torch.tensor([10.0, 15.0, 40.0, 40.0], dtype=torch.float64))


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda x: gaussian_smooth(x, (1.0, 2.0, 3.0)), ShapeError),
        (lambda x: gaussian_smooth(x, -1.0), SettingsError),
        (lambda x: gaussian_smooth(x, float("nan")), SettingsError),
        (lambda x: gaussian_smooth(x, 1.0, "mirror"), SettingsError),
        (lambda x: box_sum(x, -1), SettingsError),
    ],
)
def test_bad_settings_are_named(call, error):
    with pytest.raises(error):
        call(torch.zeros(1, 1, 4, 4))
