"""The intensity source of metamorphosis: what a lesion adds to an image, in closed form for any motion.

With r the difference of both images and m in [0, 1] the marks of the pathology, the source q minimises

    sum_x m (r - q)^2  +  rho * sum_x m |grad q|^2,        rho in mm^2,

so q m is smooth over lengths of sqrt(rho) within the marks and 0 without.  Its edge is free: a lesion may end
with a step, and a price on that step would pull q to 0 at its rim.  q is put in anew before every step of
the motion, so the motion follows the gradient of the energy of both: at the minimum by q its change does not
count.  What the source leaves unexplained (a necrotic centre, an enhancing rim) has no counterpart either, so
within the marks the comparison is robust: voxels whose remainder comes near to that of healthy tissue lose
their weight.  Tissue that shows through an oedema goes on pulling, solid tumour does not.

Sources: Holm, Trouve, Younes, Quart Appl Math 2009 (metamorphosis); Joshi and Hong, MetaRegNet, 2023, eq. 2
(rho, the smoothness operator Q); the free edge, the closed form and the robust weight are ours.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from DiffeoRegLib.space.blocks import Blocks
from DiffeoRegLib.space.filters import gaussian_smooth
from DiffeoRegLib.space.membrane import membrane

RHO_MM2 = 64.0
"""How smooth a source is: over about 8 mm."""
LEAST_TRUST = 1e-3
"""Weight of the comparison within the marks where the source leaves most unexplained."""
TRUSTED = 0.5
"""Weights fall to a half where so large a share of the noise of healthy tissue is left unexplained."""
TRUST_MM = 4.0
"""Width of the Gaussian over which what is left unexplained is averaged."""
MOST_ITERATIONS = 30
LEAST_HOLD = 1e-6
"""Keeps the system regular where nothing is marked."""
DEVIATIONS_PER_MEDIAN = 1.4826
"""Of absolute values that are normally distributed."""
TISSUE = 0.05
"""Intensity in [0, 1] above which there is tissue."""


def smooth_source(
    residual: Tensor, marks: Tensor, spacing: Sequence[float], rho_mm2: float = RHO_MM2
) -> Tensor:
    """The minimiser q of the energy above, (1, 1, *shape); what it is without marks says nothing.

    residual, marks: (1, 1, *shape).
    """
    edges = [
        torch.minimum(*_neighbours(marks, axis)).mul_(rho_mm2 / step**2)
        for axis, step in enumerate(spacing, start=2)
    ]
    return membrane(residual, marks + LEAST_HOLD, edges, MOST_ITERATIONS)


def _neighbours(values: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Both voxels of every neighbouring pair along an axis."""
    size = values.shape[axis] - 1
    return values.narrow(axis, 0, size), values.narrow(axis, 1, size)


class LevelSource:
    """The sources of both images of a level in half-way space, where images are kept block-wise.

    fixed_marks, moving_marks: (1, 1, *image shape) in [0, 1], on the grid of the level's images, or None.
    blocks: of that grid.  spacing: its voxels, mm.
    """

    def __init__(
        self,
        fixed_marks: Tensor | None,
        moving_marks: Tensor | None,
        blocks: Blocks,
        spacing: Sequence[float],
        rho_mm2: float = RHO_MM2,
    ) -> None:
        self.marks = [None if m is None else blocks.pad(m[0]) for m in (fixed_marks, moving_marks)]
        self.blocks, self.spacing, self.rho_mm2 = blocks, tuple(spacing), rho_mm2

    def shares(self, to_fixed: Tensor, to_moving: Tensor) -> list[Tensor]:
        """The marks of the fixed and of the moving image in half-way space, (1, P, *coarse) each."""
        shape = (1, self.blocks.per_block, *self.blocks.coarse_shape)
        return [
            to_fixed.new_zeros(shape) if marks is None else self.blocks.read(marks, u_vox[0])
            for marks, u_vox in zip(self.marks, (to_fixed, to_moving), strict=True)
        ]

    def taken_off(
        self, fixed: Tensor, moving: Tensor, weight: Tensor, to_fixed: Tensor, to_moving: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Both images without their sources, and how far to trust their comparison, (*coarse) in [0, 1].

        fixed, moving: (1, P, *coarse) as they were read at to_fixed and to_moving (1, d, *coarse).
        weight: (*coarse), where both are known.  Where both are marked, each bears its share of the source.
        """
        own, other = self.shares(to_fixed, to_moving)
        union = own + other - own * other
        box = box_of(union)
        trust = torch.ones_like(weight)
        if box is None:
            return fixed, moving, trust
        part = (slice(None), slice(None), *box)
        sides = self.blocks.sides
        shape = [(b.stop - b.start) * side for b, side in zip(box, sides, strict=True)]
        small = Blocks(shape, sides, device=fixed.device)
        marks, residual = (small.join(values[part])[None] for values in (union, fixed - moving))
        source = smooth_source(residual, marks, self.spacing, self.rho_mm2)
        noise = _noise(fixed, moving, weight * (1 - union.amax((0, 1))))
        trust[box] = self._trust(small, residual - source, marks, noise)
        blockwise = small.split((marks * source)[0])
        of_fixed = own[part] / (own + other)[part].clamp(min=1e-6)
        fixed, moving = fixed.clone(), moving.clone()
        fixed[part] -= of_fixed * blockwise
        moving[part] += (1 - of_fixed) * blockwise
        return fixed, moving, trust

    def _trust(self, small: Blocks, left: Tensor, marks: Tensor, noise: float) -> Tensor:
        """Weight of every block, given what the source leaves, (1, 1, *shape), and how noisy tissue is."""
        width = [TRUST_MM / step for step in self.spacing]
        near = gaussian_smooth(marks * left.square(), width) / gaussian_smooth(marks, width).clamp(min=1e-3)
        known = 1 / (1 + (near / max((TRUSTED * noise) ** 2, 1e-12)).square())
        weight = LEAST_TRUST + (1 - LEAST_TRUST) * known
        return small.split((1 - marks * (1 - weight))[0]).mean((0, 1))


def _noise(fixed: Tensor, moving: Tensor, healthy: Tensor) -> float:
    """Standard deviation of the difference of both images in healthy tissue, by the median."""
    chosen = (healthy > 0.5) & (torch.maximum(fixed, moving).mean((0, 1)) > TISSUE)
    if not bool(chosen.any()):
        return 0.0
    return DEVIATIONS_PER_MEDIAN * float((fixed - moving).abs()[:, :, chosen].median())


def box_of(marks: Tensor, margin: int = 0) -> tuple[slice, ...] | None:
    """The coarse voxels that hold all marks (1, P, *coarse) and a margin; None without any.

    At least two along an axis.
    """
    found = marks.amax((0, 1)) > 0
    slices = []
    for axis, size in enumerate(found.shape):
        others = [other for other in range(found.dim()) if other != axis]
        hit = found.sum(others).nonzero().flatten()
        if not len(hit):
            return None
        low, high = max(0, int(hit[0]) - margin), min(size, int(hit[-1]) + 1 + margin)
        low = max(0, min(low, high - 2))
        slices.append(slice(low, min(size, max(high, low + 2))))
    return tuple(slices)
