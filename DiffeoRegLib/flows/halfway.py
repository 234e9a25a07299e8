"""Two half-way maps and the flow between them, joined to one map and its inverse.

Everything is done for one direction and, by the same calls, for the other: exchanged half-way maps and a
reversed velocity give the exchanged result to the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from DiffeoRegLib.flows.exponential import exp, midpoint_squarings
from DiffeoRegLib.flows.integrate import (
    INVERSE_TOLERANCE_VOX,
    LEAST_DETERMINANT,
    TAPER_PER_MM,
    Flow,
    fitted,
    tapered,
)
from DiffeoRegLib.flows.inversion import invert
from DiffeoRegLib.flows.logarithm import flows_without_folds, make_consistent, unfold_map
from DiffeoRegLib.space.field import compose
from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.space.jacobian import folded_cells

Pair = tuple[Tensor, Tensor]

LEAST_RING_MM = 10.0
"""Around the working grid maps fall to the identity over at least this distance."""
WIDER = 1.5
MOST_WIDER = 4
"""A ring in which a half-way map folds is widened by this factor, so often."""
TIMES = (1.0, -1.0)
"""There and back."""
CONSISTENT_ROUNDS = 2
"""The first takes the error of resampling off both directions; one more is for what that leaves."""


@torch.no_grad()
def join(
    velocity_vox: Tensor,
    halves: Pair,
    grid: Grid,
    steps: int | Literal["auto"] = "auto",
    taper_mm: float | None = None,
) -> Flow:
    """h_moving o exp(v) o h_fixed^-1 and its inverse h_fixed o exp(-v) o h_moving^-1, without folds.

    velocity_vox: (1, d, *grid.shape), voxels.  halves: the displacements of h_moving and h_fixed, the same.
    steps: of the flow, rounded up to a power of two; `auto` = the fewest, and its velocity is smoothed where
    it folds.  taper_mm: least width of the ring around `grid` in which everything falls to the identity;
    None = as wide as the motion at the border needs.
    """
    notes: list[str] = []
    first, rounds_first = unfold_map(halves[0], LEAST_DETERMINANT)
    second, rounds_second = unfold_map(halves[1], LEAST_DETERMINANT)
    wide, (velocity_vox, first, second) = _in_ring(velocity_vox, (first, second), grid, taper_mm)
    flows: list[Tensor] = []
    rounds, moves = 0, bool((velocity_vox != 0).any())
    if moves and steps == "auto":
        velocity_vox, flows, rounds = flows_without_folds(velocity_vox, LEAST_DETERMINANT, TIMES)
    squarings = midpoint_squarings(velocity_vox) if steps == "auto" else math.ceil(math.log2(steps))
    if moves and steps != "auto":
        flows = [exp(velocity_vox, squarings, first_step=2, time=time) for time in TIMES]
    if not moves and (_at_rest(first) or _at_rest(second)):
        forward, inverse = _one_way(first, second), _one_way(second, first)
    else:
        forward = _through(first, flows.pop(0) if moves else None, second)
        inverse = _through(second, flows.pop(0) if moves else None, first)
        forward, inverse = make_consistent(forward, inverse, CONSISTENT_ROUNDS)
    forward, rounds_forward = unfold_map(forward, LEAST_DETERMINANT)
    inverse, rounds_inverse = unfold_map(inverse, LEAST_DETERMINANT)
    rounds += rounds_first + rounds_second + rounds_forward + rounds_inverse
    if rounds:
        notes.append(f"The maps were smoothed where they would fold, in {rounds} rounds.")
    return Flow(forward, inverse, velocity_vox, wide, 2**squarings if moves else 0, notes, (first, second))


def _at_rest(u_vox: Tensor) -> bool:
    return not bool(u_vox.any())


def _one_way(outer: Tensor, inner: Tensor) -> Tensor:
    """outer o inner^-1 where one of them is at rest: the other one as it is, or its inverse."""
    return outer if _at_rest(inner) else fitted(invert(inner, "mixed", INVERSE_TOLERANCE_VOX))


def _through(outer: Tensor, flow: Tensor | None, inner: Tensor) -> Tensor:
    """outer o flow o inner^-1; drops the flow as soon as it is used."""
    found = inner if _at_rest(inner) else invert(inner, "mixed", INVERSE_TOLERANCE_VOX)
    if flow is not None:
        found = flow if found is inner else compose(flow, found)
        del flow
    return found if _at_rest(outer) else compose(outer, found)


def _in_ring(
    velocity_vox: Tensor, halves: Pair, grid: Grid, taper_mm: float | None
) -> tuple[Grid, tuple[Tensor, Tensor, Tensor]]:
    """All three on a grid with a ring around it, in which they fall to zero and no half-way map folds."""
    width_mm = taper_mm
    if width_mm is None:
        longest = max(longest_on_border_mm(u, grid) for u in (velocity_vox, *halves))
        width_mm = max(LEAST_RING_MM, TAPER_PER_MM * longest)
    for attempt in range(MOST_WIDER + 1):
        counts = [max(1, math.ceil(width_mm / spacing)) for spacing in grid.spacing]
        first, second = (tapered(u, counts) for u in halves)
        folds = any(ring_folds(u, counts) for u in (first, second))
        if not folds or attempt == MOST_WIDER:
            break
        width_mm = WIDER * max(width_mm, max(grid.spacing))
    if folds:
        first, second = (unfold_map(u, LEAST_DETERMINANT)[0] for u in (first, second))
    return grid.padded(counts, counts), (tapered(velocity_vox, counts), first, second)


def ring_folds(u_vox: Tensor, counts: Sequence[int]) -> bool:
    """Whether any cell of so many voxels at both ends of each axis folds."""
    for axis, count in enumerate(counts, start=2):
        for start in (0, u_vox.shape[axis] - count - 1):
            if bool(folded_cells(u_vox.narrow(axis, start, count + 1)).any()):
                return True
    return False


def longest_on_border_mm(u_vox: Tensor, grid: Grid) -> float:
    """Length of the longest vector on the outer faces of a field (1, d, *grid.shape), mm."""
    length = (u_vox * u_vox.new_tensor(grid.spacing).view(1, -1, *[1] * grid.dim)).square().sum(1).sqrt()
    ends = [length.select(1 + axis, end).amax() for axis in range(grid.dim) for end in (0, -1)]
    return float(torch.stack(ends).amax())
