"""How unlike two images are, by intensity: squared difference and (local) correlation. Lower is better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from DiffeoRegLib.errors import InputError, SettingsError, ShapeError
from DiffeoRegLib.losses.weighting import checked_pair, mask_like, per_axis, weighted_mean
from DiffeoRegLib.space.filters import Banded, apply_axes, box_sum

# A window is flat when its variance is below this share of the image's; the same share damps the correlation.
FLAT = 1e-5


def mse(fixed: Tensor, warped: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Mean squared difference, sum w (F - W)^2 / sum w; a scalar in squared intensity units, 0 if equal.

    fixed, warped: (N, C, *spatial).  mask: (N or 1, 1, *spatial) weights >= 0.
    Raises ShapeError for different shapes, InputError for an empty mask.
    """
    fixed, warped = checked_pair(fixed, warped)
    return weighted_mean((fixed - warped).square(), None if mask is None else mask_like(mask, fixed))


def l1(fixed: Tensor, warped: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Mean absolute difference, sum w |F - W| / sum w; a scalar in intensity units, 0 if equal.

    fixed, warped: (N, C, *spatial).  mask: (N or 1, 1, *spatial) weights >= 0.
    Raises ShapeError for different shapes, InputError for an empty mask.
    """
    fixed, warped = checked_pair(fixed, warped)
    return weighted_mean((fixed - warped).abs(), None if mask is None else mask_like(mask, fixed))


def ncc(fixed: Tensor, warped: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """One minus the correlation coefficient of the two images, in [0, 2]; a scalar, 1 if one is constant.

    fixed, warped: (N, C, *spatial), each channel of each sample correlated on its own, then averaged.
    mask: (N or 1, 1, *spatial) weights >= 0.
    Raises ShapeError for different shapes, InputError for an empty mask.
    """
    fixed, warped = checked_pair(fixed, warped)
    weight = torch.ones_like(fixed[:1, :1]) if mask is None else mask_like(mask, fixed)
    first, second = _centred(fixed, weight), _centred(warped, weight)
    axes = tuple(range(2, fixed.dim()))
    covariance = (weight * first * second).sum(axes)
    energies = []
    for image, centred in ((fixed, first), (warped, second)):
        damping = FLAT**2 * _contrast(image, centred, weight).sum(axes)
        energies.append((weight * centred.square()).sum(axes) + damping)
    return (1 - covariance / (energies[0] * energies[1]).sqrt()).mean()


def window_from_mm(window_mm: float, spacing: Sequence[float]) -> tuple[int, ...]:
    """Odd number of voxels per axis nearest to a length in mm, at least 3.

    spacing: mm per tensor axis.  Raises SettingsError for a length that is not positive.
    """
    if not window_mm > 0:
        raise SettingsError(f"The window must be longer than 0 mm, not {window_mm}.")
    return tuple(max(3, 2 * round((window_mm / s - 1) / 2) + 1) for s in spacing)


def lncc(
    fixed: Tensor,
    warped: Tensor,
    window: int | Sequence[int] = 5,
    *,
    mask: Tensor | None = None,
    squared: bool = False,
) -> Tensor:
    """One minus the mean local correlation coefficient, signed (in [0, 2]) or squared (in [0, 1]).

    At every voxel p, over the window centred there and cut at the image border, weights w:
        n = sum w,  c = cov(F, W),  a = var(F),  b = var(W)       (divided by n)
        cc = c / sqrt((a + f_F) (b + f_W)),   loss = 1 - mean_p cc   or   1 - mean_p cc^2
    f is 1e-5 of the image's own variance within the mask (held constant in the derivative), so that the value
    does not change under W -> s W + t, s > 0. Windows flat in both images (variance below f) do not count;
    where all are flat the loss is 0.
    fixed, warped: (N, C, *spatial).
    window: odd number of voxels, one or one per axis (see `window_from_mm`).
    mask: (N or 1, 1, *spatial) weights >= 0: windows hold masked voxels only, and p counts by mask(p).
    Hence a box-shaped 0/1 mask gives exactly the value of the two images cropped to that box.
    Raises ShapeError for different shapes, SettingsError for a window that is not odd, InputError for an
    empty mask.
    Source: Cachier and Pennec, MMBIA 2000; Avants et al., Medical Image Analysis 2008 (cross correlation).
    """
    local = _local_statistics(fixed, warped, window, mask)
    cc = local.correlation
    return (local.weight * (1 - (cc.square() if squared else cc))).sum()


def lncc_value_and_gradient(
    fixed: Tensor,
    warped: Tensor,
    window: int | Sequence[int] = 5,
    mask: Tensor | None = None,
    *,
    squared: bool = False,
) -> tuple[Tensor, Tensor]:
    """`lncc` and its derivative by the warped image, in closed form: eight box sums, no autograd graph.

    With the notation of `lncc`, q_p = (weight of p in the mean) / n_p (times 2 cc if squared),
    A = q / sqrt((a + f_F)(b + f_W)), B = q cc / (b + f_W), and box() the window sum:
        dL/dW = -w [ F box(A) - W box(B) - box(A mean(F) - B mean(W)) ]
    fixed, warped, window, mask, squared: see `lncc`.  Returns (scalar, (N, C, *spatial)), detached.
    Raises as `lncc`.
    """
    with torch.no_grad():
        local = _local_statistics(fixed, warped, window, mask)
        cc = local.correlation
        value = (local.weight * (1 - (cc.square() if squared else cc))).sum()
        scale = local.weight / local.count
        if squared:
            scale = 2 * scale * cc
        by_fixed = scale * (local.fixed_energy * local.warped_energy).rsqrt()
        by_warped = torch.where(local.warped_varies, scale * cc / local.warped_energy, 0.0)
        constant = by_fixed * local.fixed_mean - by_warped * local.warped_mean
        sums = box_sum(torch.cat((by_fixed, by_warped, constant), 1), local.radii)
        summed_fixed, summed_warped, summed_constant = sums.chunk(3, 1)
        gradient = local.fixed * summed_fixed - local.warped * summed_warped - summed_constant
        return value, -local.voxel_weight * gradient


def mk_lncc(
    fixed: Tensor, warped: Tensor, *, mask: Tensor | None = None, squared: bool = True, faithful: bool = False
) -> Tensor:
    """Multi-kernel LNCC: one minus squared local correlation over windows that follow the image size.

    With S the shortest axis: S >= 128: windows S/16, S/8, S/4, weights 0.1, 0.3, 0.6, dilation 2;
    64 <= S < 128: S/4, S/2, weights 0.3, 0.7, dilation 2; S < 64: S/2. A window of w samples per axis
    (2 voxels apart if dilated) is placed every max((w + 1) // 4, 1) voxels, wholly inside the image. Per
    window, with sums (not divided by the number of samples):
        cc2 = cross^2 / (var_F var_W + 1e-5),   term = weighted mean of 1 - cc2,   loss = sum weight * term
    (signed: cross / sqrt(var_F var_W + 1e-5)). The constant is absolute: intensities lie in about [0, 1].
    Windows without variance in both images (below 1e-6 per sample) say nothing and are left out;
    `faithful=True` keeps them as in the publication, where they score 1, the worst.
    fixed, warped: (N, C, *spatial), at least 4 voxels per axis.
    mask: (N or 1, 1, *spatial) weights >= 0; sums are over masked samples, scaled up to a whole window,
    and a window counts by the share of it that is masked.
    Returns a scalar in [0, 1] (signed: [0, 2]).  Raises ShapeError for different or too small shapes,
    InputError for an empty mask or one no window touches.
    Source: Shen et al., RDMM, NeurIPS 2019 (similarity, with the settings of its published code).
    """
    fixed, warped = checked_pair(fixed, warped)
    kernels = _kernels(min(fixed.shape[2:]))
    weight = None if mask is None else mask_like(mask, fixed)
    # About the global mean: sums of squares over whole windows cancel in float32 when the mean is large.
    first, second = _centred(fixed, weight), _centred(warped, weight)
    weighted = (first, second) if weight is None else (weight * first, weight * second)
    products = (*weighted, weighted[0] * first, weighted[1] * second, weighted[0] * second)
    terms = [
        share * _kernel_term(products, weight, size, dilation, squared, faithful)
        for size, share, dilation in kernels
    ]
    return torch.stack(terms).sum()


def _kernels(extent: int) -> list[tuple[int, float, int]]:
    """(samples per axis, weight, dilation) of each window of mk_lncc for the shortest axis."""
    if extent < 4:
        raise ShapeError(f"Multi-kernel LNCC needs at least 4 voxels per axis, not {extent}.")
    if extent >= 128:
        return [(extent // 16, 0.1, 2), (extent // 8, 0.3, 2), (extent // 4, 0.6, 2)]
    return [(extent // 4, 0.3, 2), (extent // 2, 0.7, 2)] if extent >= 64 else [(extent // 2, 1.0, 1)]


def _kernel_term(
    products: Sequence[Tensor],
    weight: Tensor | None,
    size: int,
    dilation: int,
    squared: bool,
    faithful: bool,
) -> Tensor:
    """Mean of 1 - correlation over the windows of one size.

    products: w F, w W, w F^2, w W^2, w F W of the centred images; weight: w, None for ones.
    """
    shape, dtype, device = products[0].shape[2:], products[0].dtype, products[0].device
    matrices = [_placed_windows(n, size, dilation, dtype, device) for n in shape]
    whole = float(size) ** len(matrices)
    if weight is None:
        support = products[0].new_full((1, 1, *(m.rows for m in matrices)), whole)
    else:
        support = apply_axes(weight, matrices)
    held = support > 1e-3
    count = torch.where(held, support, 1.0)
    sums = [apply_axes(product, matrices) for product in products]
    variances = [(sums[k + 2] - sums[k].square() / count).clamp(min=0) for k in (0, 1)]
    cross = sums[4] - sums[0] * sums[1] / count
    # Sums of a window cut by the mask are scaled up to a whole one, so that the constant weighs the same.
    scale = whole / count
    energy = scale.square() * variances[0] * variances[1] + 1e-5
    cross = scale * cross
    correlation = cross.square() / energy if squared else cross / energy.sqrt()
    counted = torch.where(held, support, 0.0).expand_as(correlation)
    if not bool((counted.flatten(1).sum(1) > 0).all()):
        raise InputError(f"No LNCC window of {size} samples touches the mask; use a smaller window or mask.")
    if not faithful:
        counted = counted * ((variances[0] > 1e-6 * count) | (variances[1] > 1e-6 * count))
    total = counted.flatten(1).sum(1).clamp(min=torch.finfo(dtype).tiny)
    return (((1 - correlation) * counted).flatten(1).sum(1) / total).mean()


@lru_cache(maxsize=64)
def _placed_windows(n: int, size: int, dilation: int, dtype: torch.dtype, device: torch.device) -> Banded:
    """Matrix (windows, n) of sums over `size` samples `dilation` apart, one window per stride, all inside."""
    starts = range(0, n - (size - 1) * dilation, max((size + 1) // 4, 1))
    dense = torch.zeros(len(starts), n, dtype=dtype)
    for row, start in enumerate(starts):
        dense[row, start : start + (size - 1) * dilation + 1 : dilation] = 1
    return Banded.from_dense(dense.to(device))


@dataclass(frozen=True)
class _Local:
    """Window statistics of two centred images, all (N, C or 1, *spatial)."""

    fixed: Tensor
    warped: Tensor
    voxel_weight: Tensor
    radii: tuple[int, ...]
    count: Tensor
    fixed_mean: Tensor
    warped_mean: Tensor
    covariance: Tensor
    fixed_energy: Tensor
    warped_energy: Tensor
    warped_varies: Tensor
    weight: Tensor

    @property
    def correlation(self) -> Tensor:
        return self.covariance / (self.fixed_energy * self.warped_energy).sqrt()


def _local_statistics(
    fixed: Tensor, warped: Tensor, window: int | Sequence[int], mask: Tensor | None
) -> _Local:
    fixed, warped = checked_pair(fixed, warped)
    sizes = per_axis(window, fixed.dim() - 2, "The LNCC window")
    if any(w < 1 or w % 2 == 0 for w in sizes) or max(sizes) < 3:
        raise SettingsError(f"The LNCC window must be odd and at least 3 voxels, not {sizes}.")
    radii = tuple(w // 2 for w in sizes)
    weight = torch.ones_like(fixed[:1, :1]) if mask is None else mask_like(mask, fixed)
    # Sums of squares about the global mean: E[x^2] - E[x]^2 cancels in float32 when the mean is large.
    first, second = _centred(fixed, weight), _centred(warped, weight)
    floors = [FLAT * _contrast(v, c, weight) for v, c in ((fixed, first), (warped, second))]
    weighted = (weight * first, weight * second)
    products = (*weighted, weighted[0] * first, weighted[1] * second, weighted[0] * second)
    sums = box_sum(torch.cat(products, 1), radii).chunk(5, 1)
    support = box_sum(weight, radii)
    # Below that the sums are rounding errors of the box filter; such windows cannot be centred in the mask.
    count = torch.where(support > 1e-3, support, 1.0)
    means = [s / count for s in sums[:2]]
    raw = [s / count - m.square() for s, m in zip(sums[2:4], means, strict=True)]
    variances = [v.clamp(min=0) for v in raw]
    textured = (variances[0] > floors[0]) | (variances[1] > floors[1])
    counted = weight * textured
    total = counted.flatten(1).sum(1).clamp(min=torch.finfo(fixed.dtype).tiny)
    share = counted / (total * fixed.shape[0]).reshape(-1, *[1] * (fixed.dim() - 1))
    return _Local(
        first, second, weight, radii, count, means[0], means[1],
        sums[4] / count - means[0] * means[1],
        variances[0] + floors[0], variances[1] + floors[1], raw[1] >= 0, share.detach(),
    )  # fmt: skip


def _centred(image: Tensor, weight: Tensor | None) -> Tensor:
    """The image minus its weighted mean per sample and channel, 0 outside the mask's support."""
    axes = tuple(range(2, image.dim()))
    if weight is None:
        return image - image.mean(axes, keepdim=True)
    mean = (image * weight).sum(axes, keepdim=True) / weight.sum(axes, keepdim=True)
    return torch.where(weight > 0, image - mean, 0.0)


def _contrast(image: Tensor, centred: Tensor, weight: Tensor) -> Tensor:
    """Variance of an image within the mask, (N, C, 1, ...), held constant; 1 if it is mere rounding."""
    axes = tuple(range(2, image.dim()))
    variance = (weight * centred.detach().square()).sum(axes, keepdim=True) / weight.sum(axes, keepdim=True)
    peak = torch.where(weight > 0, image.detach().abs(), 0.0).amax(axes, keepdim=True)
    return torch.where(variance > (8 * torch.finfo(image.dtype).eps * peak).square(), variance, 1.0)
