"""What several images look like where a set of maps brings them: mean, spread, and how alike they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from DiffeoRegLib.metrics import Labels, dice_over_pairs
from DiffeoRegLib.space.filters import gaussian_smooth
from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.space.sample import array_from_tensor, tensor_from_array
from DiffeoRegLib.space.transform import Transform
from DiffeoRegLib.volumes.group import goes_on
from DiffeoRegLib.volumes.intensity import finite, intensity_window, normalise
from DiffeoRegLib.volumes.resample import warp_labels, warp_volume
from DiffeoRegLib.volumes.volume import Volume


@dataclass(frozen=True, eq=False)
class Look:
    """Images under a map each, all on one grid.

    mean, deviation: of their intensities, scaled to 0..1 each; of the images that reach a voxel.
    reached: where at least half of the images see something; all numbers are of these voxels.
    labels: what most label maps say of a voxel, None without any.  dice: mean over all pairs of them.
    """

    mean: Volume
    deviation: Volume
    reached: Tensor
    labels: Volume | None = None
    dice: float | None = None

    @classmethod
    def of(
        cls,
        images: Sequence[Volume],
        ways: Sequence[Transform],
        view: Grid,
        labels: Sequence[Volume] | None = None,
    ) -> Look:
        """One image at a time in memory.  ways: points of `view` to those of each image, RAS mm.

        An image that cuts its object says nothing beyond its field of view and is left out of the mean there.
        """
        total, squares, count = (torch.zeros(view.shape) for _ in range(3))
        for image, way in zip(images, ways, strict=True):
            window = intensity_window(image)
            fill = float("nan") if goes_on(image) else window[0]
            values = warp_volume(finite(image), way, view, fill=fill).data.float()
            seen = ~values.isnan()
            values = normalise(values.nan_to_num(window[0]), window) * seen
            total += values
            squares += values.square()
            count += seen
        reached = 2 * count >= len(images)
        count.clamp_(min=1)
        mean = total / count
        spread = (squares / count - mean.square()).clamp(min=0).sqrt()
        look = Volume(mean, view, "mean"), Volume(spread, view, "deviation"), reached
        if labels is None:
            return cls(*look)
        maps = [
            array_from_tensor(warp_labels(one, way, view).data) for one, way in zip(labels, ways, strict=True)
        ]
        found = tensor_from_array(most_frequent(maps), torch.int32)
        return cls(*look, Volume(found, view, "labels", is_labels=True), dice_over_pairs(maps))

    def sharpened(self, share: float) -> Volume:
        """The mean with a share of what smoothing by one voxel takes from it."""
        values: Tensor = self.mean.data[None, None]
        smooth = gaussian_smooth(values, 1.0)
        return Volume((values + share * (values - smooth))[0, 0].clamp(0, 1), self.mean.grid, "template")

    def facts(self, stage: str, earlier: Look | None = None, sharpening: float = 0.0) -> dict[str, Any]:
        """How much the images still differ, how sharp their mean is, how alike their labels are.

        earlier: the look of the round before, and with which sharpening the templates were made: how much
        the template has changed since.
        """
        change = None
        if earlier is not None:
            step = self.sharpened(sharpening).data - earlier.sharpened(sharpening).data
            change = float(step[self.reached & earlier.reached].square().mean().sqrt())
        return {
            "stage": stage,
            "deviation": float(self.deviation.data[self.reached].mean()),
            "gradient_per_mm": gradient_per_mm(self.mean, self.reached),
            "dice": self.dice,
            "change": change,
        }


def gradient_per_mm(image: Volume, within: Tensor | None = None) -> float:
    """Root of the mean square of an image's gradient, per mm: a blurred edge has less of it.

    within: the voxels that count, where all their neighbours count, too; None = all.
    """
    steps = torch.gradient(image.data.float(), spacing=list(image.grid.spacing))
    squares = torch.stack(steps).square().sum(0)
    if within is not None:
        edges = torch.gradient(within.float())
        squares = squares[within & (torch.stack(edges).abs().sum(0) == 0)]
    return float(squares.mean().sqrt())


def most_frequent(maps: Sequence[Labels]) -> Labels:
    """The label that most maps have at a voxel, the smallest of those on a tie; all maps of one shape."""
    best = np.zeros(maps[0].shape, dtype=np.int32)
    votes = np.zeros(maps[0].shape, dtype=np.int32)
    for name in np.unique(np.concatenate([np.unique(one) for one in maps])):
        count = np.zeros_like(votes)
        for one in maps:
            count += one == name
        more = count > votes
        best[more], votes[more] = name, count[more]
    return best
