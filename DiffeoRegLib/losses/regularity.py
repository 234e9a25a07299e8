"""How rough a motion is, in millimetres on any grid. Lower is better; no motion gives exactly 0.

All take a field (N, d, *spatial) in voxels and the spacing in mm per tensor axis, and return a scalar:
the mean over the grid's differences inside the mask, so that the same physical field costs the same on
every grid, up to discretisation. A difference counts by the product of the mask at the voxels it uses.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Literal

import torch
from torch import Tensor

from DiffeoRegLib.errors import SettingsError, ShapeError
from DiffeoRegLib.losses.weighting import at_least_float32, mask_like, weighted_mean
from DiffeoRegLib.space.jacobian import jacobian_determinant, require_field

FoldReading = Literal["corners", "central"]
FOLD_VOXELS = 224 * 160
"""Of the images for which the weight of `fold_sum` was published."""


def diffusion(u_vox: Tensor, spacing: Sequence[float], *, mask: Tensor | None = None) -> Tensor:
    """Mean squared gradient of the displacement, sum over c, a of (d u_c / d x_a)^2; mm per mm, no unit.

    Forward differences, averaged per axis a over the n_a - 1 there are, then summed; an axis of one voxel
    adds 0.
    u_vox: (N, d, *spatial), voxels.  spacing: mm per tensor axis.  mask: (N or 1, 1, *spatial) weights >= 0.
    Exact for fields that are linear in x; a translation costs 0, a rotation does not.
    Raises ShapeError for anything but a field and its spacing, InputError for an empty mask.
    Source: Fischer and Modersitzki, Fast diffusion registration, 2002.
    """
    u_mm, weight = _in_mm(u_vox, spacing, mask)
    total = u_mm.new_zeros(())
    for axis, step in enumerate(spacing):
        slope = u_mm.diff(dim=axis + 2) / step
        total = total + _mean_square(slope, _product_of_neighbours(weight, axis))
    return total


def bending(u_vox: Tensor, spacing: Sequence[float], *, mask: Tensor | None = None) -> Tensor:
    """Bending energy, sum over c, a, b of (d^2 u_c / d x_a d x_b)^2, mixed derivatives twice; 1/mm^2.

    Pure derivatives from three neighbours, mixed ones from the four corners of a cell; each averaged over the
    places where it exists, then summed.
    u_vox: (N, d, *spatial), voxels.  spacing: mm per tensor axis.  mask: (N or 1, 1, *spatial) weights >= 0.
    Exact for fields that are quadratic in x; any affine motion costs 0.
    Raises ShapeError for anything but a field and its spacing, InputError for an empty mask.
    Source: Rueckert et al., IEEE TMI 1999, the penalty of free-form deformations.
    """
    u_mm, weight = _in_mm(u_vox, spacing, mask)
    total = u_mm.new_zeros(())
    for axis, step in enumerate(spacing):
        if u_mm.shape[axis + 2] > 2:
            curve = u_mm.diff(n=2, dim=axis + 2) / step**2
            total = total + _mean_square(curve, _product_of_neighbours(weight, axis, 3))
    for first, second in combinations(range(len(spacing)), 2):
        twist = u_mm.diff(dim=first + 2).diff(dim=second + 2) / (spacing[first] * spacing[second])
        corners = _product_of_neighbours(_product_of_neighbours(weight, first), second)
        total = total + 2 * _mean_square(twist, corners)
    return total


def kinetic_energy(velocity_vox: Tensor, spacing: Sequence[float], *, mask: Tensor | None = None) -> Tensor:
    """Half the mean squared length of the velocity, mm^2 per unit time^2.

    velocity_vox: (N, d, *spatial), voxels per unit time.  spacing: mm per tensor axis.
    mask: (N or 1, 1, *spatial) weights >= 0.
    Raises ShapeError for anything but a field and its spacing, InputError for an empty mask.
    """
    velocity_mm, weight = _in_mm(velocity_vox, spacing, mask)
    return 0.5 * weighted_mean(velocity_mm.square().sum(1, keepdim=True), weight)


def fold_penalty(
    u_vox: Tensor,
    spacing: Sequence[float],
    *,
    mask: Tensor | None = None,
    epsilon: float = 0.01,
    kind: Literal["corners", "central"] = "corners",
) -> Tensor:
    """Mean of max(epsilon - det(I + Du), 0)^2 over all corner (or central).

    0 exactly where every determinant is at least epsilon. A determinant has no unit and is the same in voxels
    and in mm: the spacing is checked, like in every penalty here, and changes nothing.
    u_vox: (N, d, *spatial), voxels.
    mask: (N or 1, 1, *spatial) weights >= 0; a cell counts by the smallest of its corners.
    Raises ShapeError for anything but a field and its spacing, InputError for an empty mask, SettingsError
    for a negative epsilon or an unknown kind.
    Source: the hinge on negative determinants of Mok and Chung, CVPR 2020, here on every corner of a cell.
    """
    if epsilon < 0:
        raise SettingsError(f"The smallest allowed determinant must not be negative, got {epsilon}.")
    _in_mm(u_vox, spacing, None)
    u_vox = at_least_float32(u_vox)
    weight = None if mask is None else mask_like(mask, u_vox)
    determinants = jacobian_determinant(u_vox, kind)
    if kind == "central":
        determinants = determinants[:, None]
    elif weight is not None:
        weight = _smallest_of_corners(weight)
    return _mean_square((epsilon - determinants).clamp(min=0), weight) / determinants.shape[1]


def fold_sum(u_vox: Tensor, *, reading: FoldReading = "corners") -> Tensor:
    """Sum over voxels of 1/2 (|det| - det), det = det(I + Du), on an image of 224 x 160 voxels.

    Images of other sizes are scaled to that one, so that a weight means the same for all of them: the mean
    over the determinants times 224 * 160.  0 for maps without folds.
    u_vox: (N, d, *spatial), voxels.  reading: of the derivative, see `space/jacobian.py`.
    Raises ShapeError for anything but a field, SettingsError for an unknown reading.
    Source: Joshi and Hong, MetaRegNet, 2023, equation 4, with the image size of its experiments.
    """
    determinants = jacobian_determinant(at_least_float32(u_vox), reading)
    return FOLD_VOXELS * (-determinants).clamp(min=0).mean()


def image_diffusion(image: Tensor) -> Tensor:
    """Mean over axes of the mean squared forward difference, intensity per voxel; a scalar.

    image: (N, C, *spatial); an axis of one voxel adds 0.
    Source: the gradient penalty ('l2') of Balakrishnan et al., VoxelMorph, IEEE TMI 2019.
    """
    image = at_least_float32(image)
    axes = range(2, image.dim())
    slopes = [image.diff(dim=axis).square() for axis in axes if image.shape[axis] > 1]
    if not slopes:
        return image.sum() * 0
    return torch.stack([slope.mean() for slope in slopes]).sum() / len(axes)


def _in_mm(u_vox: Tensor, spacing: Sequence[float], mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The field in mm along the tensor axes and its mask as weights."""
    dim = require_field(u_vox)
    if len(spacing) != dim or not min(spacing) > 0:
        raise ShapeError(f"A field of {dim} axes needs {dim} positive spacings in mm, not {tuple(spacing)}.")
    u_vox = at_least_float32(u_vox)
    factors = u_vox.new_tensor(list(spacing)).reshape(1, -1, *[1] * dim)
    return u_vox * factors, None if mask is None else mask_like(mask, u_vox)


