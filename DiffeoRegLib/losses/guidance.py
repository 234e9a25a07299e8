"""Pull of known correspondences on a symmetric flow: label maps and landmarks, in closed form."""

from __future__ import annotations

import torch
from torch import Tensor

from DiffeoRegLib.losses.overlap import labels_in, one_hot
from DiffeoRegLib.space.blocks import Blocks
from DiffeoRegLib.space.field import downsample_image
from DiffeoRegLib.space.sample import sample

LABELS_AT_ONCE = 8
EPSILON = 1e-6


def label_shares(labels: Tensor, values: list[int], strides: tuple[int, ...]) -> Tensor:
    """Share of every label in the coarse voxels: (1, 1, *fine) whole numbers -> (L, *coarse) in [0, 1]."""
    parts = [downsample_image(one_hot(labels, [value]), strides)[0] for value in values]
    return torch.cat(parts)


class LabelPull:
    """Mean soft Dice between label maps of both images and its force on the flow.

    fixed_labels, moving_labels: (1, 1, *working) whole numbers; strides: of the level's velocity grid.
    Only labels present in both are used. `dice` is their mean at the last call of `force`, 1 without any.
    """

    def __init__(self, fixed_labels: Tensor, moving_labels: Tensor, strides: tuple[int, ...]) -> None:
        values = sorted(set(labels_in(fixed_labels)) & set(labels_in(moving_labels)))
        self.dice = 1.0
        self.fixed = label_shares(fixed_labels, values, strides) if values else None
        self.moving = label_shares(moving_labels, values, strides) if values else None

    def force(self, to_moving: Tensor, to_fixed: Tensor) -> Tensor:
        """Steepest rise (d, *coarse) of the sum of the Dices by a step of the flow in half-way space.

        to_moving, to_fixed: half-way displacements (d, *coarse), coarse voxels.
        """
        total = torch.zeros_like(to_moving)
        dices: list[Tensor] = []
        if self.fixed is None or self.moving is None:
            return total
        shape = to_moving.shape[1:]
        blocks = Blocks(shape, (1,) * len(shape), device=to_moving.device)
        for start in range(0, len(self.fixed), LABELS_AT_ONCE):
            f = blocks.read(self.fixed[start : start + LABELS_AT_ONCE], to_fixed)
            m = blocks.read(self.moving[start : start + LABELS_AT_ONCE], to_moving)
            axes = tuple(range(1, f.dim()))
            both = 2 * (f * m).sum(axes, keepdim=True)
            mass = (f * f + m * m).sum(axes, keepdim=True) + EPSILON
            dices.append((both / mass).flatten())
            by_moving = blocks.slope((2 * f - 2 * both / mass * m) / mass, m)
            by_fixed = blocks.slope((2 * m - 2 * both / mass * f) / mass, f)
            total += by_moving - by_fixed  # first the difference: exchanged images turn its sign exactly
        self.dice = float(torch.cat(dices).mean())
        return total


def landmark_force(velocity_flow: tuple[Tensor, Tensor], points: tuple[Tensor, Tensor]) -> Tensor:
    """Gaps between corresponding landmarks in half-way space, spread to the voxels around them.

    velocity_flow: half-way displacements to the moving and to the fixed image, (1, d, *coarse) coarse voxels.
    points: fixed and moving landmarks (1, d, n), coarse voxels. A fixed point reaches half-way space by the
    inverse of the map to the fixed image, which is the map to the moving one, and the other way round.
    Returns (d, *coarse): at every landmark the step that closes its gap, 0 elsewhere.
    """
    to_moving, to_fixed = velocity_flow
    fixed, moving = points
    from_fixed = fixed + sample(to_moving, fixed)
    from_moving = moving + sample(to_fixed, moving)
    gap, middle = (from_moving - from_fixed)[0], ((from_moving + from_fixed) / 2)[0]
    shape = to_moving.shape[2:]
    force = torch.zeros_like(to_moving[0])
    index = middle.round().long()
    for axis, size in enumerate(shape):
        index[axis] = index[axis].clamp(0, size - 1)
    for number in range(index.shape[1]):
        force[(slice(None), *index[:, number].tolist())] += gap[:, number]
    return force
