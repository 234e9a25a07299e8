"""Random anatomy: smooth noise, label maps made of it, and random diffeomorphisms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from DiffeoRegLib.errors import SettingsError
from DiffeoRegLib.flows.exponential import exp
from DiffeoRegLib.space.field import upsample_image
from DiffeoRegLib.space.filters import gaussian_smooth
from DiffeoRegLib.space.sample import identity_vox
from DiffeoRegLib.training.draws import normal, number, whole

LATTICE = 2
"""Lattice points per scale: so many that what is interpolated between them shows no direction."""
SMOOTHING = 0.7
"""Sigma of the noise's smoothing, in scales."""


@dataclass(frozen=True)
class ShapeOptions:
    """Sizes of random shapes and motions, in voxels.

    labels: fewest and most structures.  scales_vox: sizes of the noise they are made of, coarse to fine.
    motion_scales_vox: lattice steps of the velocity.  motion_vox: largest root mean square velocity of one
    side of a pair; steepest: largest slope of a velocity component (keeps the flow far from folding).
    background_probability: of a head-like object on background (label 0) instead of shapes everywhere.
    """

    labels: tuple[int, int] = (8, 24)
    scales_vox: tuple[int, ...] = (32, 16, 8)
    motion_scales_vox: tuple[int, ...] = (32, 16)
    motion_vox: float = 5.0
    steepest: float = 0.45
    background_probability: float = 0.5

    def __post_init__(self) -> None:
        if not 1 <= self.labels[0] <= self.labels[1]:
            raise SettingsError(f"The numbers of labels rise from 1, unlike {self.labels}.")
        for scales in (self.scales_vox, self.motion_scales_vox):
            if not scales or min(scales) < 2:
                raise SettingsError(f"Scales are lengths of two and more voxels, unlike {scales}.")
        if not (self.motion_vox >= 0 and 0 < self.steepest <= 1 and 0 <= self.background_probability <= 1):
            raise SettingsError("motion_vox is at least 0, steepest in (0, 1], the probability in [0, 1].")


def smooth_noise(
    generator: torch.Generator, channels: int, shape: Sequence[int], scale_vox: int, device: torch.device
) -> Tensor:
    """Gaussian noise (1, channels, *shape) of about unit variance whose detail has the size `scale_vox`."""
    stride = max(1, scale_vox // LATTICE)
    coarse = [-(-n // stride) for n in shape]
    sigma = SMOOTHING * scale_vox / stride
    margin = math.ceil(3 * sigma)  # smoothed at the border as inside
    noise = normal(generator, (1, channels, *(n + 2 * margin for n in coarse))).to(device)
    noise = gaussian_smooth(noise, sigma)
    for axis, n in enumerate(coarse):
        noise = noise.narrow(2 + axis, margin, n)
    fine = upsample_image(noise.contiguous(), [stride] * len(shape), shape)
    return fine / math.sqrt(_variance_kept(sigma, len(shape)))


def label_map(
    generator: torch.Generator, shape: Sequence[int], options: ShapeOptions, device: torch.device
) -> tuple[Tensor, int, bool]:
    """Random label map (1, 1, *shape) int64, its number of labels, and whether label 0 is background.

    Every label has a noise image of several scales; a voxel belongs to the strongest.
    """
    count = whole(generator, *options.labels)
    weights = [number(generator, 0.2, 1.0) for _ in options.scales_vox]
    best = torch.full((1, 1, *shape), -math.inf, device=device)
    result = torch.zeros((1, 1, *shape), dtype=torch.int64, device=device)
    for label in range(1, count + 1):
        strength = torch.zeros_like(best)
        for weight, scale in zip(weights, options.scales_vox, strict=True):
            strength += weight * smooth_noise(generator, 1, shape, scale, device)
        result[strength > best] = label
        best = torch.maximum(best, strength)
    on_background = number(generator, 0, 1) < options.background_probability
    if on_background:
        result *= _head(generator, shape, options, device)
    return result, count + 1, on_background


def velocity(
    generator: torch.Generator, shape: Sequence[int], options: ShapeOptions, device: torch.device
) -> Tensor:
    """Random smooth velocity (1, d, *shape), voxels, within the limits of the options."""
    dim = len(shape)
    result = torch.zeros((1, dim, *shape), device=device)
    for scale in options.motion_scales_vox:
        weight = number(generator, 0, 1) * scale  # slopes alike on all scales
        result += weight * smooth_noise(generator, dim, shape, scale, device)
    wanted = options.motion_vox * number(generator, 0.2, 1.0)
    size = float(result.square().sum(1).mean().sqrt())
    slope = max(float(result.diff(dim=2 + axis).abs().max()) for axis in range(dim))
    return result * min(wanted / max(size, 1e-6), options.steepest / max(slope, 1e-6))


def motion_pair(
    generator: torch.Generator, shape: Sequence[int], options: ShapeOptions, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Displacements of the fixed and the moving side from a common template, and the inverse of the latter.

    Each (1, d, *shape), voxels.  Fixed point x shows what the moving image has at
    inverse_moving(fixed(x)): compose(inverse_moving, fixed).
    """
    fixed, moving = (velocity(generator, shape, options, device) for _ in range(2))
    to_fixed, to_moving, back = (exp(v, "auto", first_step=2) for v in (fixed, moving, -moving))
    return to_fixed, to_moving, back


def _head(
    generator: torch.Generator, shape: Sequence[int], options: ShapeOptions, device: torch.device
) -> Tensor:
    """1 inside a bumpy ellipsoid that leaves some background around it, else 0, (1, 1, *shape) int64."""
    position = identity_vox(shape, torch.float32, device)
    squared = torch.zeros((1, 1, *shape), device=device)
    for axis, n in enumerate(shape):
        center = (n - 1) / 2 + number(generator, -0.05, 0.05) * n
        radius = number(generator, 0.32, 0.46) * n
        squared += ((position[:, axis : axis + 1] - center) / radius) ** 2
    bumps = 0.12 * smooth_noise(generator, 1, shape, max(options.scales_vox), device)
    return (squared.sqrt() + bumps < 1.0).to(torch.int64)


def _variance_kept(sigma: float, dim: int) -> float:
    """Variance of unit noise after a Gaussian smoothing."""
    radius = math.ceil(4 * sigma)
    weights = [math.exp(-0.5 * (k / sigma) ** 2) for k in range(-radius, radius + 1)]
    return float((sum(w * w for w in weights) / sum(weights) ** 2) ** dim)
