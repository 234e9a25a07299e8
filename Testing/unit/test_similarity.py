"""Similarity losses against slow, literal computations, and what they promise about masks and intensities."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from DiffeoRegLib.errors import InputError, SettingsError, ShapeError
from DiffeoRegLib.losses import information
from DiffeoRegLib.losses.information import nmi
from DiffeoRegLib.losses.similarity import lncc, lncc_value_and_gradient, mk_lncc, mse, ncc, window_from_mm

SHAPES = [(7, 6, 9), (11, 8)]
LOSSES = {
    "mse": mse,
    "ncc": ncc,
    "lncc": lambda f, w, **k: lncc(f, w, 3, **k),
    "lncc-squared": lambda f, w, **k: lncc(f, w, 3, squared=True, **k),
    "mk-lncc": mk_lncc,
    "mk-lncc-signed": lambda f, w, **k: mk_lncc(f, w, squared=False, **k),
    "nmi": lambda f, w, **k: nmi(f, w, bins=8, fixed_range=(0, 2), warped_range=(0, 2), **k),
    "nmi-gaussian": lambda f, w, **k: nmi(
        f, w, bins=8, kernel="gaussian", fixed_range=(0, 2), warped_range=(0, 2), **k
    ),
}
every_loss = pytest.mark.parametrize("name", LOSSES)
every_shape = pytest.mark.parametrize("shape", SHAPES)


def pair(shape, batch=1, seed=0):
    """Two related textures in about [0, 1.5], float64."""
    generator = torch.Generator().manual_seed(seed)
    fixed = torch.rand(batch, 1, *shape, generator=generator, dtype=torch.float64)
    return fixed, fixed + 0.5 * torch.rand(fixed.shape, generator=generator, dtype=torch.float64)


def soft_mask(shape, seed=3):
    """Weights between 0 and 1, a third of them 0."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(1, 1, *shape, generator=generator, dtype=torch.float64) - 0.33).clamp(min=0)


@every_loss
@every_shape
@pytest.mark.parametrize("masked", [False, True])
def test_gradient(name, shape, masked):
    fixed, warped = pair(shape)
    mask = soft_mask(shape) if masked else None
    images = (fixed.requires_grad_(), warped.requires_grad_())
    assert gradcheck(lambda f, w: LOSSES[name](f, w, mask=mask), images, fast_mode=True)


@every_loss
@every_shape
def test_gradient_is_finite_on_constant_images(name, shape):
    texture = pair(shape)[0].float()
    for fixed, warped in ((texture, torch.full_like(texture, 0.3)), (texture * 0 + 0.7, texture * 0),
                          (texture * 0, texture)):  # fmt: skip
        warped = warped.clone().requires_grad_()
        value = LOSSES[name](fixed, warped)
        (gradient,) = torch.autograd.grad(value, warped)
        assert torch.isfinite(value)
        assert torch.isfinite(gradient).all()


@every_loss
def test_scalar_float32_from_bfloat16_equals_that_of_the_rounded_images(name):
    fixed, warped = (x.bfloat16() for x in pair(SHAPES[0]))
    value = LOSSES[name](fixed, warped)
    assert value.shape == ()
    assert value.dtype == torch.float32
    assert torch.equal(value, LOSSES[name](fixed.float(), warped.float()))


@every_loss
def test_worse_match_costs_more(name):
    fixed, warped = pair((12, 14, 13))
    loss = LOSSES[name]
    assert loss(fixed, fixed) < loss(fixed, warped) < loss(fixed, pair((12, 14, 13), seed=9)[0])


@every_loss
def test_batch_is_the_mean_of_its_samples(name):
    (a, b), (c, d) = pair(SHAPES[0], seed=1), pair(SHAPES[0], seed=2)
    mask = soft_mask(SHAPES[0])
    whole = LOSSES[name](torch.cat([a, c]), torch.cat([b, d]), mask=mask)
    parts = [LOSSES[name](x, y, mask=mask) for x, y in ((a, b), (c, d))]
    torch.testing.assert_close(whole, torch.stack(parts).mean())


@every_loss
def test_bad_masks_and_shapes_are_refused(name):
    fixed, warped = pair(SHAPES[0])
    loss = LOSSES[name]
    with pytest.raises(InputError, match="empty"):
        loss(fixed, warped, mask=torch.zeros_like(fixed))
    with pytest.raises(InputError, match="negative"):
        loss(fixed, warped, mask=fixed - 0.5)
    with pytest.raises(ShapeError):
        loss(fixed, warped, mask=torch.ones(1, 1, 3, 3, 3))
    with pytest.raises(ShapeError):
        loss(fixed, warped[..., 1:])


