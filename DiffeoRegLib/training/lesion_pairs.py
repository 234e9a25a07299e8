"""Healthy images on patients made from healthy images: pairs with lesions drawn anew in every epoch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from DiffeoRegLib.errors import InputError
from DiffeoRegLib.flows.exponential import exp
from DiffeoRegLib.flows.inversion import invert_at
from DiffeoRegLib.space.field import compose
from DiffeoRegLib.space.sample import warp
from DiffeoRegLib.training.draws import generator_for
from DiffeoRegLib.training.lesions import Implanted, LesionOptions, implant
from DiffeoRegLib.training.pairs import Item
from DiffeoRegLib.training.shapes import ShapeOptions, velocity


class LesionPairs(Dataset[Item]):
    """The pairs of a data set with lesions in the fixed image, drawn by the seed, the epoch and the index.

    Items hold `pathology` (1, *shape), 1 inside lesions.  Labels, mask and landmarks of the fixed image move
    with its tissue; labels are 0 where tissue was replaced.  A pair whose fixed image has a pathology of its
    own stays as it is.  The images are read without their skull: what is dark around them is not the organ.
    """

    def __init__(self, pairs: Any, options: LesionOptions, *, seed: int = 0) -> None:
        self.pairs, self.options, self.seed = pairs, options, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order and the lesions of an epoch."""
        self.epoch = epoch
        self.pairs.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Item:
        """One pair; raises InputError that names it where its fixed image has no room for a lesion."""
        item: Item = dict(self.pairs[index])
        if "pathology" in item and bool(item["pathology"].any()):
            return item
        generator = generator_for("lesions", self.seed, self.epoch, index)
        try:
            patient = implant(item["fixed"][None], generator, self.options)
        except InputError as error:
            raise InputError(f"{item['names']}: {error}") from error
        item["fixed"], item["pathology"] = patient.image[0], patient.pathology[0]
        if "fixed_labels" in item:
            item["fixed_labels"] = patient.labels(item["fixed_labels"][None])[0]
        if "fixed_mask" in item:
            item["fixed_mask"] = warp(item["fixed_mask"][None], patient.u_vox, outside="zeros")[0]
        if "fixed_points_vox" in item:
            points = item["fixed_points_vox"]
            item["fixed_points_vox"] = invert_at(patient.u_vox, points).to(points.dtype)
        return item


@torch.no_grad()
def known_pair(
    image: Tensor, generator: torch.Generator, lesions: LesionOptions, motion: ShapeOptions | None = None
) -> tuple[Tensor, Implanted, Tensor]:
    """A healthy and a pathological image of one anatomy with the true map between them.

    image: healthy (1, 1, *shape) in [0, 1].  motion: limits of a random flow that bends the moving image, as
    if it were another person's; None = the moving image is `image`.
    Returns the moving image, the patient, and the displacement (1, d, *shape), voxels, from the patient to
    the moving image: moving(x + truth(x)) is what the patient's tissue at x looks like.
    Raises as `implant`.
    """
    patient = implant(image, generator, lesions)
    if motion is None:
        return image, patient, patient.u_vox
    flow = velocity(generator, image.shape[2:], motion, image.device).to(image.dtype)
    bent, back = (exp(flow, "auto", first_step=2, time=time) for time in (1.0, -1.0))
    return warp(image, bent), patient, compose(back, patient.u_vox)
