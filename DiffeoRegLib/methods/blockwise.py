"""Local correlation of a pair through a displacement, with its derivative in closed form.

The images are read voxel by voxel, the windows of the correlation are boxes of whole blocks of voxels: their
sums are sums over a grid of an eighth of the voxels.  See `space/blocks.py` and `losses/forces.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from DiffeoRegLib.losses.forces import similarity_forces
from DiffeoRegLib.space.blocks import Blocks
from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.space.sample import sample_normalised

MEASURES = ("lncc", "lncc-squared")
"""Similarities that come in blocks."""
FEWEST_BLOCKS = 8


class BlockwiseCorrelation:
    """lncc or lncc-squared of fixed(x) and moving(x + u(x)), u known on a grid of blocks.

    fixed, moving: (1, 1, *grid.shape).  side: voxels along a block, 1 or 2; 1 along axes with few voxels.
    window_vox: side of the windows, voxels of the images, rounded to whole blocks, three at least.
    `grid`: of the blocks.
    """

    def __init__(
        self, fixed: Tensor, moving: Tensor, grid: Grid, measure: str, window_vox: float, side: int
    ) -> None:
        sides = [side if n >= FEWEST_BLOCKS * side else 1 for n in grid.shape]
        self.blocks, self.grid = Blocks(grid.shape, sides, device=fixed.device), grid.coarsened(sides)
        self.fixed, self.moving = self.blocks.split(fixed[0]), self.blocks.pad(moving[0])[None]
        self._forces = similarity_forces(measure, self._radii(sides, window_vox))
        self._everywhere = fixed.new_ones(self.grid.shape)

    def _radii(self, sides: Sequence[int], window_vox: float) -> list[int]:
        return [
            max(1, round((window_vox / side - 1) / 2)) if n > 1 else 0
            for side, n in zip(sides, self.grid.shape, strict=True)
        ]

    def value(self, u_vox: Tensor, weight: Tensor | None) -> Tensor:
        """The similarity, a scalar; differentiable once in u_vox, (1, d, *grid.shape), voxels of that grid.

        weight: (1, 1, *grid.shape) in [0, 1], where it counts; None = everywhere.
        """
        counts = self._everywhere if weight is None else weight[0, 0]
        value: Tensor = _Value.apply(u_vox, self, counts)  # type: ignore[no-untyped-call]
        return value

    def value_and_gradient(self, u_vox: Tensor, weight: Tensor) -> tuple[float, Tensor]:
        """The similarity and its derivative by the displacement."""
        blocks = self.blocks
        positions = blocks.positions(u_vox[0])
        flat = positions.view(1, -1, *blocks.coarse_shape[1:], blocks.dim).requires_grad_()
        with torch.enable_grad():
            read = sample_normalised(self.moving, flat)
        shape = (1, blocks.per_block, *blocks.coarse_shape)
        with torch.no_grad():
            forces = self._forces(self.fixed, read.detach().view(shape), weight)
        by_read = (forces.by_moving / forces.factor).view(read.shape)
        (by_position,) = torch.autograd.grad(read, flat, by_read)
        with torch.no_grad():
            return forces.value, blocks.gathered(by_position.view(positions.shape))[None]


class _Value(torch.autograd.Function):
    """The derivative comes with the value: nearly every value of a search is followed by its gradient."""

    @staticmethod
    def forward(ctx: Any, u_vox: Tensor, level: BlockwiseCorrelation, weight: Tensor) -> Tensor:
        value, gradient = level.value_and_gradient(u_vox.detach(), weight)
        ctx.save_for_backward(gradient)
        return u_vox.new_tensor(value)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0] * ctx.saved_tensors[0], None, None
