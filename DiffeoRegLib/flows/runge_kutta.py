"""One step of an explicit Runge-Kutta scheme on a tuple of tensors, and its exact adjoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from DiffeoRegLib.errors import UnknownNameError
from DiffeoRegLib.space.sample import warp

State = tuple[Tensor, ...]


class Evolution(Protocol):
    """dy/dt = f(y) of a tuple of tensors.

    `sources` are what f needs and its adjoint needs again, the velocity (N, d, *shape), voxels, first.
    """

    def sources(self, state: State) -> State:
        """The velocity and what else comes from smoothing."""
        ...

    def rate(self, state: State, sources: State) -> State:
        """f(y)."""
        ...

    def adjoint(self, state: State, sources: State, cotangent: State) -> State:
        """(df/dy)^T applied to a cotangent of the rate."""
        ...


@dataclass(frozen=True)
class Scheme:
    """An explicit scheme: `before` lists the weights of earlier rates per stage, `weights` those of the step.

    error_weights: the same for the difference to the embedded scheme; empty without one.
    """

    name: str
    before: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]
    error_weights: tuple[float, ...] = ()

    @property
    def stages(self) -> int:
        """Stages that count in the step; later ones serve the error alone."""
        return max(j for j, w in enumerate(self.weights) if w != 0) + 1


RK4 = Scheme("rk4", ((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6))
_LAST = (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84)
DOPRI5 = Scheme(
    "dopri5",
    (
        (),
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        _LAST,
    ),
    (*_LAST, 0.0),
    (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40),
)
"""Dormand and Prince 1980, orders 5 and 4."""
SCHEMES = {scheme.name: scheme for scheme in (RK4, DOPRI5)}


def scheme_named(name: str) -> Scheme:
    """Scheme of that name; raises UnknownNameError with the right ones."""
    if name not in SCHEMES:
        raise UnknownNameError("integrator", name, SCHEMES)
    return SCHEMES[name]


def combined(state: State, rates: Sequence[State], weights: Sequence[float], h: float) -> State:
    """state + h sum_j weights_j rates_j."""
    parts = []
    for index, tensor in enumerate(state):
        total = tensor
        for rate, weight in zip(rates, weights, strict=False):
            if weight != 0:
                fresh = total is tensor
                total = (
                    total.add(rate[index], alpha=h * weight)
                    if fresh
                    else total.add_(rate[index], alpha=h * weight)
                )
        parts.append(total)
    return tuple(parts)


@dataclass(frozen=True, eq=False)
class Stages:
    """What one step visited: states, sources and rates per stage (the last rate may be left out)."""

    states: list[State]
    sources: list[State]
    rates: list[State]


def visit(
    evolution: Evolution, state: State, h: float, scheme: Scheme, *, for_adjoint: bool = False
) -> Stages:
    """All stages of a step of length h; for the adjoint without the rate nobody needs."""
    found = Stages([], [], [])
    count = scheme.stages if for_adjoint else len(scheme.before)
    for j in range(count):
        here = combined(state, found.rates, scheme.before[j], h)
        sources = evolution.sources(here)
        found.states.append(here)
        found.sources.append(sources)
        if not (for_adjoint and j == count - 1):
            found.rates.append(evolution.rate(here, sources))
    return found


def step_adjoint(
    evolution: Evolution,
    states: list[State],
    sources: list[State],
    h: float,
    scheme: Scheme,
    cotangent: State,
) -> State:
    """Gradient by the state at the start of a step from the gradient by the one at its end.

    states, sources: of the stages, from `visit`; both lists are emptied on the way.
    """
    count = scheme.stages
    del states[count:], sources[count:]
    found: list[State] = [()] * count
    for j in range(count - 1, -1, -1):
        weights = [scheme.before[later][j] for later in range(j + 1, count)]
        zero = tuple(c * (h * scheme.weights[j]) for c in cotangent)
        incoming = combined(zero, found[j + 1 :], weights, h)
        found[j] = evolution.adjoint(states.pop(), sources.pop(), incoming)
    return combined(cotangent, found, [1.0] * count, 1.0)


def carried_forward(
    forward_vox: Tensor, velocities_vox: Sequence[Tensor], h: float, scheme: Scheme
) -> Tensor:
    """The forward displacement after a step: du/dt = v(x + u), with the velocities of the stages.

    forward_vox and each velocity: (N, d, *shape), voxels.
    """
    slopes: list[State] = []
    for weights, velocity in zip(scheme.before, velocities_vox, strict=False):
        (place,) = combined((forward_vox,), slopes, weights, h)
        slopes.append((warp(velocity, place),))
    return combined((forward_vox,), slopes, scheme.weights, h)[0]
