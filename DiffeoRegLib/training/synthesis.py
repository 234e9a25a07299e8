"""Pairs from nothing: random shapes seen in random contrasts, for networks that do not depend on contrast.

Own implementation of the idea of Hoffmann et al., SynthMorph: learning contrast-invariant registration
without acquired images, IEEE TMI 2022.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch.utils.data import Dataset

from DiffeoRegLib.errors import SettingsError
from DiffeoRegLib.space.field import compose
from DiffeoRegLib.space.sample import warp
from DiffeoRegLib.training.contrasts import ContrastOptions, palette, picture
from DiffeoRegLib.training.draws import generator_for, number
from DiffeoRegLib.training.pairs import Item
from DiffeoRegLib.training.shapes import ShapeOptions, label_map, motion_pair


@dataclass(frozen=True)
class Synthesis:
    """What synthetic pairs look like; shape: voxels per tensor axis, two or three.

    with_truth: items also hold `truth_vox`, the displacement (d, *shape) from fixed to moving voxels.
    """

    shape: tuple[int, ...]
    shapes: ShapeOptions = field(default_factory=ShapeOptions)
    contrasts: ContrastOptions = field(default_factory=ContrastOptions)
    with_truth: bool = False

    def __post_init__(self) -> None:
        if len(self.shape) not in (2, 3) or min(self.shape) < 8:
            raise SettingsError(
                f"Synthetic images have two or three axes of 8 or more voxels, not {self.shape}."
            )


class SyntheticPairs(Dataset[Item]):
    """Endless random pairs as a data set of `pairs_per_epoch`; every epoch shows new ones.

    device: where they are made; the numbers are drawn on the CPU, so they are the same on every device up to
    rounding.  Raises SettingsError for an epoch without pairs.
    """

    def __init__(
        self,
        options: Synthesis,
        *,
        pairs_per_epoch: int,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        if pairs_per_epoch < 1:
            raise SettingsError(f"An epoch has at least one pair, not {pairs_per_epoch}.")
        self.options = options
        self.pairs_per_epoch = pairs_per_epoch
        self.seed = seed
        self.device = torch.device(device)
        self.set_epoch(0)

    def set_epoch(self, epoch: int, position: int = 0) -> None:
        """Choose an epoch; item 0 is then its pair number `position` (to resume).

        Raises SettingsError for a position beyond the epoch.
        """
        if not 0 <= position <= self.pairs_per_epoch:
            raise SettingsError(f"An epoch of {self.pairs_per_epoch} pairs has no position {position}.")
        self.epoch, self.position = epoch, position

    def __len__(self) -> int:
        return self.pairs_per_epoch - self.position

    def __getitem__(self, index: int) -> Item:
        """One pair with its labels, see `synthetic_pair`."""
        if not 0 <= index < len(self):
            raise IndexError(f"{index} of {len(self)} pairs")
        number_ = self.epoch * self.pairs_per_epoch + self.position + index
        return synthetic_pair(self.options, self.seed, number_, self.device)


@torch.no_grad()
def synthetic_pair(options: Synthesis, seed: int, index: int, device: torch.device | str = "cpu") -> Item:
    """The pair number `index` of a seed: two images of one random anatomy, deformed and coloured at random.

    Returns moving, fixed (1, *shape) in [0, 1], moving_labels, fixed_labels (1, *shape) int64, names, and
    truth_vox if asked for.
    """
    place = torch.device(device)
    generator = generator_for("synthesis", seed, index)
    template, count, on_background = label_map(generator, options.shape, options.shapes, place)
    to_fixed, to_moving, back = motion_pair(generator, options.shape, options.shapes, place)
    contrasts = options.contrasts
    same = number(generator, 0, 1) < contrasts.same_probability
    colours = palette(generator, count, contrasts, on_background=on_background)
    others = colours if same else palette(generator, count, contrasts, on_background=on_background)
    item: Item = {"names": f"synthetic pair {seed}/{index}"}
    for side, motion, used in (("fixed", to_fixed, colours), ("moving", to_moving, others)):
        labels = warp(template.float(), motion, mode="nearest").round().to(torch.int64)
        item[side] = picture(labels, used, generator, contrasts)[0]
        item[f"{side}_labels"] = labels[0]
    if options.with_truth:
        item["truth_vox"] = compose(back, to_fixed)[0]
    return item
