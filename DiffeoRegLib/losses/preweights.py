"""What keeps a regulariser that is found together with the motion near a sensible one.  Lower is better.

Both are means over the grid, the same on every grid up to discretisation, and without a unit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from DiffeoRegLib.errors import SettingsError, ShapeError

ANNEALING_EPOCHS = 10
"""Epochs before the pull towards the common weights begins to fade."""
ANNEALING_FLOOR = 0.1


def transport_energy(weights: Tensor, sigmas: Sequence[float], *, power: float = 1.0) -> Tensor:
    """How far the weights are from the widest kernel alone (OMT): mean_x sum_i q_i d_i, in [0, 1].

        q_i = w_i^2,   d_i = (ln(sigma_max / sigma_i) / ln(sigma_max / sigma_min))^power
    0 where all weight is on the widest kernel, 1 where all is on the narrowest; 0 for kernels of one width.
    weights: (N, n, *shape), w = G h, whose squares sum to at most 1.  sigmas: widths of the n kernels.
    Raises ShapeError for a wrong number of kernels, SettingsError for widths or a power not above 0.
    Source: Niethammer, Kwitt and Vialard, CVPR 2019; Shen, Vialard and Niethammer, NeurIPS 2019.
    """
    _check(weights, len(sigmas))
    if not min(sigmas) > 0 or not power > 0:
        raise SettingsError(f"Widths and power must be above zero, not {tuple(sigmas)} and {power}.")
    widest, span = max(sigmas), math.log(max(sigmas) / min(sigmas))
    distances = [(math.log(widest / s) / span) ** power if span > 0 else 0.0 for s in sigmas]
    return (weights.square() * _per_kernel(distances, weights)).sum(1).mean()


def range_energy(weights: Tensor, shares: Sequence[float]) -> Tensor:
    """How far the weights are from those all places share: mean_x sum_i (w_i - sqrt(c_i))^2.

    weights: (N, n, *shape), w = G h.  shares: the c_i, of sum 1.
    Raises ShapeError for a wrong number of kernels, SettingsError for a negative share.
    Source: the authors' program of Shen, Vialard and Niethammer, NeurIPS 2019 (not in the paper).
    """
    _check(weights, len(shares))
    if not min(shares) >= 0:
        raise SettingsError(f"Shares must not be negative: {tuple(shares)}.")
    roots = _per_kernel([math.sqrt(c) for c in shares], weights)
    return (weights - roots).square().sum(1).mean()


def range_share(epoch: float, scale: float = 10.0) -> float:
    """rho: what counts of the range energy after some epochs; the transport energy counts by 1 - rho.

    1 before ANNEALING_EPOCHS, then k / (k + exp((epoch - 10) / k)), never below ANNEALING_FLOOR.
    epoch: half the iterations so far in optimisation (scale k = 10), epochs in training (k = 5).
    Source: as `range_energy`.
    """
    late = epoch - ANNEALING_EPOCHS
    if late < 0:
        return 1.0
    # Beyond 50 scales the exponential is far past the floor, and soon past the largest number.
    return max(ANNEALING_FLOOR, scale / (scale + math.exp(min(late / scale, 50.0))))


def _check(weights: Tensor, count: int) -> None:
    if weights.dim() < 4 or weights.shape[1] != count:
        raise ShapeError(f"Weights of {count} kernels are (N, {count}, *shape), not {tuple(weights.shape)}.")


def _per_kernel(values: Sequence[float], like: Tensor) -> Tensor:
    """One number per kernel, shaped to go with (N, n, *shape)."""
    numbers: Tensor = torch.tensor(list(values), dtype=like.dtype, device=like.device)
    return numbers.view(1, -1, *[1] * (like.dim() - 2))
