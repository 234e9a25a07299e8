"""The layers of TransMorph networks that are computed in a faster way: the same numbers as the plain way."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from DiffeoRegLib.networks.transmorph import convolved, enlarged, field_head, laid_out, normalised, predicted

SHAPES = [(7, 9), (5, 6, 7)]


def drawn(*shape, dtype=torch.bfloat16, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def plain_convolution(x, weight, bias=None):
    return (functional.conv2d if x.dim() == 4 else functional.conv3d)(x, weight, bias, padding=1)


def close_in_norm(found, expected, share):
    assert found.shape == expected.shape
    assert float((found.double() - expected).norm() / expected.norm()) < share


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("head", [False, True])
def test_convolutions_in_half_precision(shape, head):
    """Values and gradients of exactly the rounded numbers, to what is rounded again."""
    torch.manual_seed(0)
    layer = field_head(len(shape), 6) if head else torch.nn.Conv2d(6, 5, 3, bias=False)
    if not head and len(shape) == 3:
        layer = torch.nn.Conv3d(6, 5, 3, bias=False)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(drawn(*parameter.shape).float())  # numbers that rounding does not change
    x = drawn(2, 6, *shape, seed=1).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        found = predicted(layer, x) if head else convolved(x, layer.weight)
    back = drawn(*found.shape, seed=2).to(found.dtype)
    found.backward(back)

    exact = x.detach().double().requires_grad_()
    double = [parameter.detach().double().requires_grad_() for parameter in layer.parameters()]
    expected = plain_convolution(exact, *double)
    expected.backward(back.double())
    assert found.dtype == (torch.float32 if head else torch.bfloat16)
    assert found.is_contiguous()
    close_in_norm(found.detach(), expected.detach(), 1e-6 if head else 4e-3)
    close_in_norm(x.grad, exact.grad, 4e-3)
    for parameter, other in zip(layer.parameters(), double, strict=True):
        assert parameter.grad.dtype == torch.float32
        close_in_norm(parameter.grad, other.grad, 4e-3)


def test_convolutions_in_full_precision_are_torch_own():
    layer = field_head(2, 3)
    x = drawn(1, 3, 6, 5, dtype=torch.float32)
    assert torch.equal(predicted(layer, x), layer(x))
    assert torch.equal(convolved(x, layer.weight), plain_convolution(x, layer.weight))
    assert laid_out(x) is x


def test_only_the_gradients_that_are_asked_for():
    x, weight = drawn(1, 3, 6, 5), drawn(4, 3, 3, 3, dtype=torch.float32).requires_grad_()
    (of_weight,) = torch.autograd.grad(convolved(x, weight).sum(), weight)
    assert of_weight.shape == weight.shape
    x.requires_grad_()
    (of_x,) = torch.autograd.grad(convolved(x, weight.detach()).sum(), x)
    assert of_x.shape == x.shape
    assert of_x.is_contiguous()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_normalisation_is_that_of_instances(shape, dtype):
    """Also far from zero, where the variance of rounded numbers needs sums in full precision."""
    x = (10 + drawn(2, 4, *shape, dtype=torch.float64)).to(dtype).requires_grad_()
    found = normalised(x)
    # A gradient that looks like the result shows means and variances that were rounded.
    back = (drawn(*found.shape, dtype=dtype, seed=2) + 2 * found.detach()).to(dtype)
    found.backward(back)
    exact = x.detach().double().requires_grad_()
    expected = functional.leaky_relu(functional.instance_norm(exact), 0.01)
    expected.backward(back.double())
    share = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 4e-3}[dtype]
    assert found.dtype == dtype
    close_in_norm(found.detach(), expected.detach(), share)
    close_in_norm(x.grad, exact.grad, 2 * share)


@pytest.mark.parametrize(("coarse", "fine"), [((4, 5), (8, 10)), ((4, 5), (7, 5)), ((3, 4, 5), (6, 7, 8))])
def test_twice_the_resolution_is_torch_own(coarse, fine):
    x = drawn(2, 3, *coarse, dtype=torch.float64)
    mode = "bilinear" if len(coarse) == 2 else "trilinear"
    whole = functional.interpolate(x, scale_factor=2, mode=mode, align_corners=False)
    expected = whole[(slice(None), slice(None), *[slice(n) for n in fine])]
    torch.testing.assert_close(enlarged(x, torch.Size(fine)), expected, rtol=0, atol=1e-12)
