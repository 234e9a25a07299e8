"""The divergence of a predicted Gaussian from smooth velocities, against dense matrices."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.autograd import gradcheck
from torch.distributions import MultivariateNormal, kl_divergence

from DiffeoRegLib.errors import SettingsError, ShapeError, UnknownNameError
from DiffeoRegLib.losses.velocity_prior import graph_laplacian_kl, log_determinant

GRIDS = [(3, 4, 5), (4, 3), (1, 5)]
every_grid = pytest.mark.parametrize("grid", GRIDS)


def gaussian(grid, batch=1, channels=2, seed=0):
    """Means and log-variances (N, C, *grid), float64."""
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, channels, *grid)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2)]


def dense_precision(grid, smoothness, magnitude):
    """magnitude I + smoothness (D - A), by a loop over all pairs of voxels."""
    voxels = list(itertools.product(*map(range, grid)))
    matrix = magnitude * torch.eye(len(voxels), dtype=torch.float64)
    for i, one in enumerate(voxels):
        for j, other in enumerate(voxels):
            if sum(abs(a - b) for a, b in zip(one, other, strict=True)) == 1:
                matrix[i, i] += smoothness
                matrix[i, j] -= smoothness
    return matrix


@every_grid
def test_it_is_the_divergence_of_two_normal_distributions(grid):
    mean, log_variance = gaussian(grid)
    precision = dense_precision(grid, 3.0, 0.2)
    prior = MultivariateNormal(torch.zeros(len(precision), dtype=torch.float64), precision_matrix=precision)
    expected = sum(
        kl_divergence(MultivariateNormal(m.flatten(), torch.diag(v.exp().flatten())), prior)
        for m, v in zip(mean[0], log_variance[0], strict=True)
    )
    found = graph_laplacian_kl(mean, log_variance, smoothness=3.0, magnitude=0.2, reduction="sum")
    assert float(found) == pytest.approx(float(expected), abs=1e-9)
    per_voxel = graph_laplacian_kl(mean, log_variance, smoothness=3.0, magnitude=0.2)
    assert float(per_voxel) == pytest.approx(float(expected) / len(precision), abs=1e-10)
    assert log_determinant(grid, 3.0, 0.2) == pytest.approx(float(torch.slogdet(precision)[1]), abs=1e-9)


@every_grid
def test_without_magnitude_only_the_constant_is_missing(grid):
    """Against the quadratic form and the traces with the singular matrix."""
    mean, log_variance = gaussian(grid)
    precision = dense_precision(grid, 10.0, 0.0)
    expected = torch.zeros((), dtype=torch.float64)
    for m, v in zip(mean[0].flatten(1), log_variance[0].flatten(1), strict=True):
        trace = (precision.diagonal() * v.exp()).sum() - v.sum() - len(precision)
        expected = expected + 0.5 * (trace + m @ precision @ m)
    found = graph_laplacian_kl(mean, log_variance, reduction="sum")
    assert float(found) == pytest.approx(float(expected), abs=1e-9)


@pytest.mark.parametrize("magnitude", [0.0, 0.3])
@pytest.mark.parametrize("reduction", ["sum", "voxel-mean"])
def test_gradient(magnitude, reduction):
    values = [v.requires_grad_() for v in gaussian((3, 2, 4), batch=2)]
    assert gradcheck(
        lambda m, v: graph_laplacian_kl(m, v, smoothness=2.0, magnitude=magnitude, reduction=reduction),
        values,
    )


def test_the_gradient_of_the_mean_is_the_precision_times_it():
    mean, log_variance = gaussian((3, 4), channels=1)
    mean.requires_grad_()
    graph_laplacian_kl(mean, log_variance, smoothness=2.0, magnitude=0.1, reduction="sum").backward()
    expected = dense_precision((3, 4), 2.0, 0.1) @ mean.detach().flatten()
    torch.testing.assert_close(mean.grad.flatten(), expected, rtol=1e-12, atol=1e-12)


def test_a_common_shift_costs_only_magnitude():
    mean, log_variance = gaussian((3, 4, 5))
    for magnitude in (0.0, 0.4):
        before, after = (
            graph_laplacian_kl(m, log_variance, magnitude=magnitude, reduction="sum")
            for m in (mean, mean + 0.7)
        )
        expected = 0.5 * magnitude * float((2 * 0.7 * mean + 0.49).sum())
        assert float(after - before) == pytest.approx(expected, abs=1e-9)


def test_the_best_variance_is_one_over_the_precision():
    mean = torch.zeros(1, 1, 5, 5, 5, dtype=torch.float64)
    diagonal = dense_precision((5, 5, 5), 10.0, 0.0).diagonal().reshape(mean.shape)
    assert float(diagonal.max()) == 60
    assert float(diagonal.min()) == 30
    log_variance = (-diagonal.log()).requires_grad_()
    graph_laplacian_kl(mean, log_variance).backward()
    assert float(log_variance.grad.abs().max()) < 1e-12


def test_a_batch_is_the_mean_of_its_items_and_half_precision_is_lifted():
    mean, log_variance = gaussian((3, 4, 5), batch=3)
    whole = graph_laplacian_kl(mean, log_variance, magnitude=0.1)
    parts = [graph_laplacian_kl(mean[i : i + 1], log_variance[i : i + 1], magnitude=0.1) for i in range(3)]
    torch.testing.assert_close(whole, torch.stack(parts).mean())
    assert graph_laplacian_kl(mean.bfloat16(), log_variance.bfloat16()).dtype == torch.float32


def test_what_cannot_be_is_refused():
    mean, log_variance = gaussian((3, 4, 5))
    with pytest.raises(ShapeError):
        graph_laplacian_kl(mean, log_variance[:, :1])
    with pytest.raises(UnknownNameError):
        graph_laplacian_kl(mean, log_variance, reduction="mean")
    for smoothness, magnitude in ((0.0, 0.0), (-1.0, 2.0), (1.0, -1.0), (float("inf"), 0.0)):
        with pytest.raises(SettingsError):
            graph_laplacian_kl(mean, log_variance, smoothness=smoothness, magnitude=magnitude)
