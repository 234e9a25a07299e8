"""Reading values between voxels, against scipy and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from DiffeoRegLib.errors import ShapeError
from DiffeoRegLib.space.bspline import sample_spline, spline_coefficients
from DiffeoRegLib.space.sample import array_from_tensor, identity_vox, sample, tensor_from_array, warp

SHAPES = [(5, 7, 6), (6, 4)]


def setting(shape, beyond=0.0, dtype=torch.float64, count=60):
    """Values (2, 3, *shape) and positions (2, d, count) that reach `beyond` voxels past the edges."""
    values = torch.randn(2, 3, *shape, dtype=dtype)
    size = torch.tensor(shape, dtype=dtype).reshape(1, -1, 1) - 1
    return values, torch.rand(2, len(shape), count, dtype=dtype) * (size + 2 * beyond) - beyond


def by_scipy(values, position, order, mode):
    out = np.empty((*values.shape[:2], position.shape[2]))
    for n, c in np.ndindex(*values.shape[:2]):
        out[n, c] = map_coordinates(
            values[n, c].tolist(), position[n].tolist(), order=order, mode=mode, cval=0.0
        )
    return out


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("mode", "order"), [("linear", 1), ("cubic", 3)])
def test_agrees_with_scipy_inside(shape, mode, order):
    values, position = setting(shape)
    expected = by_scipy(values, position, order, "mirror")
    assert np.abs(array_from_tensor(sample(values, position, mode=mode)) - expected).max() < 1e-12


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("outside", "scipy_mode"), [("border", "nearest"), ("zeros", "grid-constant")])
def test_outside_rules(shape, outside, scipy_mode):
    values, position = setting(shape, beyond=2.5)
    expected = by_scipy(values, position, 1, scipy_mode)
    assert np.abs(array_from_tensor(sample(values, position, outside=outside)) - expected).max() < 1e-12


@pytest.mark.parametrize("outside", ["border", "zeros"])
def test_cubic_outside_rules(outside):
    values, position = setting((5, 7, 6), beyond=2.5)
    size = torch.tensor([4.0, 6.0, 5.0], dtype=torch.float64).reshape(1, 3, 1)
    at_edge = sample(values, position.clamp(min=torch.zeros(1, 3, 1)).minimum(size), mode="cubic")
    fade = (1 - (position - position.clamp(min=0).minimum(size)).abs()).clamp(min=0).prod(dim=1, keepdim=True)
    expected = at_edge if outside == "border" else at_edge * fade
    assert torch.allclose(sample(values, position, mode="cubic", outside=outside), expected, atol=1e-12)
    assert (fade == 0).any()
    assert ((fade > 0) & (fade < 1)).any()


def test_nearest():
    values, position = setting((5, 7, 6), dtype=torch.float32)
    index = position.round().long()
    got = sample(values, position, mode="nearest")
    for n in range(2):
        k, j, i = index[n]
        assert torch.equal(got[n], values[n][:, k, j, i])


@pytest.mark.parametrize("mode", ["linear", "nearest", "cubic"])
def test_voxel_centres_give_their_values(mode):
    values = torch.randn(1, 2, 4, 5, 6)
    got = sample(values, identity_vox((4, 5, 6)), mode=mode)
    assert torch.allclose(got, values, atol=1e-5)


@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_gradients(mode):
    values = torch.randn(1, 2, 4, 5, 3, dtype=torch.float64, requires_grad=True)
    position = (torch.rand(1, 3, 4, dtype=torch.float64) * 1.8 + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(lambda v, p: sample(v, p, mode=mode), (values, position))


def test_gradient_and_plain_paths_agree():
    values, position = setting((5, 7, 6), beyond=1.0)
    with_gradient = sample(values, position.clone().requires_grad_())
    assert torch.equal(with_gradient.detach(), sample(values, position))


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_an_axis_of_one_voxel(axis, mode):
    shape = [4, 5, 6]
    shape[axis] = 1
    values = torch.randn(1, 1, *shape)
    centre = torch.tensor([1.0, 1.0, 1.0]).reshape(1, 3, 1)
    centre[0, axis] = 0
    off = centre.clone()
    off[0, axis] = 0.25
    value = sample(values, centre, mode=mode)
    assert torch.allclose(sample(values, off, mode=mode), value)
    assert torch.allclose(sample(values, off, mode=mode, outside="zeros"), 0.75 * value)


@pytest.mark.parametrize("out", [(9,), (2, 3), (2, 3, 4), (2, 2, 2, 2)])
@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_positions_of_any_arrangement(out, mode):
    values, position = setting((5, 7, 6), count=int(np.prod(out)))
    expected = sample(values, position, mode=mode).reshape(2, 3, *out)
    assert torch.allclose(sample(values, position.reshape(2, 3, *out), mode=mode), expected)


def test_one_set_of_positions_serves_a_batch():
    values, position = setting((5, 7, 6))
    both = sample(values, position[:1])
    assert torch.equal(both[1], sample(values[1:], position[:1])[0])


def test_warp_moves_by_whole_voxels():
    image = torch.arange(60.0).reshape(1, 1, 3, 4, 5)
    u = torch.zeros(1, 3, 3, 4, 5)
    u[:, 1] = 1
    assert torch.equal(warp(image, u)[:, :, :, :-1], image[:, :, :, 1:])


def test_wrong_number_of_components():
    with pytest.raises(ShapeError):
        sample(torch.zeros(1, 1, 4, 5, 6), torch.zeros(1, 2, 4, 5, 6))


def test_spline_is_the_same_in_pieces():
    values, position = setting((5, 7, 6))
    coefficients = spline_coefficients(values)
    pieces = [sample_spline(coefficients, position[:, :, a : a + 7]) for a in range(0, 60, 7)]
    assert torch.equal(torch.cat(pieces, dim=2), sample_spline(coefficients, position))


@pytest.mark.parametrize("dtype", [">i2", "<u2", ">f8", "u1", "<u4"])
def test_arrays_of_any_kind_become_tensors(dtype):
    array = np.arange(24).astype(dtype).reshape(2, 3, 4)[:, ::-1].T
    tensor = tensor_from_array(array)
    assert tensor.tolist() == array.tolist()
    tensor[0, 0, 0] = 99
    assert array[0, 0, 0] != 99


def test_bfloat16_comes_back_as_float32():
    assert array_from_tensor(torch.ones(3, dtype=torch.bfloat16)).dtype == np.float32
