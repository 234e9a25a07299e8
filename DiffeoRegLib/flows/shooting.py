"""Geodesic shooting: from momentum (and pre-weights) at time 0 to the map at time 1, and back for gradients.

The gradient is that of the discrete scheme, exact, by the hand-written adjoint of the right-hand side.  What
the stages of a step computed is kept for it while there is room; of the other steps only the state at the
start, from where they are visited again.
"""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from DiffeoRegLib.errors import InputError, SettingsError
from DiffeoRegLib.flows.runge_kutta import (
    RK4,
    Evolution,
    Scheme,
    Stages,
    State,
    carried_forward,
    combined,
    step_adjoint,
    visit,
)
from DiffeoRegLib.space.stencils import Stencil

FEWEST_STEPS = 5
VOXELS_PER_STEP = 2.0
LARGEST_STEP_VOX = 2.5
"""Above 2.8 voxels a step RK4 with central differences is unstable."""
MOST_ADAPTIVE_STEPS = 1000
SHORTEST_STEP = 1e-5


class ShootingDiverged(InputError):
    """A geodesic that its steps cannot follow: take more of them, or a smaller momentum."""


class Metric(Evolution, Protocol):
    """An inverse metric: what turns momentum into velocity, with the evolution it implies."""

    stencil: Stencil
    spacing: tuple[float, ...]


@dataclass(frozen=True)
class Plan:
    """How time is stepped.

    steps: equal steps of rk4, or 1 / the first step of dopri5.
    tolerance: of one dopri5 step, in voxels for the map, relative to its mean size for the momentum.
    keep_bytes: room for the stages of the last steps, which the gradient then need not compute again.
    Raises SettingsError for fewer than one step or a tolerance that is not positive.
    """

    steps: int
    scheme: Scheme = RK4
    tolerance: float = 1e-5
    keep_bytes: int = 1 << 30

    def __post_init__(self) -> None:
        if self.steps < 1 or not self.tolerance > 0:
            raise SettingsError("Shooting needs at least one step and a positive tolerance.")


def crossing_rate(metric: Metric, velocity_vox: Tensor) -> float:
    """Largest number of voxels crossed per unit time, summed over the axes, as the stencil feels it."""
    return float(velocity_vox.detach().abs().sum(1).max()) * metric.stencil.highest


def steps_for(metric: Metric, start: State) -> int:
    """Steps of rk4 that keep each below two voxels at the speed of the start, at least FEWEST_STEPS.

    start: from the metric's `start`.  Raises ShootingDiverged for a momentum that is not finite.
    """
    with torch.no_grad():
        rate = crossing_rate(metric, metric.sources(start)[0])
    if not math.isfinite(rate):
        raise ShootingDiverged("The momentum contains NaN or infinite values.")
    return max(FEWEST_STEPS, math.ceil(rate / VOXELS_PER_STEP))


def shoot(metric: Metric, start: State, plan: Plan) -> State:
    """The state at time 1; its last tensor is the displacement of phi^-1, (N, d, *shape), voxels.

    start: from the metric's `start`: momentum, then pre-weights if it has any; the map starts as identity.
    I(1)(x) = I(0)(x + u(x)): the map looks back.  Differentiable once in every tensor of `start`.
    Raises ShootingDiverged when a step would cross more than LARGEST_STEP_VOX voxels or numbers overflow.
    Source: equations 2.4 and 3.9-3.10 of Shen, Vialard and Niethammer, NeurIPS 2019; the discretisation that
    conserves the energy is ours.
    """
    if torch.is_grad_enabled() and any(part.requires_grad for part in start):
        return tuple(_Shooting.apply(metric, plan, *start))  # type: ignore[no-untyped-call]
    return _march(metric, start, plan, keep_states=False).states[-1]