@every_loss
def test_what_lies_outside_the_mask_is_never_seen(name):
    fixed, warped = pair((9, 8, 10))
    mask = torch.zeros_like(fixed)
    mask[:, :, 1:8, 2:, :9] = 1
    loss = LOSSES[name]
    spoilt = [torch.where(mask > 0, image, 1.9) for image in (fixed, warped)]
    torch.testing.assert_close(loss(*spoilt, mask=mask), loss(fixed, warped, mask=mask))
    assert abs(loss(*spoilt) - loss(fixed, warped)) > 1e-3


@pytest.mark.parametrize("name", ["mse", "ncc", "lncc", "lncc-squared", "nmi"])
@pytest.mark.parametrize("at_border", [False, True])
def test_box_mask_equals_cropped_images(name, at_border):
    """Exact: window sums hold masked voxels only and windows count by the mask at their centre."""
    fixed, warped = pair((11, 10, 12))
    box = (
        slice(None),
        slice(None),
        slice(0 if at_border else 2, 9),
        slice(3, 10 if at_border else 8),
        slice(1, 9),
    )
    mask = torch.zeros_like(fixed)
    mask[box] = 1
    masked = LOSSES[name](fixed, warped, mask=mask)
    torch.testing.assert_close(masked, LOSSES[name](fixed[box], warped[box]), rtol=1e-12, atol=1e-12)


def test_no_difference_is_exactly_zero():
    fixed, warped = pair(SHAPES[0])
    assert mse(fixed, fixed) == 0
    assert mse(fixed, warped) > 0
    assert ncc(fixed, fixed).abs() < 1e-9
    assert lncc(fixed, fixed) < 3e-5


