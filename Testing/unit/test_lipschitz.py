"""Lipschitz blocks: what one adds at most, both norms, and that the fast form is the plain one."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from DiffeoRegLib.errors import SettingsError, UnknownNameError
from DiffeoRegLib.networks.lipschitz import (
    LIPSCHITZ,
    Branch,
    LipschitzBlock,
    SpectralKernel,
    flattened_norm,
    folded,
    norm_bound,
    side_by_side,
    unfolded,
)

CASES = [(2, (9, 13)), (2, (6, 8)), (3, (5, 4, 7))]


def branches(dim, count=3, kind="flattened", seed=0):
    """Of a displacement and of an intensity."""
    torch.manual_seed(seed)
    return [Branch(dim, channels, count, kind).double() for channels in (dim, 1)]


def fields(dim, shape, seed=1, size=1.0):
    generator = torch.Generator().manual_seed(seed)
    return [size * torch.randn(2, c, *shape, generator=generator, dtype=torch.float64) for c in (dim, 1)]


def symbol_norm(kernel, frequencies=65):
    """Largest singular value of the kernel's transform, frequency by frequency, -pi and pi among them."""
    dim = kernel.dim() - 2
    angles = torch.linspace(-math.pi, math.pi, frequencies, dtype=torch.float64)
    waves = torch.polar(torch.ones(1, dtype=torch.float64), angles[:, None] * torch.arange(3))
    spectrum = kernel.to(torch.complex128)
    for _ in range(dim):
        spectrum = torch.tensordot(spectrum, waves, dims=([2], [1]))
    return float(torch.linalg.svdvals(spectrum.flatten(2).movedim(2, 0)).max())


@pytest.mark.parametrize("kind", LIPSCHITZ)
def test_a_block_adds_at_most_a_half(kind):
    torch.manual_seed(0)
    block = LipschitzBlock(2, 2, kind)
    x = 50 * torch.randn(1, 2, 20, 20)
    added = (block(x) - x).detach().abs()
    assert 0.4 < float(added.max()) <= 0.5 + 1e-5


@pytest.mark.parametrize("dim", [2, 3])
def test_flattened_kernels_have_norm_one_after_training_and_follow_the_weights(dim):
    torch.manual_seed(0)
    kernel = SpectralKernel(dim, dim, 3)
    optimiser = torch.optim.SGD([kernel.weight], 0.05)
    target = torch.randn_like(kernel.weight)
    for _ in range(20):
        optimiser.zero_grad()
        (kernel() * target).sum().backward()
        optimiser.step()
    norm = float(torch.linalg.matrix_norm(kernel.eval()().detach().flatten(1), 2))
    assert 0.999 < norm <= 1.001


def test_a_new_network_is_normalised_at_once():
    for seed in range(5):
        torch.manual_seed(seed)
        norm = torch.linalg.matrix_norm(SpectralKernel(3, 3, 3)().detach().flatten(1), 2)
        assert float(norm) == pytest.approx(1, abs=1e-5)


def test_flattened_normalisation_is_that_of_torch():
    torch.manual_seed(0)
    ours = SpectralKernel(2, 2, 3).double()
    layer = nn.Conv2d(2, 2, 3, bias=False).double()
    layer.weight = nn.Parameter(ours.weight.detach().clone())
    theirs = parametrizations.spectral_norm(layer, n_power_iterations=1)
    target = torch.randn_like(ours.weight)
    for _ in range(40):
        _ = theirs.weight  # reading it makes the step
    torch.testing.assert_close(ours(), theirs.weight)
    gradients = []
    for kernel, parameter in (
        (ours(), ours.weight),
        (theirs.weight, theirs.parametrizations.weight.original),
    ):
        gradients.append(torch.autograd.grad((kernel * target).sum(), parameter)[0])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_the_flattened_norm_where_two_singular_values_are_next_to_equal():
    rotation, _ = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)))
    matrix = rotation @ torch.diag(torch.tensor([1.0, 0.999, 0.2])) @ torch.eye(3, 81)
    assert float(flattened_norm(matrix.view(3, 3, 3, 3, 3))) == pytest.approx(1, abs=1e-4)
    assert float(flattened_norm(torch.zeros(2, 2, 3, 3))) == 0


