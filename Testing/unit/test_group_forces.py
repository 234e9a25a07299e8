"""Similarities of groups: their derivatives, pairs, exchange; the parts of the uncertainty."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from DiffeoRegLib.errors import UnknownNameError
from DiffeoRegLib.losses.forces import local_correlation
from DiffeoRegLib.losses.group_forces import group_similarity, mutual_information, to_the_others, variance
from DiffeoRegLib.losses.group_similarity import group_nmi, group_variance
from DiffeoRegLib.methods.group_memory import memory_of_group
from DiffeoRegLib.methods.group_search import GroupMotion, centred, group_plans, similarity_of
from DiffeoRegLib.methods.group_uncertainty import Precision, Prior, predicted, prior_of
from DiffeoRegLib.settings import Settings
from DiffeoRegLib.space.filters import gaussian_smooth
from DiffeoRegLib.space.grid import Grid


def blocks_of(count, places=4, shape=(7, 9), seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand((count, places, *shape), generator=generator, dtype=torch.float64)
    weight = torch.rand(shape, generator=generator, dtype=torch.float64)
    return images, weight


def slope_of(loss, images):
    """Derivative of loss(images) by automatic differentiation."""
    images = images.clone().requires_grad_()
    (by,) = torch.autograd.grad(loss(images), images)
    return by


def is_multiple(found, expected, tolerance=1e-6):
    ratio = float((found * expected).sum() / expected.square().sum())
    assert ratio > 0
    assert float((found - ratio * expected).abs().max()) < tolerance * float(found.abs().max())


@pytest.mark.parametrize("count", [2, 3, 5])
def test_variance_is_the_mean_over_pairs_with_its_derivative(count):
    images, weight = blocks_of(count)
    forces = variance(images, weight)

    def loss(x):
        mask = weight.expand(x.shape[1], *weight.shape).reshape(1, 1, -1, 1)
        return group_variance(x.reshape(len(x), 1, -1, 1), mask=mask)

    assert forces.value == pytest.approx(float(loss(images)))
    is_multiple(forces.by_image, slope_of(loss, images))


def test_information_is_that_of_the_loss_with_its_derivative():
    images, weight = blocks_of(3)
    forces = mutual_information(images, weight)

    def loss(x):
        mask = weight.expand(x.shape[1], *weight.shape).reshape(1, 1, -1, 1)
        return group_nmi(x.reshape(len(x), 1, -1, 1), mask=mask)

    assert forces.value == pytest.approx(float(loss(images)))
    is_multiple(forces.by_image, slope_of(loss, images))


def test_many_voxels_leave_some_out_and_agree(monkeypatch):
    smooth = gaussian_smooth(torch.rand(1, 1, 40, 40), 2.0)[0]
    smooth = (smooth - smooth.min()) / (smooth.max() - smooth.min())
    images = torch.stack([smooth, smooth**2, 1 - smooth]).expand(3, 4, 40, 40).contiguous()
    weight = torch.ones(40, 40)
    whole = mutual_information(images, weight)
    for shares, places in ((3 * 32 * 3300, [0, 3]), (3 * 32 * 1600, [0]), (3 * 32 * 300, [0])):
        monkeypatch.setattr("DiffeoRegLib.losses.group_forces.SHARES", shares)
        part = mutual_information(images, weight)
        used = part.by_image.abs().sum((0, 2, 3)).nonzero().flatten().tolist()
        assert used == places
        assert part.value == pytest.approx(whole.value, abs=0.05)


@pytest.mark.parametrize("squared", [True, False])
@pytest.mark.parametrize("count", [2, 3, 4])
def test_correlation_with_the_others_has_its_exact_derivative(count, squared):
    images, weight = blocks_of(count)
    weight = torch.ones_like(weight)
    forces = to_the_others((1, 1), squared=squared)(images, weight)
    pair = local_correlation((1, 1), squared=squared)

    def value(x):
        means = [(x.sum(0, keepdim=True) - x[k : k + 1]) / (count - 1) for k in range(count)]
        return sum(pair(mean, x[k : k + 1], weight).value for k, mean in enumerate(means)) / count

    assert forces.value == pytest.approx(value(images))
    generator = torch.Generator().manual_seed(3)
    slopes = []
    for _ in range(4):
        step = torch.randn(images.shape, generator=generator, dtype=torch.float64) * 1e-5
        slopes.append(
            (value(images + step) - value(images - step), 2 * float((forces.by_image * step).sum()))
        )
    ratios = [float(real / told) for real, told in slopes]
    assert min(ratios) > 0
    assert max(ratios) / min(ratios) == pytest.approx(1, abs=2e-2)


@pytest.mark.parametrize("name", ["nmi", "mse", "lncc", "lncc-squared"])
def test_exchanged_images_exchange_their_forces(name):
    images, weight = blocks_of(4)
    order = [2, 0, 3, 1]
    first = group_similarity(name, (1, 1))(images, weight)
    second = group_similarity(name, (1, 1))(images[order], weight)
    assert second.value == pytest.approx(first.value, abs=1e-9)
    assert torch.allclose(
        second.by_image, first.by_image[order], atol=1e-9 * float(first.by_image.abs().max())
    )


def test_measures_of_pairs_only_are_refused():
    with pytest.raises(UnknownNameError):
        group_similarity("mind", (1, 1))
    assert similarity_of(Settings()) == "nmi"
    assert similarity_of(Settings(preset="multimodal")) == "nmi"
    assert similarity_of(Settings(preset="abdomen")) == "lncc"
    assert similarity_of(Settings(preset="abdomen", similarity="mse")) == "mse"


def test_levels_are_those_of_pairs_with_the_measure_of_the_group():
    grid = Grid((60, 60, 60), np.diag([1.0, 1, 1, 1]))
    found = group_plans(Settings(effort="fast"), grid)
    assert {plan.similarity for plan in found} == {"nmi"}
    assert [plan.iterations for plan in found] == [30, 30, 12, 6]


# ---------------------------------------------------------------- uncertainty


def test_the_prior_is_as_wide_and_large_as_said_and_self_adjoint():
    grid = Grid((40, 44), np.diag([2.0, 3.0, 1, 1]))
    prior = Prior(grid, 1.7, 8.0, torch.ones(1, 2, 1, 1))
    fields = prior.field(torch.randn(600, 2, *grid.shape, generator=torch.Generator().manual_seed(0)))
    assert float(fields.std(0).mean()) == pytest.approx(1.7, rel=0.03)
    assert float(fields.std(0)[:, 0, 0].mean()) == pytest.approx(1.7, rel=0.08)
    a, b = torch.randn(2, 1, 2, *grid.shape, generator=torch.Generator().manual_seed(1)).double()
    exact = Prior(grid, 1.7, 8.0, torch.ones(1, 2, 1, 1, dtype=torch.float64))
    assert float((exact.field(a) * b).sum()) == pytest.approx(float((exact.adjoint(b) * a).sum()))


def test_size_and_width_of_the_prior_are_read_off_the_velocities():
    grid = Grid((120, 120), np.diag([2.0, 2.0, 1, 1]))
    fields = Prior(grid, 3.0, 9.0, torch.ones(1)).field(
        torch.randn(8, 2, *grid.shape, generator=torch.Generator().manual_seed(2))
    )
    size, width = prior_of(GroupMotion(centred(fields / 2.0, None), grid, None), torch.ones(grid.shape))
    assert size == pytest.approx(3.0, rel=0.15)
    assert width == pytest.approx(9.0, rel=0.15)
    anchored = (fields - fields[:1]) / 2.0
    size, width = prior_of(GroupMotion(anchored, grid, 0), torch.ones(grid.shape))
    assert size == pytest.approx(3.0, rel=0.25)
    assert width == pytest.approx(9.0, rel=0.15)


def test_samples_have_the_covariance_of_the_posterior():
    grid = Grid((7, 6), np.diag([2.0, 2.0, 1, 1]))
    prior = Prior(grid, 1.0, 3.0, torch.ones(1, dtype=torch.float64))
    values = torch.rand((7, 6, 2), generator=torch.Generator().manual_seed(5), dtype=torch.float64) * 4
    angle = torch.tensor(0.7, dtype=torch.float64)
    turn = torch.stack([torch.cos(angle), -torch.sin(angle), torch.sin(angle), torch.cos(angle)]).view(2, 2)
    precision = Precision(turn.expand(7, 6, 2, 2), values)
    units = torch.eye(84, dtype=torch.float64).view(84, 2, 7, 6)
    field = prior.field(units).flatten(1)  # rows: images of the units
    middle = precision.times(prior.field(units)).flatten(1)
    posterior = torch.linalg.inv(torch.eye(84, dtype=torch.float64) + field @ middle.T)
    expected = (field.T @ posterior @ field).diagonal()
    samples = prior.samples(precision, 4000, torch.Generator().manual_seed(6)).flatten(1)
    assert torch.allclose(samples.var(0), expected, rtol=0.15)
    assert float(expected.max()) < 0.9
    assert float(samples.mean(0).abs().max()) < 0.05


def test_the_others_say_what_an_image_is_in_another_contrast():
    smooth = gaussian_smooth(torch.rand(1, 1, 60, 60, generator=torch.Generator().manual_seed(0)), 2.0)[0, 0]
    smooth = (smooth - smooth.min()) / (smooth.max() - smooth.min())
    images = torch.stack([smooth, 1 - smooth**2, smooth.sqrt()])[:, None]
    told, asked = predicted(images, 0, torch.ones(1, 1, 60, 60))
    assert asked == 2
    assert float((told[0, 0] - smooth).abs().mean()) < 0.01
    many = images[:1].expand(20, 1, 60, 60)
    assert predicted(many, 3, torch.ones(1, 1, 60, 60))[1] <= 6


def test_memory_grows_with_the_images():
    grid = Grid((50, 60, 70), np.diag([1.0, 1, 1, 1]))
    few, many = (memory_of_group(Settings(), count, grid)(grid) for count in (3, 30))
    assert few < many < 10 * few
    frame = (many - few) / 27
    assert 16 * grid.voxel_count < frame < 60 * grid.voxel_count
