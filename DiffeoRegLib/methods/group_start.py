"""Rigid or affine alignment of a group to its mean, before anything is deformed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.linalg import expm, logm

from DiffeoRegLib.methods.affine import initial_alignment
from DiffeoRegLib.methods.base import Progress, Report
from DiffeoRegLib.settings import Settings
from DiffeoRegLib.space.grid import Grid, Matrix
from DiffeoRegLib.space.transform import AffineTransform
from DiffeoRegLib.volumes.intensity import finite, intensity_window
from DiffeoRegLib.volumes.resample import warp_volume
from DiffeoRegLib.volumes.volume import Volume

ROUNDS = 2
"""The first mean is that of images aligned to one of them; the next is sharper."""


def aligned_to_the_mean(
    images: Sequence[Volume],
    view: Grid,
    fixed: int | None,
    settings: Settings,
    notes: list[str],
    report: Report,
) -> list[Matrix]:
    """Matrices (RAS mm 4x4, common -> image), one per image: `settings.init` says rigid or affine.

    First to one image, then to the mean of all so aligned.  All-moving: the mean of their logarithms is
    taken off, so that the common space has the mean place, and size, of the group; else image `fixed` stays.
    Raises NoOverlapError.
    """
    anchor = 0 if fixed is None else fixed
    target, found = images[anchor], [np.eye(4) for _ in images]
    total = len(images) * (ROUNDS if fixed is None else 1)
    for turn in range(ROUNDS if fixed is None else 1):
        for index, image in enumerate(images):
            report(Progress("align", (turn * len(images) + index) / total, f"aligning '{image.name}'"))
            if turn == 0 and index == anchor:
                continue
            found[index] = initial_alignment(target, image, settings)
        if fixed is None:
            found = centred_matrices(found)
            target = _mean(images, found, view)
    notes.append(
        f"Initial alignment: {settings.init}, every image to "
        + ("the mean of all." if fixed is None else f"'{images[anchor].name}'.")
    )
    return found


def centred_matrices(matrices: Sequence[Matrix]) -> list[Matrix]:
    """The matrices, with the mean of their logarithms taken off: M_k exp(-mean log M)."""
    mean = np.mean([np.real(logm(matrix)) for matrix in matrices], axis=0)
    back = np.asarray(expm(-mean), dtype=np.float64)
    return [np.asarray(matrix @ back, dtype=np.float64) for matrix in matrices]


def _mean(images: Sequence[Volume], matrices: Sequence[Matrix], view: Grid) -> Volume:
    """Of all images as they lie, each scaled by its own window."""
    total = torch.zeros(view.shape)
    for image, matrix in zip(images, matrices, strict=True):
        low, high = intensity_window(image)
        moved = warp_volume(finite(image), AffineTransform(matrix), view, fill=low)
        total += ((moved.data - low) / (high - low)).clamp(0, 1)
    return Volume(total / len(images), view, "mean")
