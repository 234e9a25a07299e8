"""Local correlation as papers on learned registration compute it, and where ours differs from it."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.autograd import gradcheck

from DiffeoRegLib.errors import InputError, SettingsError, ShapeError
from DiffeoRegLib.losses.published import published_lncc
from DiffeoRegLib.losses.similarity import lncc

SHAPES = [(7, 6, 9), (11, 8)]


def pair(shape, seed=0):
    """Two related textures in about [0, 1], float64."""
    generator = torch.Generator().manual_seed(seed)
    fixed = torch.rand(1, 1, *shape, generator=generator, dtype=torch.float64)
    return fixed, 0.7 * fixed + 0.3 * torch.rand(fixed.shape, generator=generator, dtype=torch.float64)


def by_loops(fixed, warped, window):
    """Every window with zeros beyond the border, one after the other."""
    radius, dim = window // 2, fixed.dim() - 2
    padded = [torch.nn.functional.pad(v, [radius] * (2 * dim))[0, 0] for v in (fixed, warped)]
    total, count = 0.0, 0
    for corner in itertools.product(*map(range, fixed.shape[2:])):
        box = tuple(slice(c, c + window) for c in corner)
        f, w = (v[box].flatten() for v in padded)
        f, w = f - f.mean(), w - w.mean()
        total += float((f @ w) ** 2 / ((f @ f) * (w @ w) + 1e-5))
        count += 1
    return -total / count


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("window", [3, 7])
def test_against_loops(shape, window):
    fixed, warped = pair(shape)
    assert float(published_lncc(fixed, warped, window)) == pytest.approx(
        by_loops(fixed, warped, window), abs=1e-12
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("masked", [False, True])
def test_gradient(shape, masked):
    images = [v.requires_grad_() for v in pair(shape)]
    generator = torch.Generator().manual_seed(3)
    mask = (torch.rand(1, 1, *shape, generator=generator) - 0.3).clamp(min=0) if masked else None
    assert gradcheck(lambda f, w: published_lncc(f, w, 3, mask=mask), images, fast_mode=True)


def test_equal_images_are_minus_one_where_they_vary():
    """Half of the image is flat: windows without variance count as unlike there, and not at all in ours."""
    image = pair((16, 16, 16))[0]
    assert float(published_lncc(image, image)) == pytest.approx(-1, abs=1e-4)
    assert float(lncc(image, image, 7)) == pytest.approx(0, abs=1e-4)
    half = image.clone()
    half[:, :, 8:] = 0
    seen = 11 / 16  # windows of 7 that reach into the texture
    assert float(published_lncc(half, half)) == pytest.approx(-seen, abs=1e-4)
    assert float(lncc(half, half, 7)) == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize(("scale", "shift"), [(0.5, 0.3), (1.0, -0.2), (0.8, 0.1)])
def test_linear_changes_show_at_the_border_only_in_the_published_form(scale, shift):
    """Its windows there are filled with zeros, which W -> s W + t does not move; ours end at the border."""
    fixed = pair((16, 16, 16))[0]
    warped = scale * fixed + shift
    interior = -1.0
    value = float(published_lncc(fixed, warped))
    assert interior + 1e-3 < value < -0.9
    assert float(lncc(fixed, warped, 7)) == pytest.approx(0, abs=1e-4)
    assert float(lncc(fixed, warped, 7, squared=True)) == pytest.approx(0, abs=2e-4)
    # The same image far from any border: nothing is left of the difference but the damping.
    wide = [torch.nn.functional.pad(v, [3] * 6, mode="replicate") for v in (fixed, warped)]
    inner = by_inner_windows(*wide)
    assert inner == pytest.approx(interior, abs=1e-4)


def by_inner_windows(fixed, warped):
    """The mean over windows of 7 that lie wholly inside."""
    windows = [
        v[0, 0].unfold(0, 7, 3).unfold(1, 7, 3).unfold(2, 7, 3).reshape(-1, 343) for v in (fixed, warped)
    ]
    f, w = (v - v.mean(1, keepdim=True) for v in windows)
    return -float(((f * w).sum(1) ** 2 / (f.square().sum(1) * w.square().sum(1) + 1e-5)).mean())


def test_a_mask_multiplies_the_images_and_all_voxels_count():
    fixed, warped = pair((9, 8, 10))
    mask = torch.zeros_like(fixed)
    mask[:, :, 2:7, 1:6, 3:9] = 0.5
    mask[:, :, 3:6, 2:5, 4:8] = 1
    expected = by_loops(fixed * mask, warped * mask, 5)
    assert float(published_lncc(fixed, warped, 5, mask=mask)) == pytest.approx(expected, abs=1e-12)
    spoilt = torch.where(mask > 0, warped, float("nan"))
    assert float(published_lncc(fixed, spoilt, 5, mask=mask)) == pytest.approx(expected, abs=1e-12)


def test_constant_images_in_float32_are_unlike_everything_and_pull_nowhere_wild():
    texture = pair((12, 12, 12))[0].float()
    flat = torch.full_like(texture, 0.9).requires_grad_()
    value = published_lncc(texture, flat)
    (gradient,) = torch.autograd.grad(value, flat)
    assert bool(gradient.isfinite().all())
    inner = published_lncc(torch.full((1, 1, 12, 12, 12), 0.9), torch.full((1, 1, 12, 12, 12), 0.4))
    assert -1 <= float(inner) <= 0


def test_what_does_not_fit_is_refused():
    fixed, warped = pair(SHAPES[0])
    with pytest.raises(SettingsError, match="odd"):
        published_lncc(fixed, warped, 4)
    with pytest.raises(ShapeError):
        published_lncc(fixed, warped[..., 1:])
    with pytest.raises(InputError, match="empty"):
        published_lncc(fixed, warped, mask=torch.zeros_like(fixed))
