"""What a metamorphosis shows: deformed image, change of appearance, their sum, the patient without it.

All lie on the grid of the fixed image.  Images of two scanners differ in scale and offset: both are taken
from unmarked tissue around the pathology before one image is held against the other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from DiffeoRegLib.errors import ShapeError
from DiffeoRegLib.losses.source import box_of, smooth_source
from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.space.transform import Transform
from DiffeoRegLib.volumes.intensity import finite
from DiffeoRegLib.volumes.pathology import Pathology, carried_marks
from DiffeoRegLib.volumes.volume import Volume

CHANGE_RHO_MM2 = 1.0
"""Smoothness of the change that is shown: the whole lesion, not only the trend that the search takes off."""
AROUND_MM = 20.0
"""Tissue up to here from the pathology tells how the intensities of both images correspond."""
FEWEST_VOXELS = 100
APPEARANCE = ("deformed", "change", "metamorphic", "healthy")
"""Names of the volumes of an `Appearance`, in their order."""


@dataclass(frozen=True, eq=False)
class Appearance:
    """Volumes on the fixed grid.

    deformed: the moving image after its motion.  change: the source times the marks, in its intensities.
    metamorphic: their sum, which looks like the fixed image.  healthy: the fixed image, in its intensities,
    with the deformed one where it is marked; with marks of the moving image only, the deformed image with
    the fixed one there.
    """

    deformed: Volume
    change: Volume
    metamorphic: Volume
    healthy: Volume

    @property
    def volumes(self) -> tuple[Volume, ...]:
        """All four, in the order above."""
        return self.deformed, self.change, self.metamorphic, self.healthy


def appearance(
    fixed: Volume,
    moved: Volume,
    transform: Transform,
    pathology: Pathology,
    *,
    source: Tensor | None = None,
    rho_mm2: float = CHANGE_RHO_MM2,
) -> Appearance:
    """What the pathology adds to a registered image.

    moved: the moving image on the fixed grid by `transform`, fixed -> moving points, RAS mm.
    source: a network's own q on the fixed grid, (*shape), in the intensities of `moved`; None: the best one
    of smoothness `rho_mm2`.
    Raises ShapeError when an image or the source is on another grid.
    """
    if moved.grid.shape != fixed.grid.shape or (source is not None and source.shape != fixed.data.shape):
        raise ShapeError("The moved image and the source are needed on the grid of the fixed image.")
    fixed, moved = finite(fixed), finite(moved)  # one NaN would spread over all of the source
    own, carried = carried_marks(pathology, transform, fixed.grid)
    marks = own + carried - own * carried
    scale, offset = matched(fixed, moved, marks)
    there = fixed.data.to(torch.float32)
    deformed = moved.data.to(torch.float32)
    if source is None:
        source = _source((there - offset) / scale - deformed, marks, fixed.grid, rho_mm2)
    change = source.to(deformed) * marks
    if bool(own.any()) or not bool(carried.any()):
        healthy = torch.lerp(there, deformed * scale + offset, own)
    else:
        healthy = torch.lerp(deformed, (there - offset) / scale, carried)
    return Appearance(
        replace(moved, data=deformed),
        Volume(change, fixed.grid, f"{fixed.name}_appearance_change"),
        Volume(deformed + change, fixed.grid, f"{fixed.name}_metamorphic"),
        Volume(healthy, fixed.grid, f"{fixed.name}_healthy"),
    )


def _source(residual: Tensor, marks: Tensor, grid: Grid, rho_mm2: float) -> Tensor:
    """The best source, (*shape), computed where there are marks, 0 elsewhere."""
    source = torch.zeros_like(residual)
    box = box_of(marks[None, None])
    if box is not None:
        source[box] = smooth_source(residual[box][None, None], marks[box][None, None], grid.spacing, rho_mm2)[
            0, 0
        ]
    return source


def matched(fixed: Volume, moved: Volume, marks: Tensor) -> tuple[float, float]:
    """Scale and offset that turn intensities of the moved image into those of the fixed one.

    marks: (*shape).  By mean and standard deviation of unmarked voxels around the pathology, of all of them
    where those are few or flat; 1 and 0 where all are.
    """
    box = box_of(marks[None, None])
    everywhere = tuple(slice(0, n) for n in marks.shape)
    tried = [everywhere]
    if box is not None:
        margins = [math.ceil(AROUND_MM / step) for step in fixed.grid.spacing]
        tried.insert(
            0, tuple(slice(max(0, b.start - m), b.stop + m) for b, m in zip(box, margins, strict=True))
        )
    for part in tried:
        chosen = marks[part] == 0
        there, deformed = (image.data[part][chosen].double() for image in (fixed, moved))
        if len(there) < FEWEST_VOXELS or not float(there.std()) > 0 or not float(deformed.std()) > 0:
            continue
        scale = float(there.std() / deformed.std())
        return scale, float(there.mean()) - scale * float(deformed.mean())
    return 1.0, 0.0