def literal_lncc(fixed, warped, window, weight, squared):
    """The docstring of `lncc`, voxel by voxel in numpy."""
    share = [
        1e-5 * np.average((i - np.average(i, weights=weight)) ** 2, weights=weight) for i in (fixed, warped)
    ]
    total = norm = 0.0
    for center in itertools.product(*map(range, fixed.shape)):
        box = tuple(slice(max(c - w // 2, 0), c + w // 2 + 1) for c, w in zip(center, window, strict=True))
        w, f, g = weight[box], fixed[box], warped[box]
        if weight[center] == 0:
            continue
        f, g = f - np.average(f, weights=w), g - np.average(g, weights=w)
        a, b, c = (np.average(x * y, weights=w) for x, y in ((f, f), (g, g), (f, g)))
        if a <= share[0] and b <= share[1]:
            continue
        correlation = c / np.sqrt((a + share[0]) * (b + share[1]))
        total += weight[center] * (1 - (correlation**2 if squared else correlation))
        norm += weight[center]
    return total / norm


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("shape", "window"), [((6, 7, 5), (3, 5, 1)), ((9, 8), (5, 3))])
def test_lncc_against_loops(shape, window, masked, squared):
    fixed, warped = pair(shape)
    fixed[..., :3], warped[..., :2] = 0.25, 0.75  # windows flat in one image, and in both
    mask = soft_mask(shape) if masked else torch.ones(1, 1, *shape, dtype=torch.float64)
    arrays = [t[0, 0].tolist() for t in (fixed, warped, mask)]
    expected = literal_lncc(*map(np.array, arrays[:2]), window, np.array(arrays[2]), squared)
    value = lncc(fixed, warped, window, mask=mask if masked else None, squared=squared)
    assert float(value) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("shape", "window"), [((9, 8, 7), 5), ((8, 9, 10), (3, 5, 7)), ((13, 9), 3)])
def test_closed_form_gradient_is_that_of_autograd(shape, window, masked, squared):
    fixed, warped = pair(shape, batch=2)
    fixed[..., 3:], warped[..., 3:] = fixed[..., 3:].round(), warped[..., 3:] + 100
    warped[:, :, :5] = 100.5  # flat in one image
    mask = soft_mask(shape) if masked else None
    value = lncc(fixed, warped.requires_grad_(), window, mask=mask, squared=squared)
    (expected,) = torch.autograd.grad(value, warped)
    closed_value, gradient = lncc_value_and_gradient(fixed, warped, window, mask, squared=squared)
    assert not gradient.requires_grad
    torch.testing.assert_close(closed_value, value.detach())
    assert (gradient - expected).abs().max() < 1e-9 * expected.abs().max()


@pytest.mark.parametrize(("scale", "shift"), [(3.7, 0.0), (0.02, 5.0), (1000.0, -1024.0)])
def test_correlations_ignore_scale_and_shift(scale, shift):
    fixed, warped = pair(SHAPES[0])
    for loss in (LOSSES["ncc"], LOSSES["lncc"], LOSSES["lncc-squared"]):
        torch.testing.assert_close(
            loss(fixed, scale * warped + shift), loss(fixed, warped), rtol=1e-9, atol=1e-12
        )
    assert mse(fixed, scale * warped + shift) != mse(fixed, warped)


def test_sign_tells_signed_from_squared():
    fixed, warped = pair(SHAPES[0])
    torch.testing.assert_close(lncc(fixed, -warped) - 1, 1 - lncc(fixed, warped))
    torch.testing.assert_close(lncc(fixed, -warped, squared=True), lncc(fixed, warped, squared=True))
    torch.testing.assert_close(ncc(fixed, -warped) - 1, 1 - ncc(fixed, warped))


def test_a_large_offset_does_not_cancel_in_float32():
    fixed, warped = pair((12, 11, 10))
    exact = lncc(fixed, warped, 7)
    shifted = lncc((fixed + 200).float(), (warped + 200).float(), 7)
    assert abs(shifted - exact) < 2e-4
    half = torch.zeros_like(fixed)
    half[:, :, :6] = 1
    image = (fixed * half).float()
    assert lncc(image, image, 5) < 1e-3  # the empty half says nothing


def test_windows_flat_in_both_images_do_not_count():
    fixed, warped = pair((16, 10, 9))
    padded = [torch.nn.functional.pad(i, (0, 0, 0, 0, 20, 0), value=0.5) for i in (fixed, warped)]
    assert lncc(*padded, 3) < 1.2 * lncc(fixed, warped, 3)
    assert lncc(torch.zeros(1, 1, 9, 9), torch.ones(1, 1, 9, 9)) == 0


@pytest.mark.parametrize("window", [4, 0, 1, (3, 3), -3])
def test_bad_windows_are_refused(window):
    with pytest.raises((SettingsError, ShapeError)):
        lncc(*pair(SHAPES[0]), window)


def test_window_from_mm():
    assert window_from_mm(5.0, (1.0, 1.0, 1.0)) == (5, 5, 5)
    assert window_from_mm(9.0, (5.0, 1.0, 0.7)) == (3, 9, 13)
    assert all(w % 2 for w in window_from_mm(7.3, (0.31, 0.83)))
    with pytest.raises(SettingsError):
        window_from_mm(0, (1.0, 1.0))


def literal_mk_lncc(fixed, warped, settings, faithful, squared):
    """Section 1.5 of the specification, window by window."""
    total = 0.0
    for size, share, dilation in settings:
        reach, terms = (size - 1) * dilation + 1, []
        starts = [range(0, n - reach + 1, max((size + 1) // 4, 1)) for n in fixed.shape]
        for start in itertools.product(*starts):
            box = tuple(slice(s, s + reach, dilation) for s in start)
            f, g = fixed[box] - fixed[box].mean(), warped[box] - warped[box].mean()
            a, b, c = (f * f).sum(), (g * g).sum(), (f * g).sum()
            if faithful or max(a, b) / f.size > 1e-6:
                terms.append(1 - (c * c / (a * b + 1e-5) if squared else c / np.sqrt(a * b + 1e-5)))
        total += share * np.mean(terms)
    return total


@pytest.mark.parametrize("faithful", [False, True])
@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize(
    ("shape", "settings"),
    [
        ((14, 16, 15), [(7, 1.0, 1)]),
        ((70, 66), [(16, 0.3, 2), (33, 0.7, 2)]),
        ((131, 150), [(8, 0.1, 2), (16, 0.3, 2), (32, 0.6, 2)]),
    ],
)
def test_mk_lncc_against_loops(shape, settings, squared, faithful):
    fixed, warped = pair(shape)
    fixed[:, :, : shape[0] // 2], warped[:, :, : shape[0] // 2] = 0, 0
    expected = literal_mk_lncc(
        *(np.array(t[0, 0].tolist()) for t in (fixed, warped)), settings, faithful, squared
    )
    assert float(mk_lncc(fixed, warped, squared=squared, faithful=faithful)) == pytest.approx(
        expected, rel=1e-9
    )


def test_mk_lncc_of_a_half_empty_image_with_itself():
    image = pair((24, 24, 24))[0]
    image[:, :, 12:] = 0
    assert mk_lncc(image, image) < 1e-4
    assert mk_lncc(image, image, faithful=True) > 0.05


def test_mk_lncc_needs_room():
    with pytest.raises(ShapeError, match="4 voxels"):
        mk_lncc(*pair((3, 20)))


def literal_nmi(fixed, warped, bins, weight):
    """Hard histogram of intensities in [0, 1] spread by the cubic B-spline from scipy, then entropies."""
    from scipy.interpolate import BSpline

    spline = BSpline.basis_element([-2, -1, 0, 1, 2], extrapolate=False)
    joint = np.zeros((bins, bins))
    for f, g, w in zip(fixed.ravel(), warped.ravel(), weight.ravel(), strict=True):
        parts = [np.nan_to_num(spline(1 + v * (bins - 3) - np.arange(bins))) for v in (f, g)]
        joint += w * np.outer(*parts)
    joint /= joint.sum()

    def entropy(p):
        return -sum(v * np.log(v) for v in p.ravel() if v > 0)

    single = entropy(joint.sum(0)) + entropy(joint.sum(1))
    return 2 * (single - entropy(joint)) / single


@pytest.mark.parametrize("masked", [False, True])
def test_nmi_against_a_literal_histogram(masked):
    fixed, warped = (x / x.max() for x in pair((8, 7, 5)))
    mask = soft_mask((8, 7, 5)) if masked else torch.ones_like(fixed)
    expected = literal_nmi(
        *(np.array(t[0, 0].tolist()) for t in (fixed, warped)), 12, np.array(mask.tolist())
    )
    value = nmi(
        fixed, warped, bins=12, fixed_range=(0, 1), warped_range=(0, 1), mask=mask if masked else None
    )
    assert 1 - float(value) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("kernel", ["bspline", "gaussian"])
def test_nmi_in_chunks_and_with_gradient_is_the_same(kernel, monkeypatch):
    fixed, warped = pair((9, 8, 7))
    whole = nmi(fixed, warped, kernel=kernel)
    gradients = []
    for chunk in (1 << 18, 100):
        monkeypatch.setattr(information, "VOXELS_PER_CHUNK", chunk)
        value = nmi(fixed, warped.requires_grad_(), kernel=kernel)
        torch.testing.assert_close(value.detach(), whole)
        gradients.append(torch.autograd.grad(value, warped)[0])
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("width", [0.5, 1.0])
def test_gaussian_nmi_of_smooth_image_with_itself_is_blurred_as_documented(width):
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 1, 40, 40, 40, generator=generator)
    value = 1 - nmi(image, image, kernel="gaussian", sigma_bins=width)
    assert {0.5: 0.5, 1.0: 0.3}[width] < value < {0.5: 0.7, 1.0: 0.5}[width]


def test_nmi_hardly_changes_under_monotone_maps_and_not_at_all_under_linear_ones():
    fixed, warped = pair((20, 18, 16))
    reference = nmi(fixed, warped)
    torch.testing.assert_close(nmi(fixed, 7 - 3 * warped), reference, rtol=1e-9, atol=0)
    independent = nmi(fixed, pair((20, 18, 16), seed=5)[0])
    for bent in (warped**2, warped.sqrt(), torch.exp(-warped)):
        assert abs(nmi(fixed, bent) - reference) < 0.2 * (independent - reference)
    folded = (warped - warped.mean()).abs()
    assert abs(nmi(fixed, folded) - reference) > 0.2 * (independent - reference)


def test_nmi_settings():
    fixed, warped = pair(SHAPES[0])
    with pytest.raises(SettingsError):
        nmi(fixed, warped, bins=4)
    with pytest.raises(SettingsError):
        nmi(fixed, warped, kernel="box")  # type: ignore[arg-type]
    with pytest.raises(InputError):
        nmi(fixed.repeat(1, 2, 1, 1, 1), warped.repeat(1, 2, 1, 1, 1))
