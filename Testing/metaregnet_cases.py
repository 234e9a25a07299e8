"""A lesion, and the loss of MetaRegNet's paper."""

from __future__ import annotations

import torch

from DiffeoRegLib.training.config import LossConfig
from DiffeoRegLib.training.objective import Objective

SHAPE = (40, 44)
LESION = (slice(None), slice(None), slice(12, 24), slice(16, 30))
PAPER = [("mse", 1.0), ("appearance", 1.0), ("folds", 1e-3)]


def lesion(shape=SHAPE):
    """1 inside a box, (1, 1, *shape)."""
    mask = torch.zeros(1, 1, *shape)
    mask[LESION] = 1
    return mask


def objective(terms=PAPER, **how):
    """Of one direction and the whole image, unless said otherwise."""
    options = {"symmetric": False, "mask_outside": False, **how}
    return Objective([LossConfig(name, weight) for name, weight in terms], **options)
