"""The way back from displacements to a stationary velocity: v with exp(v) = u."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from DiffeoRegLib.errors import InputError, ShapeError
from DiffeoRegLib.flows.boxes import Box, boxes_around, grown, whole, within
from DiffeoRegLib.flows.exponential import exp, midpoint_squarings
from DiffeoRegLib.space.field import require_field
from DiffeoRegLib.space.filters import TRUNCATE_SIGMAS, gaussian_smooth
from DiffeoRegLib.space.jacobian import folded_cells
from DiffeoRegLib.space.sample import warp

FOLD_ROUNDS = 30
FOLD_SIGMA_VOX = 1.0


@dataclass(frozen=True, eq=False)
class Logarithm:
    """A velocity and how well its flow meets what was asked.

    velocity_vox: (1, d, *spatial), voxels per unit time; neither exp(v) nor exp(-v) folds in any cell corner.
    residual_mean_vox, residual_max_vox: length of u - exp(v), both directions, voxels.
    unfold_rounds: how often the velocity had to be smoothed where its flow folded.
    """

    velocity_vox: Tensor
    residual_mean_vox: float
    residual_max_vox: float
    unfold_rounds: int


@torch.no_grad()
def make_consistent(forward_vox: Tensor, backward_vox: Tensor, iterations: int = 15) -> tuple[Tensor, Tensor]:
    """Two displacements drawn towards each other's inverse, each giving way by half.

    Both (1, d, *spatial), voxels of one grid.  Iterates f <- (f - b(x + f)) / 2 and b <- (b - f(x + b)) / 2,
    whose fixed points satisfy f(x) + b(x + f(x)) = 0.
    Source: Heinrich, Papiez, Schnabel and Handels, WBIR 2014, section on symmetry.
    """
    for _ in range(iterations):
        forward_vox, backward_vox = (
            warp(backward_vox, forward_vox).neg_().add_(forward_vox).mul_(0.5),
            warp(forward_vox, backward_vox).neg_().add_(backward_vox).mul_(0.5),
        )
    return forward_vox, backward_vox


@torch.no_grad()
def logarithm(
    forward_vox: Tensor,
    backward_vox: Tensor,
    start_vox: Tensor | None = None,
    *,
    iterations: int = 6,
    sigma_vox: float = 0.7,
    least_determinant: float = 0.05,
) -> Logarithm:
    """Stationary velocity whose flow follows `forward_vox` and whose reversed flow follows `backward_vox`.

    Both (1, d, *spatial), voxels.  start_vox: first guess, default half their difference.
    Fixed-point steps v <- v + G(f - exp(v)) / 2 - G(b - exp(-v)) / 2 with a Gaussian G of `sigma_vox`, then
    smoothing of v around every cell where exp(v) or exp(-v) has a corner determinant below
    `least_determinant`, until none is left.
    Raises ShapeError for fields that differ in shape, InputError for fields that are not finite.
    Source: Arsigny et al., MICCAI 2006 (log-Euclidean framework); Bossa et al., MICCAI 2007 (logarithms by
    fixed point); fitting both directions is ours.
    """
    require_field(forward_vox)
    if forward_vox.shape != backward_vox.shape:
        raise ShapeError(f"Fields differ: {tuple(forward_vox.shape)} and {tuple(backward_vox.shape)}.")
    if not bool(torch.isfinite(forward_vox).all() and torch.isfinite(backward_vox).all()):
        raise InputError("A displacement contains NaN or infinite values; it has no logarithm.")
    velocity = 0.5 * (forward_vox - backward_vox) if start_vox is None else start_vox
    for _ in range(iterations):
        step = forward_vox - exp(velocity, "auto") - backward_vox + exp(-velocity, "auto")
        velocity = velocity + 0.5 * gaussian_smooth(step, sigma_vox)
    velocity, rounds = unfold(velocity, least_determinant)
    gaps = torch.cat([forward_vox - exp(velocity, "auto"), backward_vox - exp(-velocity, "auto")])
    length = gaps.square().sum(1).sqrt()
    return Logarithm(velocity, float(length.mean()), float(length.max()), rounds)


@torch.no_grad()
def unfold(velocity_vox: Tensor, least_determinant: float = 0.05) -> tuple[Tensor, int]:
    """The velocity, smoothed where its flow or the reversed flow folds, and the number of rounds that took.

    velocity_vox: (1, d, *spatial).  See `flows_without_folds`.
    The reversed velocity gives the reversed result.
    """
    velocity_vox, _, rounds = flows_without_folds(velocity_vox, least_determinant, (1.0, -1.0))
    return velocity_vox, rounds


@torch.no_grad()
def flows_without_folds(
    velocity_vox: Tensor, least_determinant: float, times: Sequence[float]
) -> tuple[Tensor, list[Tensor], int]:
    """The velocity, smoothed where a flow folds, its flows for these times, each 1 or -1, and the rounds.

    velocity_vox: (1, d, *spatial).  A cell is bad when a corner determinant of a flow is not above
    `least_determinant`; each round blends the smoothed velocity in around the bad cells, farther out from
    round to round, and after FOLD_ROUNDS rounds the whole velocity is halved until no cell is bad.
    A round costs what it changes: flows are computed again only where their paths meet what was smoothed.
    """
    shape, rounds = velocity_vox.shape[2:], 0
    squarings = midpoint_squarings(velocity_vox)
    flows = [exp(velocity_vox, squarings, first_step=2, time=time) for time in times]
    bad = _bad_voxels(flows, [whole(shape)], least_determinant)
    while bool(bad.any()):
        reach = _reach(velocity_vox, squarings)
        smoothed, changed = _smoothed(velocity_vox, bad, rounds, 2 * reach)
        rounds += 1
        needed = midpoint_squarings(smoothed)
        if needed != squarings:
            squarings, changed = needed, [whole(shape)]
        touched = []
        for box in changed:
            near = grown(box, 2 * reach, shape)
            away = _reach(velocity_vox[:, :, *near], squarings)
            touched.append(grown(box, away, shape))
            read = grown(touched[-1], away, shape)
            part, inside = smoothed[:, :, *read], within(touched[-1], read)
            for flow, time in zip(flows, times, strict=True):
                flow[:, :, *touched[-1]] = exp(part, squarings, first_step=2, time=time)[:, :, *inside]
        velocity_vox = smoothed
        bad = _bad_voxels(flows, touched, least_determinant)
    return velocity_vox, flows, rounds


@torch.no_grad()
def unfold_map(u_vox: Tensor, least_determinant: float) -> tuple[Tensor, int]:
    """A displacement, smoothed where it folds, and the number of rounds that took; as `unfold` does it.

    u_vox: (1, d, *spatial).
    """
    rounds = 0
    bad = _bad_voxels([u_vox], [whole(u_vox.shape[2:])], least_determinant)
    while bool(bad.any()):
        u_vox, changed = _smoothed(u_vox, bad, rounds)
        bad, rounds = _bad_voxels([u_vox], changed, least_determinant), rounds + 1
    return u_vox, rounds


def _reach(velocity_vox: Tensor, squarings: int) -> int:
    """How far away, in voxels, a velocity can matter to its flow: every reading takes the next voxel too."""
    return math.ceil(max(abs(float(end)) for end in velocity_vox.aminmax())) + squarings + 1


def _smoothed(values: Tensor, bad: Tensor, number: int, beyond: int = 0) -> tuple[Tensor, list[Box]]:
    """One round, and the boxes it changed: smoothed around the bad voxels; from FOLD_ROUNDS on, halved."""
    shape = values.shape[2:]
    if number >= FOLD_ROUNDS:
        return 0.5 * values, [whole(shape)]  # ends: a vanishing velocity or displacement has determinant 1
    reach, sigma = 1.5 + 0.25 * number, FOLD_SIGMA_VOX + 0.1 * number
    strength = 8 * reach ** len(shape)
    margin, seen = (math.ceil(TRUNCATE_SIGMAS * s) + 1 for s in (reach, max(reach, sigma)))
    out, boxes = values.clone(), boxes_around(bad[0, 0], margin, beyond)
    for box in boxes:
        read = grown(box, seen, shape)
        inside, old = within(box, read), values[:, :, *box]
        blend = gaussian_smooth(bad[:, :, *read].to(values.dtype), reach)[:, :, *inside]
        smooth = gaussian_smooth(values[:, :, *read], sigma)[:, :, *inside]
        out[:, :, *box] = old + (blend * strength).clamp_(max=1) * (smooth - old)
    return out, boxes


def _bad_voxels(fields: Sequence[Tensor], boxes: Sequence[Box], least_determinant: float) -> Tensor:
    """Voxels at a corner of a bad cell of any of the fields, (1, 1, *spatial), looking in boxes only."""
    shape = fields[0].shape[2:]
    bad = torch.zeros((1, 1, *shape), dtype=torch.bool, device=fields[0].device)
    for box in boxes:
        around = grown(box, 1, shape)  # cells that stand half in the box changed with it
        for field in fields:
            cells = folded_cells(field[:, :, *around], least_determinant)
            if not bool(cells.any()):
                continue
            for axis in range(2, cells.dim()):
                edge = torch.zeros_like(cells.narrow(axis, 0, 1))
                cells = torch.cat([cells, edge], axis) | torch.cat([edge, cells], axis)
            bad[:, :, *around] |= cells
    return bad
