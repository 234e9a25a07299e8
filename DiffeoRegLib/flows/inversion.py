"""Inversion of a displacement field, voxel by voxel.

The inverse displacement v solves v(x) = -u(x + v(x)).  Its value at x depends on u near x + v(x) only and
never on v elsewhere, so every voxel (or any query point) iterates alone: Picard (v <- -u(x + v), converges
where u is a contraction), Newton with the exact derivative of the multilinear interpolant, damped so that
no step may raise the residual.  Outside its grid u repeats its border.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from DiffeoRegLib.errors import SettingsError, ShapeError, UnknownNameError
from DiffeoRegLib.flows.cells import solve, value_and_slopes
from DiffeoRegLib.space.jacobian import require_field
from DiffeoRegLib.space.sample import identity_vox, sample, warp

Method = Literal["picard", "newton", "mixed"]
METHODS = ("mixed", "newton", "picard")

POINTS_PER_CHUNK = 1 << 16  # the 2^d corner values of a chunk stay near the cache
MOST_PICARD = 50
MOST_NEWTON = 40
SHORTEST_STEP = 2.0**-6  # a Newton step cut below this is replaced by a Picard step


@dataclass(frozen=True)
class InversionReport:
    """How well v + u(x + v) = 0 was solved.

    largest_residual_vox: Euclidean norm, voxels, over all voxels.  unsolved: voxels above the tolerance
    (a fold of u has no inverse to find).
    """

    largest_residual_vox: float
    unsolved: int
    tolerance_vox: float


def invert(
    u_vox: Tensor,
    method: Method = "mixed",
    tolerance_vox: float = 1e-3,
    *,
    most_iterations: int | None = None,
    picard_steps: int = 2,
) -> Tensor:
    """Displacement v of the inverse map, v(x) = -u(x + v(x)).

    u_vox: (N, d, *spatial), voxels.  Returns the same shape.  `tolerance_vox` bounds the residual
    |v + u(x + v)| where u has an inverse; `invert_with_report` says what was reached.
    picard_steps: dense steps `mixed` may take before Newton; many pay where u surely is a contraction.
    Differentiable once, by the closed form w = (I + Du(x + v))^-T g and one scatter, independent of the
    iterations.
    Raises ShapeError for anything but a field, UnknownNameError or SettingsError for a bad method or number.
    Source: implicit differentiation as in Honkamaa and Marttinen, SITReg, MELBA 2024, made pointwise.
    """
    require_field(u_vox)
    if method not in METHODS:
        raise UnknownNameError("inversion method", method, METHODS)
    limit = (
        most_iterations if most_iterations is not None else MOST_PICARD if method == "picard" else MOST_NEWTON
    )
    if not tolerance_vox > 0 or limit < 1 or picard_steps < 0:
        raise SettingsError("An inversion needs a positive tolerance and at least one iteration.")
    return _Inversion.apply(u_vox, method, tolerance_vox, limit, picard_steps)  # type: ignore[no-any-return, no-untyped-call]


def invert_with_report(
    u_vox: Tensor,
    method: Method = "mixed",
    tolerance_vox: float = 1e-3,
    *,
    most_iterations: int | None = None,
) -> tuple[Tensor, InversionReport]:
    """`invert`, and the residual measured afterwards at every voxel."""
    v_vox = invert(u_vox, method, tolerance_vox, most_iterations=most_iterations)
    residual = inversion_residual(u_vox.detach(), v_vox.detach())
    unsolved = int((~(residual <= tolerance_vox)).sum())
    return v_vox, InversionReport(float(residual.max()), unsolved, tolerance_vox)


def inversion_residual(u_vox: Tensor, v_vox: Tensor) -> Tensor:
    """Length of v + u(x + v) at every voxel, (N, *spatial), voxels."""
    residual: Tensor = torch.linalg.vector_norm(warp(u_vox, v_vox) + v_vox, dim=1)
    return residual


def invert_at(u_vox: Tensor, points_vox: Tensor, tolerance_vox: float = 1e-9) -> Tensor:
    """Positions y with y + u(y) = p for arbitrary points, in float64 and without a grid in between.

    u_vox: (1, d, *spatial); points_vox: (n, d), voxels of u.  Returns (n, d) float64.  Not differentiable.
    Where u folds no or several answers exist; the residual u(y) + y - p tells.
    Raises ShapeError for a batch of fields or points of another dimension.
    """
    dim = require_field(u_vox)
    if len(u_vox) != 1 or points_vox.dim() != 2 or points_vox.shape[1] != dim:
        raise ShapeError(f"One {dim}D field and points (n, {dim}) are needed, not {tuple(points_vox.shape)}.")
    field, points = u_vox.detach()[0].double(), points_vox.detach().double().T.contiguous()
    found = torch.empty_like(points)
    for part in _chunks(points.shape[1]):
        target = points[:, part]
        v = _newton(field, target, torch.zeros_like(target), tolerance_vox, MOST_NEWTON)
        found[:, part] = target + v
    return found.T.contiguous()


class _Inversion(torch.autograd.Function):
    """Saves u and v only; backward does not depend on how v was found."""

    @staticmethod
    def forward(
        ctx: Any, u_vox: Tensor, method: Method, tolerance_vox: float, limit: int, picard_steps: int
    ) -> Tensor:
        if method == "picard":
            v_vox, _ = _picard(u_vox, tolerance_vox, limit)
        else:
            # Picard is one cheap dense sampling; Newton is for the hard voxels it leaves.
            steps = picard_steps if method == "mixed" else 0
            v_vox, change = _picard(u_vox, tolerance_vox, steps, hand_over=True)
            _finish(u_vox, v_vox, change, tolerance_vox, limit)
        ctx.save_for_backward(u_vox, v_vox)
        return v_vox

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        u_vox, v_vox = ctx.saved_tensors
        weights = _adjoint_weights(u_vox, v_vox, grads[0])
        position = identity_vox(u_vox.shape[2:], u_vox.dtype, u_vox.device) + v_vox
        with torch.enable_grad():
            leaf = u_vox.detach().requires_grad_()
            (grad,) = torch.autograd.grad(sample(leaf, position), leaf, weights.neg_())
        return grad, None, None, None, None


def _picard(
    u_vox: Tensor, tolerance_vox: float, limit: int, *, hand_over: bool = False
) -> tuple[Tensor, Tensor | None]:
    """v after at most `limit` dense steps from -u(x), and its last change squared, (N, *spatial).

    hand_over: after two steps stop where a step no longer settles a twentieth of the voxels: a Newton
    iteration of one voxel costs about as much as twenty of these.
    """
    v_vox = -u_vox
    change: Tensor | None = None
    unsettled = 1.0
    for step in range(limit):
        following = warp(u_vox, v_vox).neg_()
        change = v_vox.sub_(following).square_().sum(1)
        v_vox = following
        if float(change.max()) <= (0.5 * tolerance_vox) ** 2:
            break
        if hand_over and 0 < step < limit - 1:
            before, unsettled = unsettled, float((change > (tolerance_vox / 4) ** 2).float().mean())
            if unsettled < 0.05 or unsettled > before - 0.05:
                break
    return v_vox, change


def _finish(u_vox: Tensor, v_vox: Tensor, change: Tensor | None, tolerance_vox: float, limit: int) -> None:
    """Newton, in place, where the last Picard change leaves the residual in doubt."""
    for index, field in enumerate(u_vox):
        flat = v_vox[index].view(len(field), -1)
        if change is None:
            active = torch.arange(flat.shape[1], device=u_vox.device)
        else:
            # The new residual is at most |Du| times the change; 4 covers any Du worth inverting.
            active = (change[index].flatten() > (tolerance_vox / 4) ** 2).nonzero()[:, 0]
        for part in _chunks(len(active)):
            voxels = active[part]
            solved = _newton(field, _positions(voxels, field), flat[:, voxels], tolerance_vox, limit)
            flat[:, voxels] = solved


def _newton(field: Tensor, points: Tensor, start: Tensor, tolerance_vox: float, limit: int) -> Tensor:
    """Damped Newton for v + u(p + v) = 0 at points (d, n) from `start`; solved points leave the iteration.

    field: (d, *shape).  A step that does not lower the residual is halved; one halved too often (a kink
    between cells, a fold) is replaced by a Picard step.
    """
    goal = (0.8 * tolerance_vox) ** 2  # leaves room for the rounding of another interpolation routine
    found = start.clone()
    index = torch.arange(points.shape[1], device=points.device)
    best, trial, step = start, start, torch.zeros_like(start)
    best_size = torch.full_like(start[0], float("inf"))
    scale = torch.ones_like(best_size)
    for _ in range(limit):
        value, slopes = value_and_slopes(field, points + trial)
        residual = value.add_(trial)
        size = residual.square().sum(0)
        short = scale < SHORTEST_STEP
        better = (size < best_size) | short
        direction = torch.where(short, residual, solve(slopes, residual)).neg_()
        best, step = torch.where(better, trial, best), torch.where(better, direction, step)
        best_size = torch.where(better, size, best_size)
        scale = torch.where(better, 1.0, scale * 0.5)
        found[:, index] = best
        kept = (best_size > goal).nonzero()[:, 0]
        if len(kept) == 0:
            break
        if len(kept) < len(index):
            index, points, best, step = index[kept], points[:, kept], best[:, kept], step[:, kept]
            best_size, scale = best_size[kept], scale[kept]
        trial = best + scale * step
    return found


def _adjoint_weights(u_vox: Tensor, v_vox: Tensor, grad: Tensor) -> Tensor:
    """w(x) = (I + Du(x + v(x)))^-T g(x), same shape as g."""
    weights = torch.empty_like(u_vox)
    for index, field in enumerate(u_vox):
        target = weights[index].view(len(field), -1)
        flat, right = v_vox[index].reshape(len(field), -1), grad[index].reshape(len(field), -1)
        for part in _chunks(flat.shape[1]):
            voxels = torch.arange(part.start, part.stop, device=u_vox.device)
            _, slopes = value_and_slopes(field, _positions(voxels, field) + flat[:, part])
            target[:, part] = solve(slopes, right[:, part], transposed=True)
    return weights


def _positions(voxels: Tensor, field: Tensor) -> Tensor:
    """Voxel positions (d, n) of flat indices into the grid of a field (d, *shape)."""
    axes = []
    for n in field.shape[:0:-1]:
        axes.append(voxels % n)
        voxels = voxels // n
    return torch.stack(axes[::-1]).to(field.dtype)


def _chunks(count: int) -> Iterator[slice]:
    """Runs of at most POINTS_PER_CHUNK indices."""
    for first in range(0, count, POINTS_PER_CHUNK):
        yield slice(first, min(first + POINTS_PER_CHUNK, count))
