"""Control points: partition of unity, known values, and the bound that keeps every cell from folding."""

from __future__ import annotations

import pytest
import torch

from DiffeoRegLib.errors import SettingsError, ShapeError
from DiffeoRegLib.space.controls import largest_control, upsample_controls
from DiffeoRegLib.space.field import minimum_corner_determinant
from DiffeoRegLib.space.jacobian import corner_determinants

DTYPE = torch.float64
STRIDES = [1, 2, 4, 8]
DIMENSIONS = [2, 3]


def spline_rows(stride, count):
    """The matrix of one axis, (voxels, controls), read off unit controls."""
    units = torch.eye(count, dtype=DTYPE)[:, None, :, None]
    return upsample_controls(units, (stride, 1), (stride * count, 1))[:, 0, :, 0].T


def worst_controls(dim, stride, count=6):
    """Signs of the controls that squeeze one corner of one cell most, from the spline alone."""
    rows = spline_rows(stride, count)
    start = stride * (count // 2)
    here = rows[start : start + stride]
    step = stride * (rows[start + 1 : start + stride + 1] - here)
    total = 0.0
    for moved in range(dim):
        term = torch.ones([1] * (2 * dim), dtype=DTYPE)
        for axis in range(dim):
            shape = [1] * (2 * dim)
            shape[axis], shape[dim + axis] = stride, count
            term = term * (step if axis == moved else here).reshape(shape)
        total = total + term
    total = total.reshape(stride**dim, *[count] * dim)
    return -total[int(total.abs().flatten(1).sum(1).argmax())].sign()


@pytest.mark.parametrize("dim", DIMENSIONS)
@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("margin", [0.99, 1.0, 1.05])
def test_the_bound_is_reached_exactly(dim, stride, margin):
    signs = worst_controls(dim, stride).expand(1, dim, *[-1] * dim)
    size = largest_control((stride,) * dim, margin)[0]
    u = stride * upsample_controls(signs * size, (stride,) * dim, [stride * signs.shape[2]] * dim)
    assert float(corner_determinants(u).min()) == pytest.approx(1 - margin, abs=1e-6)


@pytest.mark.parametrize("dim", DIMENSIONS)
@pytest.mark.parametrize("stride", [*STRIDES, 3])
def test_random_largest_controls_never_fold(dim, stride):
    count = 9 if dim == 2 else 5
    signs = torch.randint(0, 2, (4, dim, *[count] * dim)).to(DTYPE) * 2 - 1
    u = stride * upsample_controls(
        signs * largest_control((stride,) * dim)[0], (stride,) * dim, [stride * count - stride // 2] * dim
    )
    assert 0 < float(minimum_corner_determinant(u).min()) < 0.6


def test_the_bound_of_unlike_strides_also_holds():
    strides, shape = (1, 4), (12, 36)
    size = torch.tensor(largest_control(strides), dtype=DTYPE).view(1, -1, 1, 1)
    lowest = 1.0
    for _ in range(40):
        signs = torch.randint(0, 2, (1, 2, 12, 9)).to(DTYPE) * 2 - 1
        u = upsample_controls(signs * size, strides, shape) * torch.tensor(strides, dtype=DTYPE).view(
            1, -1, 1, 1
        )
        lowest = min(lowest, float(minimum_corner_determinant(u).min()))
    assert 0 < lowest < 0.7


@pytest.mark.parametrize("dim", DIMENSIONS)
@pytest.mark.parametrize("stride", [1, 2, 3, 4, 8])
def test_constants_and_ramps_are_kept(dim, stride):
    count = 8
    shape = [stride * count] * dim
    ones = torch.ones(1, 1, *[count] * dim, dtype=DTYPE)
    assert float((upsample_controls(ones, [stride] * dim, shape) - 1).abs().max()) < 1e-12
    place = torch.arange(count, dtype=DTYPE) * stride + (stride - 1) / 2
    ramp = place.view(-1, *[1] * (dim - 1)).expand(1, 1, *[count] * dim)
    found = upsample_controls(ramp, [stride] * dim, shape)[0, 0].flatten(1)[:, 0]
    inside = slice(2 * stride, -2 * stride)
    assert float((found - torch.arange(stride * count, dtype=DTYPE))[inside].abs().max()) < 1e-12


def test_an_impulse_at_stride_one_is_the_spline():
    controls = torch.zeros(1, 1, 7, 7, dtype=DTYPE)
    controls[0, 0, 3, 3] = 1
    found = upsample_controls(controls, (1, 1), (7, 7))[0, 0]
    spline = torch.tensor([1 / 6, 2 / 3, 1 / 6], dtype=DTYPE)
    assert float((found[2:5, 2:5] - spline[:, None] * spline).abs().max()) < 1e-15
    assert float(found.sum()) == pytest.approx(1, abs=1e-12)


def test_what_overhangs_is_cropped_and_gradients_flow():
    controls = torch.rand(1, 2, 3, 4, dtype=DTYPE, requires_grad=True)
    whole = upsample_controls(controls, (4, 2), (12, 8))
    part = upsample_controls(controls, (4, 2), (10, 7))
    torch.testing.assert_close(part, whole[:, :, :10, :7])
    assert torch.autograd.gradcheck(lambda c: upsample_controls(c, (4, 2), (10, 7)), controls)


def test_bad_arguments():
    with pytest.raises(ShapeError, match=r"has \(3, 4\) controls"):
        upsample_controls(torch.zeros(1, 2, 4, 4), (4, 2), (10, 7))
    for strides in ((2,), (0, 2), (1.5, 2), (2, 2, 2, 2)):
        with pytest.raises(SettingsError, match="whole numbers"):
            largest_control(strides)
