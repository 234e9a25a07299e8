"""Boxes around scattered voxels, so that what changes in a few places is computed there only."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

Box = tuple[slice, ...]

BIN_VOX = 16
MOST_BOXES = 200
"""More are not worth sorting: one box around all of them is taken."""


def boxes_around(mask: Tensor, margin: int, beyond: int = 0) -> list[Box]:
    """Boxes that hold every true voxel and `margin` voxels around it, cut at the border of the grid.

    mask: (*shape), bool.  beyond: voxels that will be read around a box as well; what is cheaper as one box
    with them becomes one.
    """
    shape = mask.shape
    found = mask.nonzero()
    if len(found) == 0:
        return []
    bins, member = torch.unique(found // BIN_VOX, dim=0, return_inverse=True)
    if len(bins) > MOST_BOXES:
        bins, member = bins[:1], torch.zeros_like(member)
    index = member[:, None].expand_as(found)
    low = torch.zeros_like(bins).scatter_reduce(0, index, found, "amin", include_self=False)
    high = torch.zeros_like(bins).scatter_reduce(0, index, found, "amax", include_self=False)
    boxes = [
        grown(tuple(slice(a, b + 1) for a, b in zip(start, end, strict=True)), margin, shape)
        for start, end in zip(low.tolist(), high.tolist(), strict=True)
    ]
    boxes = _merged(boxes, beyond, shape)
    around = functools.reduce(_union, boxes)
    apart = sum(_volume(grown(box, beyond, shape)) for box in boxes)
    return boxes if apart < _volume(grown(around, beyond, shape)) else [around]


def whole(shape: Sequence[int]) -> Box:
    """The box that is the grid."""
    return tuple(slice(0, n) for n in shape)


def grown(box: Box, by: int, shape: Sequence[int]) -> Box:
    """A box with so many voxels more at every side, cut at the border of the grid."""
    return tuple(slice(max(0, s.start - by), min(n, s.stop + by)) for s, n in zip(box, shape, strict=True))


def within(box: Box, outer: Box) -> Box:
    """A box in voxels of another one that holds it."""
    return tuple(slice(s.start - o.start, s.stop - o.start) for s, o in zip(box, outer, strict=True))


def _merged(boxes: list[Box], beyond: int, shape: Sequence[int]) -> list[Box]:
    """Pairs of boxes made one where that holds no more voxels than both, until there is no such pair."""
    kept: list[Box] = []
    for box in boxes:
        while True:
            partner = next((other for other in kept if _cheaper(box, other, beyond, shape)), None)
            if partner is None:
                break
            kept.remove(partner)
            box = _union(box, partner)
        kept.append(box)
    return kept


def _cheaper(one: Box, other: Box, beyond: int, shape: Sequence[int]) -> bool:
    """Whether one box around both holds no more voxels than the two."""
    union = _volume(grown(_union(one, other), beyond, shape))
    return union <= _volume(grown(one, beyond, shape)) + _volume(grown(other, beyond, shape))


def _union(one: Box, other: Box) -> Box:
    return tuple(slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(one, other, strict=True))


def _volume(box: Box) -> int:
    return math.prod(s.stop - s.start for s in box)
