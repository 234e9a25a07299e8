"""Flows by scaling and squaring: displacement of exp(v) from a velocity field."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from DiffeoRegLib.errors import InputError, SettingsError
from DiffeoRegLib.space.field import compose, require_field
from DiffeoRegLib.space.sample import warp

Squarings = int | Literal["auto"]

LARGEST_FIRST_STEP_VOX = 0.5
LARGEST_MIDPOINT_STEP_VOX = 1.0
"""With a first step of order 2 the same accuracy is reached from a longer one."""
FEWEST_AUTO_SQUARINGS = 4
MOST_SQUARINGS = 20


def exp(
    velocity_vox: Tensor, squarings: Squarings = 6, *, first_step: Literal[1, 2] = 1, time: float = 1.0
) -> Tensor:
    """Flow of a stationary velocity, by scaling and squaring.

    velocity_vox: (N, d, *spatial), voxels per unit time.  Returns the displacement, voxels; exp(-v) is its
    inverse up to discretisation.
    squarings: 2^squarings equal steps; `auto` takes the fewest (at least 4) whose first step stays below
    half a voxel.
    first_step: order of the first short step, 1 = v/2^k, 2 = midpoint (one more sampling, error of the
    step scheme then falls by 4 per squaring instead of 2).
    time: how long the velocity acts; at -1 this is exp(-v) without a second velocity in memory.
    Raises ShapeError for anything but a field, SettingsError for a negative or absurd number of squarings,
    InputError for `auto` on a velocity that is not finite.
    Source: Arsigny et al., A Log-Euclidean framework for statistics on diffeomorphisms, MICCAI 2006.
    """
    require_field(velocity_vox)
    count = choose_squarings(velocity_vox) if squarings == "auto" else squarings
    if not 0 <= count <= MOST_SQUARINGS:
        raise SettingsError(f"Scaling and squaring takes 0 to {MOST_SQUARINGS} squarings, not {count}.")
    u_vox = velocity_vox * (time * 2.0**-count)
    if first_step == 2:
        u_vox = warp(u_vox, u_vox * 0.5)
    elif first_step != 1:
        raise SettingsError(f"The first step has order 1 or 2, not {first_step}.")
    for _ in range(count):
        u_vox = compose(u_vox, u_vox)
    return u_vox


def choose_squarings(velocity_vox: Tensor) -> int:
    """Fewest squarings (at least 4) that bring every component of the first step below half a voxel."""
    largest = float(velocity_vox.detach().abs().amax()) if velocity_vox.numel() else 0.0
    if not math.isfinite(largest):
        raise InputError("The velocity field contains NaN or infinite values.")
    if largest <= LARGEST_FIRST_STEP_VOX:
        return FEWEST_AUTO_SQUARINGS
    needed = math.ceil(math.log2(largest / LARGEST_FIRST_STEP_VOX))
    return min(max(FEWEST_AUTO_SQUARINGS, needed), MOST_SQUARINGS)


def exp_time_varying(
    velocities_vox: Tensor, squarings: Squarings = 4, *, inverse: bool = False, first_step: Literal[1, 2] = 1
) -> Tensor:
    """Flow for unit time of a velocity constant on T equal intervals: a composition of T exponentials.

    velocities_vox: (T, d, *spatial), voxels per unit time, first interval first.  Returns (1, d, *spatial):
    exp(v_T/T) o ... o exp(v_1/T), or with `inverse` exp(-v_1/T) o ... o exp(-v_T/T).
    Raises as `exp`.
    """
    require_field(velocities_vox)
    count = len(velocities_vox)
    if count == 0:
        raise SettingsError("A time-varying velocity needs at least one interval.")
    order = range(count - 1, -1, -1) if inverse else range(count)
    scale = (-1.0 if inverse else 1.0) / count
    u_vox = torch.zeros_like(velocities_vox[:1])
    for position, index in enumerate(order):
        step = exp(velocities_vox[index : index + 1] * scale, squarings, first_step=first_step)
        u_vox = step if position == 0 else compose(step, u_vox)
    return u_vox


def midpoint_squarings(
    velocity_vox: Tensor, largest_vox: float = LARGEST_MIDPOINT_STEP_VOX, fewest: int = 2
) -> int:
    """Fewest squarings that keep a first step of order 2 below a length, voxels.

    Raises InputError for a velocity that is not finite.
    """
    largest = float(velocity_vox.detach().abs().amax()) if velocity_vox.numel() else 0.0
    if not math.isfinite(largest):
        raise InputError("The velocity field contains NaN or infinite values.")
    if largest <= largest_vox:
        return fewest
    return min(max(fewest, math.ceil(math.log2(largest / largest_vox))), MOST_SQUARINGS)


def midpoint_exp(velocity_vox: Tensor) -> Tensor:
    """Flow of a stationary velocity with as few squarings as a first step of order 2 allows; see `exp`."""
    return exp(velocity_vox, midpoint_squarings(velocity_vox), first_step=2)
