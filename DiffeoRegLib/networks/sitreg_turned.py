"""A SITReg network for images whose axes are named and directed in another way: the same network, turned.

Kernels turn as images do, and the components of motion with them.  Flips are exact where the image has an
even number of voxels at every level.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from DiffeoRegLib.errors import ShapeError
from DiffeoRegLib.networks.sitreg import SITReg

MOTION = re.compile(r"pyramid\.heads\.\d+\.last\.(weight|bias)")


def turned_weights(network: SITReg, order: Sequence[int], signs: Sequence[int]) -> dict[str, Tensor]:
    """The weights with which `turned(image)` gives the turned motion of `image`.

    order, signs: axis a of turned images is axis order[a] of the network's, reversed where signs[a] < 0.
    Raises ShapeError for another number of axes than the network's.
    """
    dim = network.config.dim
    if sorted(order) != list(range(dim)) or len(signs) != dim:
        raise ShapeError(f"A network of {dim} axes cannot be turned by {tuple(order)}.")
    last_affine = f"pyramid.affine.layers.{2 * network.config.affine_layers}."
    state: dict[str, Tensor] = {}
    for name, value in network.state_dict().items():
        if MOTION.fullmatch(name):
            value = _rows(value, *_vector(order, signs))
        elif name.startswith(last_affine):
            value = _rows(value, *_affine(order, signs))
        if value.dim() == dim + 2:
            value = turned(value, order, signs)
        state[name] = value.clone()
    return state


def turned(image: Tensor, order: Sequence[int], signs: Sequence[int]) -> Tensor:
    """Images or kernels (n, m, *spatial) along other axes."""
    reversed_axes = [2 + axis for axis, sign in enumerate(signs) if sign < 0]
    return image.permute(0, 1, *[2 + axis for axis in order]).flip(reversed_axes)


Picked = tuple[list[int], list[int]]
"""Rows by their old numbers, and their signs."""


def _vector(order: Sequence[int], signs: Sequence[int]) -> Picked:
    """Components of a vector."""
    return list(order), list(signs)


def _affine(order: Sequence[int], signs: Sequence[int]) -> Picked:
    """Parameters of `sitreg_affine`: log scales, shears, turns, shift; matrices turn on both sides."""
    dim = len(order)
    pairs = [(a, b) for a in range(dim) for b in range(a + 1, dim)]
    rows, factors = list(order), [1] * dim
    for skew in (False, True):
        start = dim + skew * len(pairs)
        for a, b in pairs:
            old = order[a], order[b]
            rows.append(start + pairs.index((min(old), max(old))))
            factors.append(signs[a] * signs[b] * (-1 if skew and old[0] > old[1] else 1))
    start = dim + 2 * len(pairs)
    return [*rows, *[start + axis for axis in order]], [*factors, *signs]


def _rows(value: Tensor, rows: Sequence[int], factors: Sequence[int]) -> Tensor:
    """Rows of a layer picked and signed."""
    signed = torch.tensor(factors, dtype=value.dtype).view(-1, *[1] * (value.dim() - 1))
    return value[list(rows)] * signed
