"""The way back from displacements to a stationary velocity: v with exp(v) = u."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from DiffeoRegLib.errors import InputError, ShapeError
from DiffeoRegLib.flows.exponential import exp, midpoint_exp
from DiffeoRegLib.space.field import require_field
from DiffeoRegLib.space.filters import gaussian_smooth
from DiffeoRegLib.space.jacobian import minimum_corner_determinant
from DiffeoRegLib.space.sample import warp

FOLD_ROUNDS = 30
FOLD_SIGMA_VOX = 1.0


@dataclass(frozen=True, eq=False)
class Logarithm:
    """A velocity and how well its flow meets what was asked.

    velocity_vox: (1, d, *spatial), voxels per unit time; neither exp(v) nor exp(-v) folds in any cell corner.
    residual_mean_vox, residual_max_vox: length of u - exp(v), both directions, voxels.
    unfold_rounds: how often the velocity had to be smoothed where its flow folded.
    """

    velocity_vox: Tensor
    residual_mean_vox: float
    residual_max_vox: float
    unfold_rounds: int


@torch.no_grad()
def make_consistent(forward_vox: Tensor, backward_vox: Tensor, iterations: int = 15) -> tuple[Tensor, Tensor]:
    """Two displacements drawn towards each other's inverse, each giving way by half.

    Both (1, d, *spatial), voxels of one grid.  Iterates f <- (f - b(x + f)) / 2 and b <- (b - f(x + b)) / 2,
    whose fixed points satisfy f(x) + b(x + f(x)) = 0.
    Source: Heinrich, Papiez, Schnabel and Handels, WBIR 2014, section on symmetry.
    """
    for _ in range(iterations):
        forward_vox, backward_vox = (
            0.5 * (forward_vox - warp(backward_vox, forward_vox)),
            0.5 * (backward_vox - warp(forward_vox, backward_vox)),
        )
    return forward_vox, backward_vox


@torch.no_grad()
def logarithm(
    forward_vox: Tensor,
    backward_vox: Tensor,
    start_vox: Tensor | None = None,
    *,
    iterations: int = 6,
    sigma_vox: float = 0.7,
    least_determinant: float = 0.05,
) -> Logarithm:
    """Stationary velocity whose flow follows `forward_vox` and whose reversed flow follows `backward_vox`.

    Both (1, d, *spatial), voxels.  start_vox: first guess, default half their difference.
    Fixed-point steps v <- v + G(f - exp(v)) / 2 - G(b - exp(-v)) / 2 with a Gaussian G of `sigma_vox`, then
    smoothing of v around every cell where exp(v) or exp(-v) has a corner determinant below
    `least_determinant`, until none is left.
    Raises ShapeError for fields that differ in shape, InputError for fields that are not finite.
    Source: Arsigny et al., MICCAI 2006 (log-Euclidean framework); Bossa et al., MICCAI 2007 (logarithms by
    fixed point); fitting both directions is ours.
    """
    require_field(forward_vox)
    if forward_vox.shape != backward_vox.shape:
        raise ShapeError(f"Fields differ: {tuple(forward_vox.shape)} and {tuple(backward_vox.shape)}.")
    if not bool(torch.isfinite(forward_vox).all() and torch.isfinite(backward_vox).all()):
        raise InputError("A displacement contains NaN or infinite values; it has no logarithm.")
    velocity = 0.5 * (forward_vox - backward_vox) if start_vox is None else start_vox
    for _ in range(iterations):
        step = forward_vox - exp(velocity, "auto") - backward_vox + exp(-velocity, "auto")
        velocity = velocity + 0.5 * gaussian_smooth(step, sigma_vox)
    velocity, rounds = unfold(velocity, least_determinant)
    gaps = torch.cat([forward_vox - exp(velocity, "auto"), backward_vox - exp(-velocity, "auto")])
    length = gaps.square().sum(1).sqrt()
    return Logarithm(velocity, float(length.mean()), float(length.max()), rounds)


@torch.no_grad()
def unfold(velocity_vox: Tensor, least_determinant: float = 0.05) -> tuple[Tensor, int]:
    """The velocity, smoothed where its flow or the reversed flow folds, and the number of rounds that took.

    velocity_vox: (1, d, *spatial).  A cell is bad when a corner determinant is below `least_determinant` in
    either direction; each round blends the smoothed velocity in around the bad cells, farther out from round
    to round, and after FOLD_ROUNDS rounds the whole velocity is halved until no cell is bad.
    The reversed velocity gives the reversed result.
    """
    rounds = 0
    while True:
        bad = _bad_cells(midpoint_exp(velocity_vox), least_determinant)
        bad |= _bad_cells(midpoint_exp(-velocity_vox), least_determinant)
        if not bool(bad.any()):
            return velocity_vox, rounds
        velocity_vox, rounds = _smoothed(velocity_vox, bad, rounds), rounds + 1


@torch.no_grad()
def unfold_map(u_vox: Tensor, least_determinant: float) -> tuple[Tensor, int]:
    """A displacement, smoothed where it folds, and the number of rounds that took; as `unfold` does it.

    u_vox: (1, d, *spatial).
    """
    rounds = 0
    while bool((bad := _bad_cells(u_vox, least_determinant)).any()):
        u_vox, rounds = _smoothed(u_vox, bad, rounds), rounds + 1
    return u_vox, rounds


@torch.no_grad()
def flow_without_folds(velocity_vox: Tensor, least_determinant: float) -> tuple[Tensor, Tensor, int]:
    """Velocity, its flow and the rounds of `unfold` it took, looking at the forward flow only.

    velocity_vox: (1, d, *spatial).  The flow is a field whose corner determinants are all at least
    `least_determinant`.
    """
    rounds = 0
    while True:
        u_vox = midpoint_exp(velocity_vox)
        bad = _bad_cells(u_vox, least_determinant)
        if not bool(bad.any()):
            return velocity_vox, u_vox, rounds
        velocity_vox, rounds = _smoothed(velocity_vox, bad, rounds), rounds + 1


def _smoothed(velocity_vox: Tensor, bad: Tensor, number: int) -> Tensor:
    """One round: smoothed around the bad voxels; from round FOLD_ROUNDS on, halved as a whole."""
    if number >= FOLD_ROUNDS:
        return 0.5 * velocity_vox  # ends: a vanishing velocity or displacement has determinant 1
    reach = 1.5 + 0.25 * number
    strength = 8 * reach ** (velocity_vox.dim() - 2)
    blend = (gaussian_smooth(bad.to(velocity_vox.dtype), reach) * strength).clamp(max=1)
    smooth = gaussian_smooth(velocity_vox, FOLD_SIGMA_VOX + 0.1 * number)
    return velocity_vox + blend * (smooth - velocity_vox)


def _bad_cells(u_vox: Tensor, least_determinant: float) -> Tensor:
    """Voxels that are a corner of a bad cell of a field, (1, 1, *spatial)."""
    bad = ~(minimum_corner_determinant(u_vox) >= least_determinant)
    for axis in range(2, bad.dim()):
        edge = torch.zeros_like(bad.narrow(axis, 0, 1))
        bad = torch.cat([bad, edge], axis) | torch.cat([edge, bad], axis)
    return bad
