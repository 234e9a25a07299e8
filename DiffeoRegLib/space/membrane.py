"""Values held at some voxels and stretched like a membrane between them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

TOLERANCE = 1e-3
"""The residual falls to this share of what it was, or to where rounding ends it."""


def membrane(target: Tensor, hold: Tensor, edges: Sequence[Tensor], iterations: int) -> Tensor:
    """The x that minimises  sum hold (x - target)^2 + sum over axes of edge (difference of neighbours)^2.

    target: (1, C, *shape), each channel for itself; the search starts from it.  hold: (1, 1, *shape), above 0
    somewhere.  edges: per axis, at least 0, (1, 1, *shape) with one voxel less along that axis.
    Conjugate gradients, preconditioned by the diagonal; at most so many iterations.
    """
    diagonal = hold + sum(_ends(edge, axis) for axis, edge in enumerate(edges, start=2))
    inverse = torch.where(diagonal > 0, 1 / diagonal.clamp(min=1e-30), torch.zeros_like(diagonal))
    x = target.clone()
    left = hold * target - _system(x, hold, edges)
    direction = inverse * left
    size = float((left * direction).sum())
    enough = TOLERANCE**2 * size
    for _ in range(iterations):
        if size <= enough:
            break
        image = _system(direction, hold, edges)
        step = size / float((direction * image).sum())
        x.add_(direction, alpha=step)
        left.sub_(image, alpha=step)
        conditioned = inverse * left
        before, size = size, float((left * conditioned).sum())
        direction = conditioned.add_(direction, alpha=size / before)
    return x


def _ends(edge: Tensor, axis: int) -> Tensor:
    """At every voxel the sum of the edges along an axis that end there."""
    shape = list(edge.shape)
    shape[axis] += 1
    out = edge.new_zeros(shape)
    out.narrow(axis, 1, edge.shape[axis]).add_(edge)
    out.narrow(axis, 0, edge.shape[axis]).add_(edge)
    return out


def _system(x: Tensor, hold: Tensor, edges: Sequence[Tensor]) -> Tensor:
    """The matrix of the normal equations times x."""
    out = hold * x
    for axis, edge in enumerate(edges, start=2):
        pull = x.diff(dim=axis).mul_(edge)
        size = x.shape[axis] - 1
        out.narrow(axis, 1, size).add_(pull)
        out.narrow(axis, 0, size).sub_(pull)
    return out