def energy(metric: Metric, start: State) -> Tensor:
    """Half the mean of momentum times velocity per sample, (N,), mm^2 (spacing squared).

    Differentiable.  It is the energy of the whole geodesic, since it does not change along it.
    """
    velocity = metric.sources(start)[0]
    return 0.5 * (start[0] * velocity).sum(1).flatten(1).mean(1)


class _Shooting(torch.autograd.Function):
    """Keeps the state at the start of every step, and the stages of as many as there is room for."""

    @staticmethod
    def forward(ctx: Any, metric: Metric, plan: Plan, *start: Tensor) -> State:
        march = _march(metric, tuple(s.detach() for s in start), plan, keep_bytes=plan.keep_bytes)
        ctx.metric, ctx.scheme = metric, plan.scheme
        ctx.states, ctx.lengths, ctx.stages = march.states[:-1], march.lengths, march.stages
        return march.states[-1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        cotangent: State = grads
        metric, scheme = ctx.metric, ctx.scheme
        for index in range(len(ctx.lengths) - 1, -1, -1):
            h, kept = ctx.lengths[index], ctx.stages.get(index)
            if kept is None:
                visited = visit(metric, ctx.states[index], h, scheme, for_adjoint=True)
                kept = (visited.states, visited.sources)
            states, sources = list(kept[0]), list(kept[1])
            cotangent = step_adjoint(metric, states, sources, h, scheme, cotangent)
        return (None, None, *cotangent[:-1])


@dataclass(frozen=True, eq=False)
class _March:
    """States at the ends of all steps (or the last alone), lengths of the steps, forward displacements.

    stages: states and sources of the stages, by number of the step, where kept.
    """

    states: list[State]
    lengths: list[float]
    forwards: list[Tensor]
    stages: dict[int, tuple[list[State], list[State]]]


@torch.no_grad()
def _march(
    metric: Metric,
    start: State,
    plan: Plan,
    *,
    forwards: bool = False,
    keep_states: bool = True,
    keep_bytes: int = 0,
) -> _March:
    """The way from time 0 to 1."""
    state: State = (*start, torch.zeros_like(start[0]))
    march = _March([state], [], [torch.zeros_like(start[0])] if forwards else [], {})
    clock = _Clock(plan, start)
    while clock.rest > 0:
        h = clock.h
        stages = visit(metric, state, h, plan.scheme)
        if not march.lengths and not plan.scheme.error_weights:
            _check_first_step(metric, stages.sources[0][0], plan.steps)
        arrived = combined(state, stages.rates, plan.scheme.weights, h)
        if not clock.accepts(state, arrived, stages.rates):
            continue
        keep_bytes -= 0 if keep_bytes <= 0 else _size(stages)
        if keep_bytes > 0:
            march.stages[len(march.lengths)] = (stages.states, stages.sources)
        if forwards:
            velocities = [sources[0] for sources in stages.sources]
            march.forwards.append(carried_forward(march.forwards[-1], velocities, h, plan.scheme))
        state = arrived
        if not keep_states:
            march.states.clear()
        march.states.append(state)
        march.lengths.append(h)
    if not all(bool(torch.isfinite(part).all()) for part in state):
        raise ShootingDiverged(f"Shooting overflowed in {len(march.lengths)} steps: take more.")
    return march


def _size(stages: Stages) -> int:
    """Bytes held by states and sources."""
    return sum(part.nbytes for held in (*stages.states, *stages.sources) for part in held)


class _Clock:
    """How long the next step is, and how much of the time is left."""

    def __init__(self, plan: Plan, start: State) -> None:
        self.plan, self.taken, self.tried = plan, 0, 0
        self.rest, self.h = 1.0, 1 / plan.steps
        # What an error is compared with: the momentum's own size, 1 for pre-weights, 1 voxel for the map.
        size = float(start[0].square().mean().sqrt())
        self._scales = [size if size > 0 else 1.0] + [1.0] * len(start)

    def accepts(self, before: State, after: State, rates: list[State]) -> bool:
        """Whether the step stands; sets the length of the next one."""
        if not self.plan.scheme.error_weights:
            self.taken += 1
            self.rest = 1 - self.taken / self.plan.steps
            return True
        self.tried += 1
        error = self._error(before, after, rates)
        stands = error <= 1
        if stands:
            self.rest = self.rest - self.h if self.h < self.rest else 0.0
        factor = 0.9 * error**-0.2 if error > 0 else 5.0
        self.h *= min(5.0, max(0.2, factor))
        # Once the time is over, a short last step says nothing about the geodesic.
        if self.rest > 0 and (self.h < SHORTEST_STEP or self.tried >= MOST_ADAPTIVE_STEPS):
            raise ShootingDiverged("The geodesic is too stiff for dopri5 at this tolerance.")
        self.h = min(self.h, self.rest)
        return stands

    def _error(self, before: State, after: State, rates: list[State]) -> float:
        """The estimated error over the allowed one; each tensor has its own norm, the worst decides."""
        zero = tuple(torch.zeros_like(part) for part in before)
        errors = combined(zero, rates, self.plan.scheme.error_weights, self.h)
        worst = 0.0
        for error, first, second, scale in zip(errors, before, after, self._scales, strict=True):
            allowed = self.plan.tolerance * (scale + torch.maximum(first.abs(), second.abs()))
            size = float((error / allowed).square().mean().sqrt())
            worst = max(worst, size) if math.isfinite(size) else math.inf
        return worst


def _check_first_step(metric: Metric, velocity_vox: Tensor, steps: int) -> None:
    rate = crossing_rate(metric, velocity_vox)
    if not rate <= LARGEST_STEP_VOX * steps:
        raise ShootingDiverged(
            f"The motion crosses {rate:.3g} voxels; {steps} steps allow {LARGEST_STEP_VOX * steps:.3g}."
        )


@dataclass(frozen=True, eq=False)
class Moment:
    """A geodesic at one time: both displacements (N, d, *shape), voxels, and its state.

    inverse_vox: of phi^-1, which carries images (I(t)(x) = I(0)(x + u)).  forward_vox: of phi, which carries
    points.  state: as the metric's `start` gives it; a geodesic can start here again.
    """

    time: float
    inverse_vox: Tensor
    forward_vox: Tensor
    state: State


@dataclass(frozen=True, eq=False)
class Path:
    """A geodesic from time 0 to 1, known at the ends of its steps and, by a shorter step, between them."""

    metric: Metric
    scheme: Scheme
    times: list[float]
    states: list[State]
    forwards: list[Tensor]

    @torch.no_grad()
    def at(self, time: float) -> Moment:
        """Maps, momentum and pre-weights at a time; raises SettingsError outside [0, 1]."""
        if not 0 <= time <= 1:
            raise SettingsError(f"A path runs from time 0 to 1; there is no {time}.")
        index = bisect.bisect_right(self.times, time) - 1
        state, forward, h = self.states[index], self.forwards[index], time - self.times[index]
        if h > 0:
            stages = visit(self.metric, state, h, self.scheme)
            velocities = [sources[0] for sources in stages.sources]
            state = combined(state, stages.rates, self.scheme.weights, h)
            forward = carried_forward(forward, velocities, h, self.scheme)
        return Moment(time, state[-1], forward, state[:-1])

    @torch.no_grad()
    def energies(self) -> list[float]:
        """Mean energy over the samples at the ends of all steps; constant up to the error of the steps."""
        return [float(energy(self.metric, state[:-1]).mean()) for state in self.states]


@torch.no_grad()
def trace(metric: Metric, start: State, plan: Plan) -> Path:
    """The whole geodesic with phi beside phi^-1; raises like `shoot`."""
    march = _march(metric, tuple(s.detach() for s in start), plan, forwards=True)
    times = [0.0]
    for h in march.lengths:
        times.append(times[-1] + h)
    times[-1] = 1.0
    return Path(metric, plan.scheme, times, march.states, march.forwards)
