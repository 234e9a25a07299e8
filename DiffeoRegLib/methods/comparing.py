"""A pair at one resolution, compared through a displacement that is known on another grid; differentiable."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from DiffeoRegLib.errors import UnknownNameError
from DiffeoRegLib.losses.information import nmi
from DiffeoRegLib.losses.mind import mind_loss
from DiffeoRegLib.losses.overlap import landmark_distance_mm, warped_label_dice
from DiffeoRegLib.losses.similarity import lncc, mk_lncc, mse
from DiffeoRegLib.methods.blockwise import MEASURES, BlockwiseCorrelation
from DiffeoRegLib.settings import SIMILARITIES
from DiffeoRegLib.space.field import change_grid, downsample_image
from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.space.sample import identity_vox, warp
from DiffeoRegLib.volumes.pair import Pair

Similarity = Callable[[Tensor, Tensor, Tensor | None], Tensor]
PLAIN: dict[str, Callable[..., Tensor]] = {"mk-lncc": mk_lncc, "mse": mse}
"""Those that need no more than two images and a mask; a new one is added here and in `losses/forces.py`."""


def similarity_named(name: str, grid: Grid, window_vox: float) -> Similarity:
    """How unlike fixed and warped image are, given a mask; lower is better.

    window_vox: side of the windows of lncc, nearest odd number, at least 3.
    Raises UnknownNameError.
    """
    window = max(3, 2 * round((window_vox - 1) / 2) + 1)
    known: dict[str, Callable[..., Tensor]] = {
        **PLAIN,
        "lncc": partial(lncc, window=window),
        "lncc-squared": partial(lncc, window=window, squared=True),
        "nmi": partial(nmi, fixed_range=(0.0, 1.0), warped_range=(0.0, 1.0)),
        "mind": partial(mind_loss, spacing=grid.spacing),
    }
    if name not in known:
        raise UnknownNameError("similarity", name, SIMILARITIES)
    chosen = known[name]

    def compare(fixed: Tensor, warped: Tensor, mask: Tensor | None) -> Tensor:
        return chosen(fixed, warped, mask=mask)

    return compare


class Comparison:
    """Both images at voxels of about `level_mm`, and the guidance of the pair at full resolution.

    map_grid: of the displacements that are judged; same axes as the pair's grid.
    guidance_weight: of one minus the mean Dice plus the mean landmark gap in shares of the longest side.
    block: voxels along the blocks that windows of lncc and lncc-squared are made of, 1 or 2 (see
    `methods/blockwise.py`); 0 = windows around every voxel.
    Raises UnknownNameError for an unknown similarity.
    """

    def __init__(
        self,
        pair: Pair,
        level_mm: float,
        map_grid: Grid,
        similarity: str,
        *,
        window_vox: float = 5.0,
        guidance_weight: float = 1.0,
        block: int = 0,
    ) -> None:
        size = zip(pair.grid.spacing, pair.grid.shape, strict=True)
        strides = tuple(max(1, min(round(level_mm / spacing), n // 4)) for spacing, n in size)
        self.pair, self.map_grid, self.grid = pair, map_grid, pair.grid.coarsened(strides)
        self.fixed, self.moving = (downsample_image(image, strides) for image in (pair.fixed, pair.moving))
        self.fixed_mask, self.moving_mask = (
            None if mask is None else downsample_image(mask, strides)
            for mask in (pair.fixed_mask, pair.moving_mask)
        )
        self.similarity = similarity_named(similarity, self.grid, window_vox)
        self.blockwise: BlockwiseCorrelation | None = None
        if block and similarity in MEASURES:
            self.blockwise = BlockwiseCorrelation(
                self.fixed, self.moving, self.grid, similarity, window_vox, block
            )
            self.fixed_mask, self.moving_mask = (
                None if mask is None else downsample_image(mask, self.blockwise.blocks.sides)
                for mask in (self.fixed_mask, self.moving_mask)
            )
        self.guidance_weight = guidance_weight

    def value(self, u_vox: Tensor) -> Tensor:
        """Similarity of fixed(x) and moving(x + u(x)), plus the misfit of the guidance; a scalar.

        u_vox: (1, d, *map_grid.shape), voxels of the map grid.
        Raises InputError when the masks no longer overlap.
        """
        if self.blockwise is None:
            u_here = change_grid(u_vox, self.map_grid, self.grid)
            total = self.similarity(self.fixed, warp(self.moving, u_here), self._mask(u_here))
        else:
            u_here = change_grid(u_vox, self.map_grid, self.blockwise.grid)
            total = self.blockwise.value(u_here, self._mask(u_here))
        if self.guidance_weight > 0:
            total = total + self.guidance_weight * self._misfit(u_vox)
        return total

    def _mask(self, u_vox: Tensor) -> Tensor | None:
        """Where both images count, in fixed space; held constant in the derivative."""
        mask = self.fixed_mask
        if self.moving_mask is not None:
            moved = warp(self.moving_mask, u_vox.detach())
            mask = moved if mask is None else mask * moved
        return mask

    def _misfit(self, u_vox: Tensor) -> Tensor:
        pair, total = self.pair, u_vox.new_zeros(())
        if pair.fixed_labels is not None and pair.moving_labels is not None:
            full = change_grid(u_vox, self.map_grid, pair.grid)
            places = identity_vox(pair.grid.shape, full.dtype, full.device) + full
            total = total + warped_label_dice(pair.fixed_labels, pair.moving_labels, places)
        if pair.fixed_points_vox is not None and pair.moving_points_vox is not None:
            spacing = self.map_grid.spacing
            points = [
                _on(self.map_grid, pair.grid, p) for p in (pair.fixed_points_vox, pair.moving_points_vox)
            ]
            gap = landmark_distance_mm(u_vox, points[0], points[1], spacing)
            total = total + gap / max(pair.grid.extent_mm)
        return total


def _on(target: Grid, source: Grid, points_vox: Tensor) -> Tensor:
    """Points (1, d, n) in voxels of one grid as (n, d) in voxels of another."""
    matrix = torch.tensor((target.voxel_from_world @ source.world_from_voxel).tolist(), dtype=torch.float64)
    linear, shift = matrix[: target.dim, : target.dim], matrix[: target.dim, 3]
    moved: Tensor = points_vox[0].double().cpu().T @ linear.T + shift
    return moved.to(points_vox)
