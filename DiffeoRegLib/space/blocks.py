"""A fine image seen from a coarser grid: every coarse voxel holds a small block of fine voxels.

Fine images are kept block-wise, (C, P, *coarse) with P = product of the block sides: place p of every
block side by side. Sums over blocks, products with coarse maps and differences inside a block are then
plain contiguous arithmetic, and a displacement known on the coarse grid is interpolated to the fine
voxels with fixed weights. The interpolant is the one of `field.upsample_field`: multilinear,
cell-centred, border repeated.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from DiffeoRegLib.errors import ShapeError
from DiffeoRegLib.space.sample import sample_normalised


class Blocks:
    """Fine voxels of one grid in blocks of a coarser one.

    shape: fine voxels per axis. sides: 1 or 2 per axis, fine voxels per coarse voxel. Fine axes that are not
    divisible are thought longer by repeating the border.
    Raises ShapeError for other sides.
    """

    def __init__(
        self, shape: Sequence[int], sides: Sequence[int], device: torch.device | str = "cpu"
    ) -> None:
        if len(shape) != len(sides) or any(side not in (1, 2) for side in sides):
            raise ShapeError(f"Blocks of sides {tuple(sides)} on a grid {tuple(shape)}: 1 or 2 per axis.")
        self.shape = tuple(shape)
        self.sides = tuple(sides)
        self.dim = len(self.sides)
        self.coarse_shape = tuple(-(-n // b) for n, b in zip(shape, sides, strict=True))
        self.padded_shape = tuple(n * b for n, b in zip(self.coarse_shape, sides, strict=True))
        self.places = list(itertools.product(*[range(b) for b in self.sides]))
        self._index = [
            torch.arange(n, device=device, dtype=torch.float32).view(
                [-1 if a == b else 1 for b in range(self.dim)]
            )
            for a, n in enumerate(self.coarse_shape)
        ]

    @property
    def per_block(self) -> int:
        """Fine voxels per coarse voxel."""
        return len(self.places)

    def pad(self, image: Tensor) -> Tensor:
        """(C, *shape) with the border repeated up to whole blocks."""
        missing = [p - n for p, n in zip(self.padded_shape, self.shape, strict=True)]
        if not any(missing):
            return image
        sides = [side for m in reversed(missing) for side in (0, m)]
        return functional.pad(image[None], sides, mode="replicate")[0]

    def split(self, image: Tensor) -> Tensor:
        """Block-wise (C, P, *coarse) values of a fine image (C, *shape)."""
        padded = self.pad(image)
        split_axes = [n for pair in zip(self.coarse_shape, self.sides, strict=True) for n in pair]
        order = [2 + 2 * a for a in range(self.dim)] + [1 + 2 * a for a in range(self.dim)]
        blocks = padded.reshape(len(padded), *split_axes).permute(0, *order)
        return blocks.reshape(len(padded), self.per_block, *self.coarse_shape)

    def join(self, blocks: Tensor) -> Tensor:
        """Fine image (C, *shape) of block-wise values; undoes `split`."""
        order = [1 + a + offset for a in range(self.dim) for offset in (self.dim, 0)]
        fine = blocks.reshape(len(blocks), *self.sides, *self.coarse_shape).permute(0, *order)
        return fine.reshape(len(blocks), *self.padded_shape)[(slice(None), *[slice(n) for n in self.shape])]

    def read(self, image: Tensor, u_vox: Tensor) -> Tensor:
        """Values of a fine image at x + u(x) for every fine voxel x.

        image: (C, *padded_shape), see `pad`. u_vox: (d, *coarse_shape), voxels of the coarse grid.
        Returns block-wise (C, P, *coarse_shape).
        """
        flat = self.positions(u_vox).view(1, -1, *self.coarse_shape[1:], self.dim)
        return sample_normalised(image[None], flat)[0].view(len(image), self.per_block, *self.coarse_shape)

    def positions(self, u_vox: Tensor) -> Tensor:
        """x + u(x) for every fine voxel x, (P, *coarse_shape, d), in the form that `sample_normalised` reads.

        u_vox: (d, *coarse_shape), voxels of the coarse grid.
        """
        normalised = u_vox.new_empty(self.per_block, *self.coarse_shape, self.dim)
        for axis, (side, size) in enumerate(zip(self.sides, self.padded_shape, strict=True)):
            scale = 2.0 / max(size - 1, 1)
            component = u_vox[axis] * (side * scale)
            index = self._index[axis].to(u_vox.dtype)
            for place, values in enumerate(self._interpolated(component)):
                start = (index * side + self.places[place][axis]) * scale - 1.0
                torch.add(values, start, out=normalised[place, ..., self.dim - 1 - axis])
        return normalised

    def gathered(self, by_position: Tensor) -> Tensor:
        """The transposed derivative of `positions`: (P, *coarse_shape, d) -> (d, *coarse_shape)."""
        out = by_position.new_empty(self.dim, *self.coarse_shape)
        for axis, (side, size) in enumerate(zip(self.sides, self.padded_shape, strict=True)):
            maps = list(by_position[..., self.dim - 1 - axis].unbind(0))
            for other in range(self.dim - 1, -1, -1):
                if self.sides[other] == 2:
                    maps = [
                        _from_quarter_shifts(before, behind, other)
                        for before, behind in zip(maps[::2], maps[1::2], strict=True)
                    ]
            torch.mul(maps[0], side * 2.0 / max(size - 1, 1), out=out[axis])
        return out

    def _interpolated(self, coarse: Tensor) -> list[Tensor]:
        """A coarse map (*coarse_shape) at every place of the blocks, in the order of `places`."""
        maps = [coarse]
        for axis, side in enumerate(self.sides):
            if side == 2:
                maps = [half for values in maps for half in _quarter_shifts(values, axis)]
        return maps

    def slope(self, weight: Tensor, values: Tensor) -> Tensor:
        """Sum over each block of weight times the spatial derivative of the values, by coarse voxel steps.

        weight: (C, P, *coarse), values: (C, P, *coarse) or another tensor of that shape.
        Returns (d, *coarse), summed over channels: the force on the coarse displacement when `weight` is the
        derivative of a loss by the values. Along an axis of side 2 the derivative is the difference inside
        the block, along an axis of side 1 the central difference between neighbours (one-sided at borders).
        """
        count = len(values)
        apart = (count, *self.sides, *self.coarse_shape)
        weights, reads = weight.reshape(apart), values.reshape(apart)
        out = values.new_empty(self.dim, *self.coarse_shape)
        summed = tuple(range(self.dim))
        for axis, side in enumerate(self.sides):
            if side == 2:
                difference = reads.select(1 + axis, 1) - reads.select(1 + axis, 0)
                both = weights.select(1 + axis, 0) + weights.select(1 + axis, 1)
                torch.sum(difference.mul_(both), dim=summed, out=out[axis])
                out[axis].mul_(2.0)  # fine steps per coarse one
            else:
                slope = _central(reads, 1 + self.dim + axis)
                torch.sum(slope.mul_(weights), dim=(*summed, self.dim), out=out[axis])
        return out


def _quarter_shifts(values: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Linear interpolation a quarter voxel before and behind every voxel, border repeated."""
    near = values * 0.75
    before, behind = near.clone(), near
    size = values.shape[axis]
    before.narrow(axis, 1, size - 1).add_(values.narrow(axis, 0, size - 1), alpha=0.25)
    before.narrow(axis, 0, 1).add_(values.narrow(axis, 0, 1), alpha=0.25)
    behind.narrow(axis, 0, size - 1).add_(values.narrow(axis, 1, size - 1), alpha=0.25)
    behind.narrow(axis, size - 1, 1).add_(values.narrow(axis, size - 1, 1), alpha=0.25)
    return before, behind


