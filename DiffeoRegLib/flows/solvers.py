"""Explicit Runge-Kutta integration of dx/dt = v(t, x): fields or points, forwards or backwards in time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from DiffeoRegLib.errors import SettingsError, UnknownNameError
from DiffeoRegLib.flows.velocity import Velocity
from DiffeoRegLib.space.sample import identity_vox

Slope = Callable[[float, Tensor], Tensor]  # (time, displacement so far) -> velocity there


@dataclass(frozen=True)
class Solver:
    """One way to step.

    order: the error at the end falls as step^order for a smooth velocity. evaluations: samplings per step.
    increment(slope, time, u, h) is the displacement gained in a step of length h (negative = back in time).
    """

    name: str
    order: int
    evaluations: int
    increment: Callable[[Slope, float, Tensor, float], Tensor]


def _euler(slope: Slope, time: float, u: Tensor, h: float) -> Tensor:
    return h * slope(time, u)


def _midpoint(slope: Slope, time: float, u: Tensor, h: float) -> Tensor:
    return h * slope(time + h / 2, u + (h / 2) * slope(time, u))


def _rk4(slope: Slope, time: float, u: Tensor, h: float) -> Tensor:
    k1 = slope(time, u)
    k2 = slope(time + h / 2, u + (h / 2) * k1)
    k3 = slope(time + h / 2, u + (h / 2) * k2)
    k4 = slope(time + h, u + h * k3)
    return (h / 6) * (k1 + 2 * (k2 + k3) + k4)


EULER = Solver("euler", 1, 1, _euler)
MIDPOINT = Solver("midpoint", 2, 2, _midpoint)
RK4 = Solver("rk4", 4, 4, _rk4)
SOLVERS = {solver.name: solver for solver in (EULER, MIDPOINT, RK4)}


def solver_named(name: str) -> Solver:
    """Solver of that name; raises UnknownNameError with the right ones."""
    if name not in SOLVERS:
        raise UnknownNameError("solver", name, SOLVERS)
    return SOLVERS[name]


def integrate_from(
    velocity: Velocity,
    position_vox: Tensor,
    *,
    steps: int,
    solver: Solver = RK4,
    start: float = 0.0,
    stop: float = 1.0,
) -> Tensor:
    """Displacement gathered from time `start` to `stop` by particles at `position_vox` at `start`.

    position_vox: (N, d, *out), voxels.  Returns the same shape, voxels: position at `stop` minus start.
    steps: equal steps for the whole way; a velocity that jumps in time gets at least one per piece, so
    that no step crosses a jump and the order holds.  stop < start follows the flow backwards.
    Raises SettingsError for fewer than one step or a time that is not finite.
    """
    if steps < 1:
        raise SettingsError(f"An integration needs at least one step, not {steps}.")
    if not (math.isfinite(start) and math.isfinite(stop)):
        raise SettingsError(f"An integration runs between finite times, not {start} and {stop}.")
    u_vox = torch.zeros_like(position_vox)
    if start == stop:
        return u_vox
    for first, last, piece in velocity.pieces(start, stop):
        count = max(1, math.ceil(steps * abs((last - first) / (stop - start)) - 1e-9))
        h = (last - first) / count

        def slope(time: float, u: Tensor, piece: Velocity = piece) -> Tensor:
            return piece(time, position_vox + u)

        for index in range(count):
            u_vox = u_vox + solver.increment(slope, first + index * h, u_vox, h)
    return u_vox


def integrate(
    velocity: Velocity,
    shape: Sequence[int],
    *,
    steps: int,
    solver: Solver = RK4,
    start: float = 0.0,
    stop: float = 1.0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """Displacement field (N, d, *shape) of the flow from `start` to `stop`; `integrate_from` every voxel.

    integrate(start=1, stop=0) is the inverse of integrate(start=0, stop=1) up to the solver's error.
    """
    return integrate_from(
        velocity, identity_vox(shape, dtype, device), steps=steps, solver=solver, start=start, stop=stop
    )