def _mean_square(values: Tensor, weight: Tensor | None) -> Tensor:
    """Sum over components of the mean square; 0 where there is no difference to take.

    A mask may be too thin to hold any difference of two voxels: nothing is rough then.
    """
    if values.numel() == 0:
        return values.sum()
    squares = values.square().sum(1, keepdim=True)
    if weight is None:
        return squares.mean()
    weight = weight.expand(values.shape[0], 1, *weight.shape[2:]).flatten(1)
    total = weight.sum(1).clamp(min=torch.finfo(values.dtype).tiny)
    return ((squares.flatten(1) * weight).sum(1) / total).mean()


def _product_of_neighbours(weight: Tensor | None, axis: int, count: int = 2) -> Tensor | None:
    """Product of the weights of `count` consecutive voxels along an axis."""
    if weight is None:
        return None
    length = weight.shape[axis + 2] - count + 1
    product = weight.narrow(axis + 2, 0, length)
    for start in range(1, count):
        product = product * weight.narrow(axis + 2, start, length)
    return product


def _smallest_of_corners(weight: Tensor) -> Tensor:
    """Smallest weight at the corners of every cell."""
    for axis in range(2, weight.dim()):
        length = weight.shape[axis] - 1
        weight = torch.minimum(weight.narrow(axis, 0, length), weight.narrow(axis, 1, length))
    return weight
