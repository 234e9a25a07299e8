"""Flows of velocities that change in time, by plain steps: what a TransMorph-TVF network predicts.

N fields v_1 ... v_N make a map phi_N = Id + u_N, each added as one step of unit length (or as several shorter
ones).  The orders differ in where a field is read:
* `paper`: phi_t = (Id + v_t) o phi_{t-1}, so u_t(x) = u_{t-1}(x) + v_t(x + u_{t-1}(x)): Euler's method;
* `residual`: phi_t = phi_{t-1} o (Id + v_t), so u_t(x) = v_t(x) + u_{t-1}(x + v_t(x));
* `official`: u_t(x) = u_{t-1}(x) + v_t(x + v_t(x)), as in the code of the released weights. Its author calls
  it a mistake: it is no composition, and its sampling is off by up to half a voxel.
Nothing makes a step invertible but its own smoothness: see `safe_substeps`.
Source: Chen, Frey and Du, TransMorph-TVF (Unsupervised Learning of Diffeomorphic Image Registration via
TransMorph), WBIR 2022, and the discussion of its composition in the authors' repository.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from DiffeoRegLib.errors import InputError, SettingsError, ShapeError, UnknownNameError
from DiffeoRegLib.flows.inversion import invert
from DiffeoRegLib.space.field import compose, upsample_field, upsample_image
from DiffeoRegLib.space.jacobian import require_field
from DiffeoRegLib.space.sample import identity_vox, sample, warp

Order = Literal["paper", "residual", "official"]
ORDERS: tuple[Order, ...] = ("official", "paper", "residual")
InverseKind = Literal["global", "per-step", "negated"]
INVERSES: tuple[InverseKind, ...] = ("global", "negated", "per-step")

MOST_SUBSTEPS = 32
SAFE_SLOPE = 0.9
"""Below 1 a step Id + v is one to one; the rest is for rounding."""
INVERSE_TOLERANCE_VOX = 1e-3
STEP_ITERATIONS = 3


def advance(u_vox: Tensor | None, velocity_vox: Tensor, order: Order = "paper") -> Tensor:
    """The displacement after one more field, (N, d, *grid), voxels.

    u_vox: of the fields before, None = the identity.  velocity_vox: (N, d, *grid), voxels per step.
    Raises UnknownNameError for an unknown order, ShapeError for fields on different grids.
    """
    _check_order(order)
    if order == "official":
        step = published_warp(velocity_vox, velocity_vox)
        return step if u_vox is None else u_vox + step
    if u_vox is None:
        return velocity_vox
    return compose(velocity_vox, u_vox) if order == "paper" else compose(u_vox, velocity_vox)


def states(velocities_vox: Sequence[Tensor], order: Order = "paper", substeps: int = 1) -> Iterator[Tensor]:
    """The displacement after every field: N tensors (N, d, *grid), voxels, one at a time.

    velocities_vox: of the N steps, each (N, d, *grid), voxels per step.
    substeps: each field is followed in so many equal parts, so that N fields take N * substeps steps.
    Raises ShapeError for no fields or different shapes, SettingsError for substeps that cannot be.
    """
    _check(velocities_vox, order, substeps)
    u_vox: Tensor | None = None
    for velocity in velocities_vox:
        part = velocity / substeps if substeps > 1 else velocity
        for _ in range(substeps):
            u_vox = advance(u_vox, part, order)
        if u_vox is not None:
            yield u_vox


def integrate_steps(velocities_vox: Sequence[Tensor], order: Order = "paper", substeps: int = 1) -> Tensor:
    """The displacement after all fields, (N, d, *grid), voxels; arguments and errors as in `states`."""
    _check(velocities_vox, order, substeps)
    u_vox = velocities_vox[0]
    for state in states(velocities_vox, order, substeps):
        u_vox = state
    return u_vox


def until(velocities_vox: Sequence[Tensor], time: float) -> list[Tensor]:
    """The fields that act until a time in [0, 1]: whole steps, and a share of the one that is under way.

    At least one field, at time 0 the first times 0.  Raises SettingsError for another time.
    """
    if not 0 <= time <= 1:
        raise SettingsError(f"The time of a path lies in 0 ... 1, not at {time}.")
    whole = math.floor(time * len(velocities_vox) + 1e-9)
    rest = time * len(velocities_vox) - whole
    held = list(velocities_vox[:whole])
    if rest > 1e-9 or not held:
        held.append(velocities_vox[whole] * max(rest, 0.0))
    return held


def in_steps(velocities_vox: Sequence[Tensor], steps: int) -> list[Tensor]:
    """The same motion in other equal steps: what the fields add up to over each of so many intervals of time.

    velocities_vox: of the N steps, each (N, d, *grid), voxels per step.  steps: 1 or more; N gives them back.
    Raises ShapeError for no fields or different shapes, SettingsError for no steps.
    """
    _check(velocities_vox, "paper", 1)
    if steps < 1:
        raise SettingsError(f"A path is followed in 1 step or more, not {steps}.")
    fields = len(velocities_vox)
    if steps == fields:
        return list(velocities_vox)
    found = []
    for number in range(steps):
        # Time counts in parts of 1 / (fields * steps), so that every interval begins and ends at a whole one.
        begin, end = number * fields, (number + 1) * fields
        share: Tensor | None = None
        for index in range(begin // steps, -(-end // steps)):
            length = min(end, (index + 1) * steps) - max(begin, index * steps)
            part = velocities_vox[index] * (length / steps)
            share = part if share is None else share + part
        assert share is not None
        found.append(share)
    return found


def position_at(
    velocities_vox: Sequence[Tensor], steps: int, order: Order = "paper", time: float = 1.0
) -> Tensor:
    """The displacement at a time in [0, 1] of a motion that is followed in so many steps, (N, d, *grid).

    velocities_vox: as in `in_steps`; those of the order `official` in true lengths, which are half of what
    its networks predict and its code samples by.
    Raises like `in_steps` and `until`, and SettingsError for the order `official` in other steps than fields.
    """
    _check_order(order)
    if order != "official":
        return integrate_steps(until(in_steps(velocities_vox, steps), time), order)
    if steps != len(velocities_vox):
        raise SettingsError(
            f"The official order follows its {len(velocities_vox)} fields in one step each, not in {steps} "
            "steps; take the order 'paper' for those."
        )
    return 0.5 * integrate_steps([2 * field for field in until(velocities_vox, time)], order)


def enough_steps(velocities_vox: Sequence[Tensor], most: int) -> int:
    """Fewest multiple of the number of fields for which every step is one to one, if that is at most `most`.

    Else the largest multiple up to `most`, or one step per field.  Raises like `safe_substeps`.
    """
    fields = len(velocities_vox)
    return fields * max(1, min(safe_substeps(velocities_vox), most // fields))


def inverse_of_steps(
    velocities_vox: Sequence[Tensor],
    kind: InverseKind = "global",
    order: Order = "paper",
    substeps: int = 1,
    *,
    iterations: int = STEP_ITERATIONS,
    tolerance_vox: float = INVERSE_TOLERANCE_VOX,
) -> Tensor:
    """Displacement of the inverse map, (N, d, *grid), voxels.

    kind: `global` inverts the whole map pointwise (`flows/inversion.py`); `per-step` composes the inverses of
    the steps in reversed order, each found by so many fixed-point iterations; `negated` takes -v for them.
    The first is exact to the tolerance, the others keep the error of every step's inverse.
    Raises UnknownNameError or SettingsError for a kind or order that cannot be, else as `states`.
    """
    if kind not in INVERSES:
        raise UnknownNameError("kind of inverse", kind, INVERSES)
    if kind == "global":
        return invert(integrate_steps(velocities_vox, order, substeps), "mixed", tolerance_vox)
    _check(velocities_vox, order, substeps)
    if order == "official":
        raise SettingsError("The official order is no composition of steps: only its global inverse exists.")
    backwards = velocities_vox[::-1] if order == "paper" else velocities_vox
    w_vox: Tensor | None = None
    for velocity in backwards:
        part = velocity / substeps if substeps > 1 else velocity
        step = -part
        for _ in range(iterations if kind == "per-step" else 0):
            step = -warp(part, step)
        for _ in range(substeps):
            w_vox = advance(w_vox, step)
    return w_vox if w_vox is not None else velocities_vox[0]


def full_resolution(u_vox: Tensor, shape: Sequence[int], order: Order = "paper") -> Tensor:
    """A field (N, d, *ceil(shape / 2)) on the full grid (N, d, *shape), in voxels of that grid.

    Cell-centred and doubled, as vectors count in voxels of their own grid; the `official` code forgot to
    double, and its networks have learned to live with it.
    Raises ShapeError for a field of another grid, UnknownNameError for an unknown order.
    """
    _check_order(order)
    strides = [2] * len(shape)
    return (
        upsample_image(u_vox, strides, shape)
        if order == "official"
        else upsample_field(u_vox, strides, shape)
    )


def published_warp(values: Tensor, u_vox: Tensor) -> Tensor:
    """Values read as the network of the released weights reads them: zeros outside, and not quite at x + u.

    Its positions are scaled for voxel centres at the ends of an axis and read as if voxel faces were there:
    p becomes p n / (n - 1) - 1/2.
    values: (N, C, *grid); u_vox: (N, d, *grid).  Returns (N, C, *grid).
    """
    shape = u_vox.shape[2:]
    factors = u_vox.new_tensor([n / max(n - 1, 1) for n in shape]).view(1, -1, *[1] * len(shape))
    position = (identity_vox(shape, u_vox.dtype, u_vox.device) + u_vox) * factors - 0.5
    return sample(values, position, outside="zeros")


def largest_slope(velocity_vox: Tensor) -> float:
    """Lipschitz constant of a field in the largest norm: max over components of sum_j |d v_c / d x_j|.

    velocity_vox: (N, d, *grid), voxels; exact for its multilinear interpolant.
    """
    require_field(velocity_vox)
    total = torch.zeros_like(velocity_vox)
    for axis in range(2, velocity_vox.dim()):
        steps = velocity_vox.detach().diff(dim=axis).abs()
        n, steepest = velocity_vox.shape[axis], torch.zeros_like(total)
        steepest.narrow(axis, 0, n - 1).copy_(steps)
        later = steepest.narrow(axis, 1, n - 1)
        torch.maximum(later, steps, out=later)
        total += steepest
    return float(total.max())


def safe_substeps(velocities_vox: Sequence[Tensor]) -> int:
    """Fewest parts per field with which every step is one to one, and so, before resampling, the whole map.

    At most MOST_SUBSTEPS.  Raises InputError for a field that is not finite.
    """
    steepest = max(largest_slope(velocity) for velocity in velocities_vox)
    if not math.isfinite(steepest):
        raise InputError("The velocity field contains NaN or infinite values.")
    return min(max(1, math.ceil(steepest / SAFE_SLOPE)), MOST_SUBSTEPS)


def substeps_for(steps: int, fields: int) -> int:
    """Parts per field that make so many steps in all of N fields.

    Raises SettingsError unless `steps` is a multiple of `fields`, up to MOST_SUBSTEPS times it.
    """
    if steps < fields or steps % fields or steps > fields * MOST_SUBSTEPS:
        raise SettingsError(
            f"This network predicts {fields} velocity fields: take a multiple of {fields} steps, at most "
            f"{fields * MOST_SUBSTEPS}, not {steps}."
        )
    return steps // fields


def _check_order(order: str) -> None:
    if order not in ORDERS:
        raise UnknownNameError("order of composition", order, ORDERS)


def _check(velocities_vox: Sequence[Tensor], order: str, substeps: int) -> None:
    _check_order(order)
    if len(velocities_vox) == 0:
        raise ShapeError("A flow needs at least one velocity field.")
    for velocity in velocities_vox:
        require_field(velocity)
        if velocity.shape != velocities_vox[0].shape:
            raise ShapeError(
                f"The velocities of a flow lie on one grid, not on {tuple(velocities_vox[0].shape)} "
                f"and {tuple(velocity.shape)}."
            )
    if not 1 <= substeps <= MOST_SUBSTEPS:
        raise SettingsError(f"A velocity field is followed in 1 to {MOST_SUBSTEPS} parts, not {substeps}.")
    if order == "official" and substeps > 1:
        raise SettingsError("The official order follows every field in one step: it has no shorter ones.")
