"""The closed-form derivatives of every similarity, against autograd of a literal computation."""

from __future__ import annotations

import itertools

import pytest
import torch

from DiffeoRegLib.errors import UnknownNameError
from DiffeoRegLib.losses.forces import (
    FLAT_VARIANCE,
    local_correlation,
    multi_kernel_correlation,
    mutual_information,
    similarity_forces,
    squared_difference,
)
from DiffeoRegLib.losses.information import nmi
from DiffeoRegLib.losses.similarity import lncc, mse
from DiffeoRegLib.settings import SIMILARITIES
from DiffeoRegLib.space.blocks import Blocks
from DiffeoRegLib.space.filters import gaussian_smooth

F64 = torch.float64
CASES = [((12, 8, 10), (2, 2, 2), (2, 1, 1)), ((6, 5, 8), (2, 1, 2), (1, 1, 0)), ((14, 12), (2, 2), (2, 1))]


def images(blocks, channels=1, flat=False):
    """Two unlike textures in [0, 1], block-wise; `flat`: each is constant in a corner of its own."""
    pair = torch.rand(2 * channels, *blocks.shape, dtype=F64)
    first, second = pair[:channels], 0.6 * pair[:channels] + 0.4 * pair[channels:]
    if flat:
        half = tuple(slice(0, n // 2 + 2) for n in blocks.shape)
        first[(slice(None), *half)] = 0.5
        second[(slice(None), *[slice(n // 2, None) for n in blocks.shape])] = 0.25
    return blocks.split(first), blocks.split(second)


def weights(blocks, kind):
    """1 everywhere, or a smooth weight with a hole where nothing counts."""
    if kind == "everywhere":
        return torch.ones(blocks.coarse_shape, dtype=F64)
    weight = torch.rand(blocks.coarse_shape, dtype=F64)
    weight[tuple(slice(0, max(1, n // 2)) for n in blocks.coarse_shape)] = 0.0
    return weight


def on_fine(blocks, weight):
    """A coarse weight on the fine grid, (1, 1, *shape)."""
    return blocks.join(weight.expand(1, blocks.per_block, *blocks.coarse_shape))[None]


def correlation_by_hand(fixed, moving, weight, radii, squared):
    """One minus the mean (squared) correlation, window by window."""
    terms = []
    for centre in itertools.product(*[range(n) for n in weight.shape]):
        box = tuple(slice(max(0, c - r), c + r + 1) for c, r in zip(centre, radii, strict=True))
        inside = (slice(None), slice(None), *box)
        f, m = fixed[inside], moving[inside]
        w = weight[box].expand(f.shape)
        count = w.sum()
        if weight[centre] == 0:
            continue
        f, m = f - (w * f).sum() / count, m - (w * m).sum() / count
        energies = (w * f * f).sum() / count, (w * m * m).sum() / count
        if min(energies) > FLAT_VARIANCE:
            c = (
                (w * f * m).sum()
                / count
                / torch.sqrt((energies[0] + FLAT_VARIANCE) * (energies[1] + FLAT_VARIANCE))
            )
            terms.append(c * c if squared else c)
    return 1 - torch.stack(terms).mean(), len(terms)


def agrees(forces, fixed, moving, weight, value_of):
    """Value and both derivatives (times the stated factor) are those of `value_of` by autograd."""
    result = forces(fixed, moving, weight)
    first, second = fixed.clone().requires_grad_(), moving.clone().requires_grad_()
    value = value_of(first, second)
    by_first, by_second = torch.autograd.grad(value, (first, second))
    assert result.value == pytest.approx(float(value.detach()), abs=1e-9)
    torch.testing.assert_close(result.by_fixed / result.factor, by_first, rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(result.by_moving / result.factor, by_second, rtol=1e-6, atol=1e-12)
    assert by_first.abs().max() > 1e-5
    assert by_second.abs().max() > 1e-5
    return result


@pytest.mark.parametrize("squared", [True, False])
@pytest.mark.parametrize("kind", ["everywhere", "mask"])
@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize(("shape", "sides", "radii"), CASES)
def test_local_correlation(shape, sides, radii, flat, kind, squared):
    blocks = Blocks(shape, sides)
    fixed, moving = images(blocks, flat=flat)
    weight = weights(blocks, kind)
    number = correlation_by_hand(fixed, moving, weight, radii, squared)[1]
    result = agrees(
        local_correlation(radii, squared=squared),
        fixed,
        moving,
        weight,
        lambda f, m: correlation_by_hand(f, m, weight, radii, squared)[0],
    )
    assert result.factor == number
    assert (number < int((weight > 0).sum())) == flat


@pytest.mark.parametrize("squared", [True, False])
@pytest.mark.parametrize("shape", [(9, 8, 10), (20, 16)])
def test_local_correlation_of_single_voxels_is_that_of_the_losses(shape, squared):
    """Blocks of one voxel: the windows are those of `lncc`, whose damping differs in the fifth digit."""
    blocks = Blocks(shape, (1,) * len(shape))
    fixed, moving = images(blocks)
    joined = [blocks.join(v)[None].requires_grad_() for v in (fixed, moving)]
    value = lncc(*joined, 5, squared=squared)
    expected = torch.autograd.grad(value, joined)
    result = local_correlation((2,) * len(shape), squared=squared)(
        fixed, moving, weights(blocks, "everywhere")
    )
    assert result.value == pytest.approx(float(value.detach()), abs=5e-4)
    for got, want in zip((result.by_fixed, result.by_moving), expected, strict=True):
        error = (blocks.join(got / result.factor) - want[0]).abs().max()
        assert error < 2e-3 * want.abs().max()


@pytest.mark.parametrize("flat", [False, True])
def test_several_windows_count_by_their_shares(flat):
    """Larger windows are flat less often, yet every size counts by its share of the value."""
    blocks = Blocks((12, 10, 8), (2, 2, 2))
    fixed, moving = images(blocks, flat=flat)
    weight = weights(blocks, "mask")
    kernels = [((0, 0, 0), 0.1), ((1, 1, 1), 0.3), ((2, 2, 2), 0.6)]

    def by_hand(f, m):
        return sum(share * correlation_by_hand(f, m, weight, radii, True)[0] for radii, share in kernels)

    numbers = [correlation_by_hand(fixed, moving, weight, radii, True)[1] for radii, _ in kernels]
    assert (len(set(numbers)) > 1) == flat
    forces = multi_kernel_correlation(*zip(*kernels, strict=True))
    assert agrees(forces, fixed, moving, weight, by_hand).factor == max(numbers)


def test_multi_kernel_by_name_doubles_the_windows():
    blocks = Blocks((8, 12, 10), (2, 2, 2))
    fixed, moving = images(blocks)
    weight = weights(blocks, "everywhere")
    named = similarity_forces("mk-lncc", (0, 1, 1))(fixed, moving, weight)
    parts = [local_correlation((0, k, k), squared=True)(fixed, moving, weight).value for k in (1, 2, 4)]
    assert named.value == pytest.approx(0.1 * parts[0] + 0.3 * parts[1] + 0.6 * parts[2])
    assert len({round(p, 6) for p in parts}) == 3


@pytest.mark.parametrize("kind", ["everywhere", "mask"])
@pytest.mark.parametrize("channels", [1, 12])
@pytest.mark.parametrize(("shape", "sides"), [case[:2] for case in CASES])
def test_squared_difference(shape, sides, channels, kind):
    blocks = Blocks(shape, sides)
    fixed, moving = images(blocks, channels)
    weight = weights(blocks, kind)
    mask = on_fine(blocks, weight)
    result = agrees(
        squared_difference,
        fixed,
        moving,
        weight,
        lambda f, m: mse(blocks.join(f)[None], blocks.join(m)[None], mask=mask),
    )
    assert result.factor == pytest.approx(float(weight.sum()) * blocks.per_block * channels / 2)


@pytest.mark.parametrize("kind", ["everywhere", "mask"])
@pytest.mark.parametrize(("shape", "sides"), [case[:2] for case in CASES])
def test_mutual_information(shape, sides, kind):
    blocks = Blocks(shape, sides)
    fixed, moving = images(blocks)
    weight = weights(blocks, kind)
    mask = on_fine(blocks, weight)
    whole = {"fixed_range": (0.0, 1.0), "warped_range": (0.0, 1.0)}
    result = agrees(
        mutual_information,
        fixed,
        moving,
        weight,
        lambda f, m: nmi(blocks.join(f)[None], blocks.join(m)[None], mask=mask, **whole),
    )
    assert result.factor == 1.0
    assert result.by_fixed.grad_fn is None


NAMED = [(name, similarity_forces(name, (1, 1, 1))) for name in SIMILARITIES]


@pytest.mark.parametrize(("name", "forces"), NAMED)
def test_no_force_where_nothing_counts_and_inputs_are_kept(name, forces):
    blocks = Blocks((8, 8, 8), (2, 2, 2))
    fixed, moving = images(blocks)
    weight = weights(blocks, "mask")
    kept = fixed.clone(), moving.clone(), weight.clone()
    with torch.no_grad():  # as in the optimisation
        result = forces(fixed, moving, weight)
    assert all(torch.equal(a, b) for a, b in zip((fixed, moving, weight), kept, strict=True))
    for force in (result.by_fixed, result.by_moving):
        assert force.shape == fixed.shape
        assert float(force[:, :, weight == 0].abs().max()) == 0
        assert float(force[:, :, weight > 0].abs().min()) > 0


@pytest.mark.parametrize(("name", "forces"), NAMED)
def test_swapping_the_images_swaps_the_forces(name, forces):
    blocks = Blocks((8, 8, 8), (2, 2, 2))
    fixed, moving = images(blocks)
    weight = weights(blocks, "mask")
    there, back = forces(fixed, moving, weight), forces(moving, fixed, weight)
    assert there.value == pytest.approx(back.value, rel=1e-12)
    torch.testing.assert_close(there.by_fixed, back.by_moving, rtol=1e-9, atol=1e-15)
    torch.testing.assert_close(there.by_moving, back.by_fixed, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("squared", [True, False])
@pytest.mark.parametrize("level", [0.0, 0.7, 1.0])
def test_windows_without_contrast_say_nothing(squared, level):
    blocks = Blocks((8, 8, 8), (2, 2, 2))
    textured = images(blocks)[0].float()
    flat = torch.full_like(textured, level)
    everywhere = torch.ones(blocks.coarse_shape)
    for pair in ((flat, textured), (textured, flat), (flat, flat)):
        result = local_correlation((1, 1, 1), squared=squared)(*pair, everywhere)
        assert result.value == 1
        assert not result.by_fixed.any()
        assert not result.by_moving.any()


def test_an_empty_weight_gives_no_force():
    blocks = Blocks((8, 8, 8), (2, 2, 2))
    fixed, moving = images(blocks)
    nowhere = torch.zeros(blocks.coarse_shape, dtype=F64)
    for forces in (squared_difference, local_correlation((1, 1, 1), squared=True)):
        result = forces(fixed, moving, nowhere)
        assert not result.by_fixed.any()
        assert not result.by_moving.any()


def test_values_tell_equal_from_unlike_images():
    """1 minus the correlation: 0 for equal images; the squared one takes inverted contrast for equal too."""
    blocks = Blocks((16, 16, 16), (2, 2, 2))
    image = blocks.split(gaussian_smooth(torch.rand(1, 1, 16, 16, 16), 1.0)[0] * 3 - 1)
    everywhere = torch.ones(blocks.coarse_shape)
    values = {
        name: [forces(image, other, everywhere).value for other in (image, 1 - image)]
        for name, forces in NAMED
    }
    for name in ("lncc", "lncc-squared", "mk-lncc", "mse"):
        assert values[name][0] == pytest.approx(0, abs=2e-3)
    assert values["lncc"][1] == pytest.approx(2, abs=2e-3)
    assert values["lncc-squared"][1] == pytest.approx(0, abs=2e-3)
    assert values["mse"][1] > 0.01
    assert values["nmi"][1] == pytest.approx(values["nmi"][0], abs=1e-3)


def test_single_precision_is_precise_enough():
    """Window sums of raw squares cancel; with intensities in [0, 1] the forces keep three digits."""
    blocks = Blocks((16, 16, 16), (2, 2, 2))
    fixed, moving = (0.8 + 0.05 * v for v in images(blocks))
    weight = weights(blocks, "everywhere")
    exact = local_correlation((2, 2, 2), squared=True)(fixed, moving, weight)
    rough = local_correlation((2, 2, 2), squared=True)(fixed.float(), moving.float(), weight.float())
    error = (rough.by_moving - exact.by_moving).abs().max()
    assert error < 1e-2 * exact.by_moving.abs().max()


def test_unknown_names():
    with pytest.raises(UnknownNameError, match="lncc"):
        similarity_forces("lnccc", (1, 1, 1))
