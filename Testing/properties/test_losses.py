"""Laws of the losses that hold for any image, field and mask."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from DiffeoRegLib.losses.information import nmi
from DiffeoRegLib.losses.mind import mind_loss
from DiffeoRegLib.losses.overlap import one_hot, soft_dice
from DiffeoRegLib.losses.regularity import bending, diffusion, fold_penalty, kinetic_energy
from DiffeoRegLib.losses.similarity import lncc, lncc_value_and_gradient, mk_lncc, mse, ncc
from DiffeoRegLib.metrics import dice_per_label, hd95_mm

SIMILARITIES = {
    "mse": mse,
    "ncc": ncc,
    "lncc": lambda f, w, **k: lncc(f, w, 3, **k),
    "lncc-squared": lambda f, w, **k: lncc(f, w, 5, squared=True, **k),
    "mk-lncc": mk_lncc,
    "nmi": nmi,
    "mind": lambda f, w, **k: mind_loss(f, w, 1, 1, **k),
}
PENALTIES = {"diffusion": diffusion, "bending": bending, "kinetic": kinetic_energy, "fold": fold_penalty}

shapes = st.one_of(st.tuples(*[st.integers(5, 9)] * 3), st.tuples(*[st.integers(5, 12)] * 2))
seeds = st.integers(0, 2**31 - 1)


def draw(seed, *shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pair(seed, shape):
    images = draw(seed, 2, 1, 1, *shape)
    return images[0], 0.5 * images[0] + images[1]


def mask_of(seed, shape):
    mask = (draw(seed + 1, 1, 1, *shape) - 0.4).clamp(min=0)
    mask[(0, 0, *[n // 2 for n in shape])] = 1
    return mask


@pytest.mark.parametrize("name", SIMILARITIES)
@given(shape=shapes, seed=seeds)
def test_similarities_do_not_care_who_is_fixed(name, shape, seed):
    fixed, warped = pair(seed, shape)
    mask = mask_of(seed, shape)
    for kwargs in ({}, {"mask": mask}):
        there, back = SIMILARITIES[name](fixed, warped, **kwargs), SIMILARITIES[name](warped, fixed, **kwargs)
        torch.testing.assert_close(there, back, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", SIMILARITIES)
@given(shape=shapes, seed=seeds, axis=st.integers(0, 1))
def test_similarities_do_not_care_about_mirrors_and_axis_order(name, shape, seed, axis):
    fixed, warped = pair(seed, shape)
    mask = mask_of(seed, shape)
    if name == "mk-lncc":  # strided windows may leave a margin on one side: mirrors see other windows
        moved = [x.transpose(2, 3) for x in (fixed, warped, mask)]
    else:
        moved = [x.flip(2 + axis).transpose(2, 3) for x in (fixed, warped, mask)]
    value = SIMILARITIES[name](fixed, warped, mask=mask)
    torch.testing.assert_close(
        SIMILARITIES[name](moved[0], moved[1], mask=moved[2]), value, rtol=1e-8, atol=1e-10
    )


@pytest.mark.parametrize("name", SIMILARITIES)
@given(shape=shapes, seed=seeds, factor=st.floats(0.1, 50))
def test_only_the_proportions_of_a_mask_matter(name, shape, seed, factor):
    fixed, warped = pair(seed, shape)
    mask = mask_of(seed, shape)
    value = SIMILARITIES[name](fixed, warped, mask=mask)
    torch.testing.assert_close(
        SIMILARITIES[name](fixed, warped, mask=factor * mask), value, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("name", PENALTIES)
@given(shape=shapes, seed=seeds, factor=st.floats(0.1, 50))
def test_only_the_proportions_of_a_mask_matter_to_penalties(name, shape, seed, factor):
    u_vox, mask = draw(seed, 1, len(shape), *shape) - 0.5, mask_of(seed, shape)
    spacing = [2.0, 0.7, 1.3][: len(shape)]
    value = PENALTIES[name](u_vox, spacing, mask=mask)
    torch.testing.assert_close(PENALTIES[name](u_vox, spacing, mask=factor * mask), value, rtol=1e-9, atol=0)


@given(shape=shapes, seed=seeds, squared=st.booleans())
def test_closed_form_lncc_gradient(shape, seed, squared):
    fixed, warped = pair(seed, shape)
    mask = mask_of(seed, shape)
    value = lncc(fixed, warped.requires_grad_(), 3, mask=mask, squared=squared)
    (expected,) = torch.autograd.grad(value, warped)
    closed, gradient = lncc_value_and_gradient(fixed, warped, 3, mask, squared=squared)
    torch.testing.assert_close(closed, value.detach())
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max()) + 1e-30)


@pytest.mark.parametrize("name", PENALTIES)
@given(shape=shapes, seed=seeds, axis=st.integers(0, 1))
def test_penalties_do_not_care_about_mirrors_and_axis_order(name, shape, seed, axis):
    u_vox, mask = draw(seed, 1, len(shape), *shape) - 0.5, mask_of(seed, shape)
    spacing = [2.0, 0.7, 1.3][: len(shape)]
    value = PENALTIES[name](u_vox, spacing, mask=mask)
    mirrored = u_vox.flip(2 + axis)
    mirrored[:, axis] *= -1
    order = [1, 0, 2][: len(shape)]
    swapped = mirrored[:, order].transpose(2, 3)
    spaced = [spacing[a] for a in order]
    again = PENALTIES[name](swapped, spaced, mask=mask.flip(2 + axis).transpose(2, 3))
    torch.testing.assert_close(again, value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["diffusion", "bending", "kinetic"])
@given(shape=shapes, seed=seeds, factor=st.floats(0.1, 10))
def test_penalties_are_quadratic_and_never_negative(name, shape, seed, factor):
    u_vox = draw(seed, 1, len(shape), *shape) - 0.5
    spacing = [2.0, 0.7, 1.3][: len(shape)]
    value = PENALTIES[name](u_vox, spacing)
    assert value > 0
    torch.testing.assert_close(PENALTIES[name](factor * u_vox, spacing), factor**2 * value, rtol=1e-9, atol=0)


@given(shape=shapes, seed=seeds, factor=st.floats(0.2, 5))
def test_units_of_the_penalties(shape, seed, factor):
    """One voxel field on a grid `factor` times larger: diffusion has no unit, bending 1/mm^2, energy mm^2."""
    u_vox = draw(seed, 1, len(shape), *shape) - 0.5
    spacing = [2.0, 0.7, 1.3][: len(shape)]
    larger = [factor * s for s in spacing]
    for penalty, power in ((diffusion, 0), (bending, -2), (kinetic_energy, 2), (fold_penalty, 0)):
        expected = factor**power * penalty(u_vox, spacing)
        torch.testing.assert_close(penalty(u_vox, larger), expected, rtol=1e-9, atol=0)


@given(shape=shapes, seed=seeds)
def test_overlap_is_symmetric_and_agrees_with_dice(shape, seed):
    rng = np.random.default_rng(seed)
    first, second = (rng.integers(0, 4, shape) for _ in range(2))
    dice = dice_per_label(first, second)
    assert dice == dice_per_label(second, first)
    channels = [one_hot(torch.tensor(a)[None, None], sorted(dice), torch.float64) for a in (first, second)]
    assert float(soft_dice(*channels)) == pytest.approx(1 - np.mean(list(dice.values())), abs=1e-12)
    spacing = [2.0, 0.7, 1.3][: len(shape)]
    distance = hd95_mm(first, second, spacing)
    assert distance == hd95_mm(second, first, spacing)
    assert all(v == 0 for v in hd95_mm(first, first, spacing).values())