@pytest.mark.parametrize("dim", [2, 3])
def test_the_exact_norm_bounds_the_convolution(dim):
    """Flattening misses up to sqrt(3^dim) of it, as for kernels of one value."""
    constant = torch.ones(1, 1, *[3] * dim, dtype=torch.float64)
    assert 3**dim <= float(norm_bound(constant)) < 1.07 * 3**dim
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        kernel = torch.randn(dim, dim, *[3] * dim, generator=generator, dtype=torch.float64)
        true, bound = symbol_norm(kernel, 65 if dim == 2 else 33), float(norm_bound(kernel))
        assert true <= bound < 1.09 * true
        flattened = float(torch.linalg.matrix_norm(kernel.flatten(1), 2))
        assert true > 1.2 * flattened


def test_the_exact_normalisation_keeps_every_convolution_from_growing_a_field():
    """The largest singular value of the convolution as it is used, zeros around an image, by its matrix."""
    torch.manual_seed(0)
    kernel = SpectralKernel(2, 2, 3, "exact").double()
    with torch.no_grad():
        kernel.weight *= 3
    unit = torch.eye(2 * 12 * 11, dtype=torch.float64).view(-1, 2, 12, 11)
    matrix = functional.conv2d(unit, kernel(), padding=1).flatten(1).detach()
    norm = float(torch.linalg.matrix_norm(matrix, 2))
    assert 0.9 < norm <= 1
    with torch.no_grad():
        kernel.weight *= 1e-2
    torch.testing.assert_close(kernel(), kernel.weight)  # what is small is left alone


def test_the_exact_norm_has_its_derivative():
    generator = torch.Generator().manual_seed(3)
    kernel = torch.randn(2, 2, 3, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(norm_bound, (kernel,), atol=1e-6)
    point = torch.randn(3, 3, 1, 1, 1, generator=generator, dtype=torch.float64)
    assert float(norm_bound(point)) == pytest.approx(float(torch.linalg.svdvals(point.flatten(1))[0]))


def test_with_exact_norms_a_block_can_be_undone():
    """x -> y - f(x) contracts by a half, so that any field is what a branch makes of some other."""
    _, branch = branches(2, 3, "exact")
    (_, wanted) = fields(2, (12, 10), size=3.0)
    x = wanted
    with torch.no_grad():
        for block in reversed(branch.blocks()):
            target = x
            for _ in range(50):
                x = target - (block(x) - x)
        torch.testing.assert_close(branch(x), wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", LIPSCHITZ)
@pytest.mark.parametrize(("dim", "shape"), CASES)
def test_side_by_side_is_one_after_the_other(dim, shape, kind):
    """States after every block, with and without a graph, checkpointed, and the gradients."""
    pair, starts = [branch.eval() for branch in branches(dim, 3, kind)], fields(dim, shape)
    wanted = []
    for branch, x in zip(pair, starts, strict=True):
        states = []
        for block in branch.blocks():
            x = block(x)
            states.append(x)
        wanted.append(states)
    every = side_by_side(pair, starts, every=True)
    assert len(every) == 3
    for number, state in enumerate(every):
        for k in range(2):
            torch.testing.assert_close(state[k], wanted[k][number], rtol=0, atol=1e-12)
    with torch.no_grad():
        (last,) = side_by_side(pair, starts)
    for k in range(2):
        torch.testing.assert_close(last[k], wanted[k][-1].detach(), rtol=0, atol=1e-12)
    parameters = [p for branch in pair for p in branch.parameters()]
    plain = torch.autograd.grad(sum(states[-1].square().sum() for states in wanted), parameters)
    (checkpointed,) = side_by_side(pair, starts, checkpointing=True)
    fast = torch.autograd.grad(sum(x.square().sum() for x in checkpointed), parameters)
    for one, other in zip(plain, fast, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_folding_columns_and_back():
    x = torch.randn(2, 3, 5, 10)
    there = folded(x)
    assert there.shape == (2, 12, 5, 3)
    assert torch.equal(unfolded(there, 3, 10), x)


def test_bad_sizes():
    for bad in ({"dim": 4}, {"count": 0}, {"slope": 1.0}, {"channels": 0}):
        with pytest.raises(SettingsError):
            Branch(**{"dim": 2, "channels": 2, "count": 1, **bad})
    with pytest.raises(UnknownNameError, match="spectral norm"):
        Branch(2, 2, 1, "loose")
    with pytest.raises(SettingsError, match="equally many"):
        side_by_side([Branch(2, 2, 1), Branch(2, 1, 2)], fields(2, (8, 8)))
