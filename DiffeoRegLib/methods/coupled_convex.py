"""Smooth displacements from a cost volume: a choice per voxel and smoothing of the choices take turns."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from DiffeoRegLib.losses.cost_volume import CostVolume
from DiffeoRegLib.space.filters import box_mean

# Tightness of the coupling between chosen and smoothed displacements, per round: loose, then firm.
COUPLINGS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
LEANING = 1e-4
"""Coupling to no motion in the first round: voxels without an opinion stay where they are."""
WEIGHT_FLOOR = 1e-3
ENTRIES_PER_CHUNK = 1_000_000


@torch.no_grad()
def coupled_convex(
    volume: CostVolume,
    mask: Tensor | None = None,
    *,
    stiffness: float = 1.0,
    radius_vox: int = 1,
    passes: int = 2,
    aspect: Sequence[float] | None = None,
    couplings: Sequence[float] = COUPLINGS,
) -> Tensor:
    """Displacement (1, d, *spatial), voxels, that has low cost and varies smoothly.

    Alternates d(x) = argmin cost(x, d) + c |d - u(x)|^2 over the offsets, for a coupling c = stiffness times
    each of `couplings`, with u = `passes` box means of d over 2 radius_vox + 1 voxels; each half is solved
    globally.
    aspect: length of a voxel step along each axis, so that the coupling is physical; None = cubes.
    mask: (1, 1, *spatial) weights in 0..1; voxels of weight 0 take over their neighbours' motion.
    Source: Heinrich, Papiez, Schnabel and Handels, Non-parametric discrete registration with convex
    optimisation, WBIR 2014; Siebert, Grossbroehmer, Hansen and Heinrich, ConvexAdam, 2021.
    """
    shape = volume.costs.shape[1:]
    costs = volume.costs.flatten(1).T.contiguous()  # a voxel's costs side by side: twice as fast to search
    u_vox = costs.new_zeros((1, len(shape), *shape), dtype=volume.offsets.dtype)
    squared = volume.offsets.new_tensor([1.0] * len(shape) if aspect is None else list(aspect)).square()
    for coupling in (LEANING, *couplings):
        chosen = _choose(costs, volume.offsets, u_vox.flatten(2)[0], coupling * stiffness * squared)
        u_vox = chosen.view(1, -1, *shape)
        for _ in range(passes):
            u_vox = _weighted_mean(u_vox, mask, radius_vox)
    return u_vox


def _choose(costs: Tensor, offsets: Tensor, near: Tensor, coupling: Tensor) -> Tensor:
    """Cheapest offset of every voxel, (d, voxels); distance from `near` (d, voxels) costs `coupling` (d,).

    costs: (voxels, n).  offsets: (n, d).
    """
    lengths = (coupling * offsets.square()).sum(1)
    pull = (-2.0 * coupling * offsets).T
    chosen = torch.empty_like(near)
    size = max(1, ENTRIES_PER_CHUNK // len(offsets))
    for start in range(0, len(costs), size):
        part = slice(start, start + size)
        total = torch.addmm(lengths, near[:, part].T, pull)
        total += costs[part]
        chosen[:, part] = offsets[total.argmin(1)].T
    return chosen


def _weighted_mean(values: Tensor, mask: Tensor | None, radius_vox: int) -> Tensor:
    """Box mean, by weight where there is a mask; far from any weight the plain mean."""
    if mask is None:
        return box_mean(values, radius_vox)
    weight = mask + WEIGHT_FLOOR
    return box_mean(values * weight, radius_vox) / box_mean(weight, radius_vox)