def _from_quarter_shifts(before: Tensor, behind: Tensor, axis: int) -> Tensor:
    """The transpose of `_quarter_shifts`."""
    out = (before + behind) * 0.75
    size = out.shape[axis]
    out.narrow(axis, 0, size - 1).add_(before.narrow(axis, 1, size - 1), alpha=0.25)
    out.narrow(axis, 0, 1).add_(before.narrow(axis, 0, 1), alpha=0.25)
    out.narrow(axis, 1, size - 1).add_(behind.narrow(axis, 0, size - 1), alpha=0.25)
    out.narrow(axis, size - 1, 1).add_(behind.narrow(axis, size - 1, 1), alpha=0.25)
    return out


def _central(values: Tensor, axis: int) -> Tensor:
    """Central differences along one axis, one-sided at its ends; 0 on an axis of one voxel."""
    size = values.shape[axis]
    out = torch.zeros_like(values)
    if size == 1:
        return out
    inside = out.narrow(axis, 1, size - 2)
    inside.copy_(values.narrow(axis, 2, size - 2)).sub_(values.narrow(axis, 0, size - 2)).mul_(0.5)
    for end, low in ((0, 0), (size - 1, size - 2)):
        out.narrow(axis, end, 1).copy_(values.narrow(axis, low + 1, 1)).sub_(values.narrow(axis, low, 1))
    return out
