"""Mass effect: the motion of tissue around something that grows, as the flow of a known velocity.

The velocity v solves, on the grid, div v = s + psi / reach^2 with v = grad psi: tissue is made where the
source s is, and what is pushed away gives in over the length `reach`, so that far tissue rests.  A window
that falls to zero towards the edge of the organ holds everything inside it.  The flow of v is one to one; the
map that registration looks for, from the grown to the healthy image, is its inverse, the flow of -v.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from DiffeoRegLib.errors import InputError, SettingsError, ShapeError
from DiffeoRegLib.flows.exponential import exp
from DiffeoRegLib.space.field import minimum_corner_determinant
from DiffeoRegLib.space.filters import gaussian_smooth

STEEPEST = 0.7
"""Largest slope of a velocity component: beyond it the discrete flow comes near to folding."""
LEAST_DETERMINANT = 0.05
EDGE_VOX = 4.0
"""Over about so many voxels the motion falls to zero at the edge of the organ."""
SHRINK, MOST_TRIALS = 0.7, 12


def mass_effect(source: Tensor, organ: Tensor, largest_vox: float, reach_vox: float) -> Tensor:
    """Displacement (1, d, *shape), voxels, from an image with growth to the one before it.

    Its inverse pushes tissue out of the source.  No corner determinant is below 0.05: growth that would fold
    is made weaker.
    source: where tissue is made, at least 0, smooth; organ: 1 where tissue can move; both (1, 1, *shape).
    largest_vox: longest velocity wanted, 0 = nothing moves.  reach_vox: see the module.
    Raises ShapeError for tensors that do not fit, SettingsError for lengths that make no sense, InputError
    for growth without a source inside the organ.
    """
    if source.shape != organ.shape or source.shape[:2] != (1, 1) or source.dim() not in (4, 5):
        raise ShapeError(f"Source {tuple(source.shape)} and organ {tuple(organ.shape)} should be one image.")
    if not 0 <= largest_vox < math.inf or not 0 < reach_vox < math.inf:
        raise SettingsError("Growth has a length of 0 or more voxels and a reach above 0.")
    velocity = outflow(source, reach_vox) * edge_window(organ)
    longest = float(velocity.square().sum(1).max().sqrt())
    if largest_vox == 0:
        return torch.zeros_like(velocity)
    if not longest > 0:
        raise InputError("Nothing grows: the source has nothing inside the organ.")
    slope = max(float(velocity.diff(dim=2 + axis).abs().max()) for axis in range(velocity.shape[1]))
    velocity *= min(largest_vox / longest, STEEPEST / max(slope, 1e-12))
    for _ in range(MOST_TRIALS):
        u_vox = exp(velocity, "auto", first_step=2, time=-1.0)
        if float(minimum_corner_determinant(u_vox).min()) >= LEAST_DETERMINANT:
            return u_vox
        velocity *= SHRINK
    raise InputError("Growth from this source folds however weak it is.")


def outflow(source: Tensor, reach_vox: float) -> Tensor:
    """Velocity (1, d, *shape) away from a source (1, 1, *shape); see the module.  Wraps around."""
    shape = tuple(source.shape[2:])
    axes = list(range(2, source.dim()))
    spectrum = torch.fft.rfftn(source, dim=axes)
    spectrum = spectrum * _inverse_operator(shape, reach_vox, source.device)
    parts = [spectrum * _slope(shape, axis, source.device) for axis in range(len(shape))]
    velocity: Tensor = torch.fft.irfftn(torch.cat(parts, 1), s=shape, dim=axes)
    return velocity


def edge_window(organ: Tensor) -> Tensor:
    """Smooth, 0 outside an organ (1, 1, *shape) and at the border of the grid, 1 some voxels inside."""
    inside = (2 * gaussian_smooth(organ, EDGE_VOX, "zero") - 1).clamp(0, 1)
    return inside * inside * (3 - 2 * inside)


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def _inverse_operator(shape: tuple[int, ...], reach_vox: float, device: torch.device) -> Tensor:
    """1 / (Laplacian - 1 / reach^2) of the frequencies of rfftn, (*half)."""
    total = torch.full((1,) * len(shape), -(reach_vox**-2), dtype=torch.float64)
    for axis, phase in enumerate(_phases(shape)):
        total = total - (2 - 2 * torch.cos(phase)).view(_along(axis, len(shape)))
    return (1 / total).float().to(device)


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def _slope(shape: tuple[int, ...], axis: int, device: torch.device) -> Tensor:
    """Central difference along an axis, a multiplier for rfftn."""
    waves = 1j * torch.sin(_phases(shape)[axis])
    return waves.view(_along(axis, len(shape))).to(device, torch.complex64)


def _phases(shape: Sequence[int]) -> list[Tensor]:
    """2 pi f per axis, float64; the last axis as rfft gives it."""
    return [
        2
        * math.pi
        * (torch.fft.rfftfreq if axis == len(shape) - 1 else torch.fft.fftfreq)(n, dtype=torch.float64)
        for axis, n in enumerate(shape)
    ]


def _along(axis: int, dim: int) -> list[int]:
    return [-1 if a == axis else 1 for a in range(dim)]
