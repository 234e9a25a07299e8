"""Small patients of a metamorphosis, with the true map, and how far off a motion is."""

from __future__ import annotations

import dataclasses

import torch

from DiffeoRegLib.flows.exponential import exp
from DiffeoRegLib.settings import Settings
from DiffeoRegLib.space.field import change_grid, compose
from DiffeoRegLib.space.sample import identity_vox, warp
from DiffeoRegLib.training.lesions import LesionOptions, implant
from DiffeoRegLib.volumes.pathology import PlacedPathology, softened
from Testing.scenes import pair_of, smooth_velocity, texture

SETTINGS = Settings(levels_mm=(4.0, 2.0), iterations=(20, 20), large_displacement=False)
SHAPE = (72, 64)
LESION = LesionOptions(
    count=(1, 1), radius_vox=(7.0, 8.0), growth=(0.5, 0.5), reaches_vox=(12.0,), oedema=0.0, looks=("t1c",)
)


def quiet(_):
    pass


def register(method, pair, settings=SETTINGS, motion=None):
    if motion is None:
        motion = method.predict(pair, settings, quiet)
    return method.refine(motion, pair, settings, quiet)


def displacement(motion, grid):
    return exp(change_grid(motion.velocity_vox, motion.grid, grid), 7, first_step=2)


def brain(shape=SHAPE, seed=0):
    """Texture in an ellipse on nothing."""
    place = identity_vox(shape) / torch.tensor(shape).view(1, -1, *[1] * len(shape)).float() - 0.5
    inside = torch.sigmoid(60 * (0.44 - place.square().sum(1, keepdim=True).sqrt()))
    return (0.25 + 0.75 * texture(shape, seed=seed, sigma=2.0)) * inside


def patient(seed=0, shape=SHAPE, **changes):
    """(pair without marks, marks, true displacement): a bent brain with a solid lesion that pushes."""
    moving = brain(shape)
    bend = exp(smooth_velocity(shape, 2.0), 6)
    ill = implant(
        warp(moving, bend), torch.Generator().manual_seed(seed), dataclasses.replace(LESION, **changes)
    )
    return pair_of(ill.image, moving, [2.0] * len(shape)), ill.pathology, compose(bend, ill.u_vox)


def marked(pair, fixed=None, moving=None):
    return dataclasses.replace(pair, pathology=PlacedPathology(fixed, moving))


def errors_mm(motion, pair, truth, marks):
    """Mean error under the marks and up to 10 mm from them."""
    length = 2.0 * (displacement(motion, pair.grid) - truth).square().sum(1, keepdim=True).sqrt()
    near = softened(marks, (1.0, 1.0), 10.0) > 0.05
    return float(length[marks > 0].mean()), float(length[near & (marks == 0)].mean())
