"""Motions whose velocities change in time and are followed step by step, from velocities to finished maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from DiffeoRegLib.errors import SettingsError
from DiffeoRegLib.flows.closing import close
from DiffeoRegLib.flows.integrate import Flow
from DiffeoRegLib.flows.time_varying import Order, enough_steps, in_steps, largest_slope, position_at
from DiffeoRegLib.space.field import change_grid
from DiffeoRegLib.space.grid import Grid


@torch.no_grad()
def followed(
    velocity_vox: Tensor,
    grid: Grid,
    order: Order,
    steps: int,
    working: Grid,
    cover: Grid,
    taper_mm: float | None = None,
    time: float = 1.0,
) -> Flow:
    """The map at a time in [0, 1], closed around `cover`; found on the CPU, so that it is the same again.

    velocity_vox: (T, d, *grid.shape), voxels of `grid` per unit time, each for 1/T.  steps: of equal length.
    working: the grid the map is read on.  cover, taper_mm: see `flows.closing.close`.
    Raises like `flows.time_varying.position_at`.
    """
    u_vox = position_at(per_step(velocity_vox.cpu()), steps, order, time)
    flow = close(change_grid(u_vox, grid, working), working, cover, taper_mm)
    return replace(flow, steps=steps)


def per_step(velocity_vox: Tensor) -> list[Tensor]:
    """Velocities (T, d, *grid), voxels per unit time, as T fields (1, d, *grid), voxels per step."""
    return list(torch.split(velocity_vox / len(velocity_vox), 1))


def per_time(velocities_vox: Sequence[Tensor]) -> Tensor:
    """What `per_step` undoes up to rounding."""
    return torch.cat(list(velocities_vox)) * len(velocities_vox)


def chosen_steps(velocity_vox: Tensor, order: Order, wanted: int | Literal["auto"], most: int) -> int:
    """How many steps a motion is followed in: as many as wanted, or those of `enough_steps` up to `most`.

    Raises SettingsError for the order `official` in other steps than fields.
    """
    fields = len(velocity_vox)
    if order == "official":
        if wanted not in ("auto", fields):
            raise SettingsError(
                f"The official order follows its {fields} fields in {fields} steps, not in {wanted}: leave "
                "the steps at auto, or take the order 'paper'."
            )
        return fields
    return enough_steps(per_step(velocity_vox.cpu()), most) if wanted == "auto" else wanted


def said(velocity_vox: Tensor, order: Order, steps: int) -> str:
    """For the report: how many steps, how many fields, and whether every step is one to one."""
    fields = len(velocity_vox)
    parts = per_step(velocity_vox.cpu())
    slope = max(largest_slope(step) for step in in_steps(parts, steps))
    how = f"{steps} time steps of the order '{order}'"
    if steps != fields:
        how += f", where the network was trained with {fields}"
    if order == "official":
        return (
            f"{how}; this order is no composition of steps: only the finished map is known to have no fold."
        )
    if slope < 1:
        return f"{how}; every step is one to one: its slope is {slope:.2g} at most, below 1."
    return (
        f"{how}; the steepest slope of a step is {slope:.2g}, and only below 1 a step is surely one to one: "
        "more steps bring it down."
    )
