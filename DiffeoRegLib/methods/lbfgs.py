"""L-BFGS on a list of tensors whose line search pays for values only.

A trial keeps the graph of its one evaluation until the next trial; the accepted one is then carried back
through that graph, so no place is ever evaluated twice.  A trial that cannot be computed (a geodesic its
steps cannot follow) is a value of infinity: the step shrinks.
Source: Liu and Nocedal, Mathematical Programming 1989; Nocedal and Wright, Numerical Optimization, 2006,
algorithms 3.1 and 7.4.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from DiffeoRegLib.errors import InputError

Tensors = list[Tensor]
Objective = Callable[[Tensors], Tensor]
"""A differentiable scalar of some tensors."""
Precondition = Callable[[Tensors], Tensors]
"""A symmetric positive operator near the inverse of the second derivative."""
Scaling = Callable[[Tensors], float]
"""How far to go first along a direction."""


@dataclass(frozen=True)
class Search:
    """Rules of the search.

    history: pairs of steps and changes of the gradient that are kept.  sufficient: share of the fall that
    the slope promises, which a step has to bring (Armijo).  trials: steps tried before a direction is given
    up.  growth: how much longer the next trial is while nothing is known about the size of a step.
    """

    history: int = 5
    sufficient: float = 1e-4
    trials: int = 20
    growth: float = 4.0


class LBFGS:
    """A descent: `step` by `step` to lower values of an objective.

    objective: differentiable scalar of the tensors.  start: where to begin; copied.
    precondition: see `Precondition`; None = the identity.  first_step: see `Scaling`; None = steps of length
    1 at most.  infinite: what the objective raises at a place that has no value.
    Raises what the objective raises at the start, InputError when it is not finite there.
    `point`, `value`, `gradient`: where the descent stands.  `evaluations`, `gradients`: what it cost.
    """

    def __init__(
        self,
        objective: Objective,
        start: Sequence[Tensor],
        search: Search | None = None,
        *,
        precondition: Precondition | None = None,
        first_step: Scaling | None = None,
        infinite: type[Exception] | tuple[type[Exception], ...] = (),
    ) -> None:
        self.objective, self.search = objective, search or Search()
        self.precondition, self.first_step, self.infinite = precondition, first_step, infinite
        self.evaluations, self.gradients = 0, 0
        self._pairs: deque[tuple[Tensors, Tensors, float]] = deque(maxlen=self.search.history)
        self._settle(self._evaluated([part.detach().clone() for part in start]))

    def restart(self, *, forget: bool = False) -> None:
        """Evaluate again where the descent stands, because the objective changed; raises like the start.

        forget: the curvature seen so far says nothing about the new objective.
        """
        if forget:
            self._pairs.clear()
        self._settle(self._evaluated(self.point))

    def step(self) -> bool:
        """One iteration; False when no lower value was found, with and without what the history says."""
        while True:
            direction = self._direction()
            slope = _dot(direction, self.gradient)
            found = self._along(direction, slope) if slope < 0 else None
            if found is not None:
                before, gradient = self.point, self.gradient
                self._settle(found)
                self._remember(_minus(self.point, before), _minus(self.gradient, gradient))
                return True
            if not self._pairs:
                return False
            self._pairs.clear()

    def _evaluated(self, point: Tensors) -> _Trial:
        """The value at a place, whatever it is."""
        leaves = [part.detach().requires_grad_() for part in point]
        self.evaluations += 1
        with torch.enable_grad():
            value = self.objective(leaves)
        return _Trial(leaves, value, float(value.detach()))

    def _tried(self, direction: Tensors, length: float) -> _Trial | None:
        """The value a step away; None where there is none."""
        point = [p.add(d, alpha=length) for p, d in zip(self.point, direction, strict=True)]
        try:
            trial = self._evaluated(point)
        except self.infinite:
            return None
        return trial if math.isfinite(trial.number) else None

    def _settle(self, trial: _Trial) -> None:
        """Stand at a trial: go back through its graph, then let the graph go."""
        if not math.isfinite(trial.number):
            raise InputError("The search starts where the value is not finite.")
        self.gradients += 1
        self.gradient = list(torch.autograd.grad(trial.value, trial.leaves, materialize_grads=True))
        self.point, self.value = [part.detach() for part in trial.leaves], trial.number
        if not all(bool(torch.isfinite(part).all()) for part in self.gradient):
            raise InputError("The gradient is not finite.")

    def _along(self, direction: Tensors, slope: float) -> _Trial | None:
        """A place along a direction that is low enough; None if there is none."""
        length, search = 1.0, self.search
        if not self._pairs:
            length = self._first_length(direction)
        # Changes below the rounding of the value cannot be told from none.
        smallest = torch.finfo(self.gradient[0].dtype).eps * abs(self.value)
        for attempt in range(search.trials):
            if attempt and -slope * length <= smallest:
                return None
            trial = self._tried(direction, length)
            number = math.inf if trial is None else trial.number
            enough = self.value + search.sufficient * length * slope
            if trial is not None and number <= enough and number < self.value:
                return trial if self._pairs else self._farther(direction, length, slope, trial)
            del trial  # its graph, before the next one is built
            length = self._shorter(length, slope, number)
        return None

    def _farther(self, direction: Tensors, length: float, slope: float, best: _Trial) -> _Trial:
        """The lowest of ever longer steps: the first direction knows nothing of the scale."""
        for _ in range(self.search.trials):
            # A parabola through what is known: no reason to go on when its lowest place is near.
            curvature = best.number - self.value - slope * length
            if curvature > 0 and -slope * length**2 / (2 * curvature) < 2 * length:
                break
            length *= self.search.growth
            # The graph of the best trial stays: should this one fail, it is needed.
            trial = self._tried(direction, length)
            if trial is None or trial.number >= best.number:
                break
            best = trial
        return best

    def _shorter(self, length: float, slope: float, number: float) -> float:
        """The next trial: the lowest place of a parabola, between a tenth and a half of this one."""
        if not math.isfinite(number):
            return 0.5 * length
        curvature = number - self.value - slope * length
        lowest = -slope * length**2 / (2 * curvature)
        return min(0.5 * length, max(0.1 * length, lowest))

    def _first_length(self, direction: Tensors) -> float:
        if self.first_step is not None:
            return self.first_step(direction)
        return min(1.0, 1.0 / math.sqrt(_dot(direction, direction)))

    def _direction(self) -> Tensors:
        """Minus the inverse second derivative, as far as it is known, applied to the gradient."""
        rest = [part.neg() for part in self.gradient]
        shares = []
        for step, change, product in reversed(self._pairs):
            share = _dot(step, rest) / product
            shares.append(share)
            rest = _plus(rest, change, -share)
        rest = self._scaled(rest)
        for (step, change, product), share in zip(self._pairs, reversed(shares), strict=True):
            rest = _plus(rest, step, share - _dot(change, rest) / product)
        return rest

    def _scaled(self, rest: Tensors) -> Tensors:
        """The first guess of the inverse second derivative, of the size the last step has shown."""
        if self.precondition is not None:
            rest = self.precondition(rest)
        if not self._pairs:
            return rest
        _, change, product = self._pairs[-1]
        guess = change if self.precondition is None else self.precondition(change)
        size = product / _dot(change, guess)
        return [part * size for part in rest]

    def _remember(self, step: Tensors, change: Tensors) -> None:
        """Keep a pair if it shows positive curvature."""
        product = _dot(step, change)
        least = 1e-8 * math.sqrt(_dot(step, step) * _dot(change, change))
        if product > least:
            self._pairs.append((step, change, product))


@dataclass(frozen=True, eq=False)
class _Trial:
    """One evaluation, with its graph."""

    leaves: Tensors
    value: Tensor
    number: float


@dataclass(frozen=True, eq=False)
class Found:
    """Where a search ended, what it cost, and whether it ended before its iterations did."""

    point: Tensors
    value: float
    iterations: int
    evaluations: int
    gradients: int
    converged: bool


PATIENCE = 3
"""So many iterations in a row have to gain next to nothing before a search ends."""


def minimise(
    objective: Objective,
    start: Sequence[Tensor],
    iterations: int,
    search: Search | None = None,
    *,
    tolerance: float = 1e-6,
    precondition: Precondition | None = None,
    infinite: type[Exception] | tuple[type[Exception], ...] = (),
) -> Found:
    """The lowest place found in at most so many iterations; see `LBFGS`.

    tolerance: an iteration that lowers the value by less than this share of it gains next to nothing.
    """
    descent = LBFGS(objective, start, search, precondition=precondition, infinite=infinite)
    watch = Watch(tolerance)
    done, converged = 0, False
    while done < iterations and not converged:
        before = descent.value
        converged = not descent.step()
        done += not converged
        converged = converged or watch.idle(before, descent.value)
    cost = (descent.evaluations, descent.gradients)
    return Found(descent.point, descent.value, done, *cost, converged)


class Watch:
    """Tells when iterations have stopped to gain."""

    def __init__(self, tolerance: float) -> None:
        self.tolerance, self.count = tolerance, 0

    def idle(self, before: float, after: float) -> bool:
        """Whether this iteration and the PATIENCE - 1 before gained less than the tolerated share."""
        small = before - after <= self.tolerance * max(abs(before), abs(after))
        self.count = self.count + 1 if small else 0
        return self.count >= PATIENCE


def _dot(first: Tensors, second: Tensors) -> float:
    return sum(float((a * b).sum(dtype=torch.float64)) for a, b in zip(first, second, strict=True))


def _minus(first: Tensors, second: Tensors) -> Tensors:
    return [a - b for a, b in zip(first, second, strict=True)]


def _plus(first: Tensors, second: Tensors, factor: float) -> Tensors:
    return [a.add(b, alpha=factor) for a, b in zip(first, second, strict=True)]
