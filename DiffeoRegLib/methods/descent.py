"""Coarse-to-fine search for the momentum (and pre-weights) that carries one image onto the other.

Minimise  D(I1, I0 o phi^-1) + kappa sum m.v + penalties  over the start of a flow.  One grid carries the map
at all levels, since the narrowest kernel asks for it; only the images get finer.
Source: Shen, Vialard and Niethammer, NeurIPS 2019, with the settings of the authors' program; the search by
values alone, the map grid and the time steps that follow the motion are ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from DiffeoRegLib.errors import InputError, SettingsError
from DiffeoRegLib.flows.runge_kutta import State, scheme_named
from DiffeoRegLib.flows.shooting import Metric, crossing_rate, energy
from DiffeoRegLib.methods.base import Pair, Progress, Report
from DiffeoRegLib.methods.comparing import Comparison
from DiffeoRegLib.methods.lbfgs import LBFGS, Search, Tensors, Watch
from DiffeoRegLib.methods.map_grid import Kernels, MapGrid, SpectralPreconditioner
from DiffeoRegLib.settings import PRESETS, Settings

SIMILARITY = "mk-lncc"
LEVELS = (4, 2, 1)
"""Voxel sizes the images are compared at, in voxels of the working grid."""
ITERATIONS: Mapping[str, tuple[int, ...]] = {
    "fast": (40, 20, 0),
    "balanced": (60, 50, 30),
    "accurate": (100, 100, 50),
}
FIRST_RATE = 0.5
"""Voxels of the map grid that the first step of a level moves the fastest point."""
FIRST_SCORES = 0.5
SCORES_FACTOR = 512.0
"""How much longer the steps of scores are than those of momentum, gradient for gradient; more of it lets
scores move sooner and momentum later (chosen on the synthetic pictures)."""


@dataclass(frozen=True)
class Options:
    """What LDDMM, RDMM and the stationary velocity in momentum form share.

    kinetic: kappa, of sum m.v (not half of it), per squared unit length.  precondition: floor of the
    spectral preconditioner, 0 for none.  tolerance: three iterations that gain less than this share end a
    level.  integrator: rk4 or dopri5.  order: of the differences, 2 or 4.
    transport, common: weights of the two energies of optimised pre-weights.
    Raises SettingsError for negative weights, UnknownNameError for an unknown integrator.
    """

    kernels: Kernels = field(default_factory=Kernels)
    kinetic: float = 10.0
    transport: float = 0.1
    common: float = 10.0
    precondition: float = 0.1
    tolerance: float = 1e-4
    integrator: str = "rk4"
    order: int = 2
    search: Search = field(default_factory=Search)

    def __post_init__(self) -> None:
        numbers = (self.kinetic, self.transport, self.common, self.precondition, self.tolerance)
        if not min(numbers) >= 0:
            raise SettingsError(f"Weights and the tolerance must not be negative: {numbers}.")
        scheme_named(self.integrator)


class Model(Protocol):
    """A flow that starts from some tensors, the momentum first."""

    @property
    def metric(self) -> Metric:
        """What turns momentum into velocity."""
        ...

    def start(self, tensors: Tensors) -> State:
        """The start of the flow."""
        ...

    def steps(self, start: State) -> int:
        """Steps its flow takes from here."""
        ...

    def displacement(self, start: State, steps: int) -> Tensor:
        """Of phi^-1, (1, d, *shape), voxels of the map grid; raises InputError when steps are too few."""
        ...

    def penalty(self, start: State, epoch: float) -> Tensor | None:
        """What else it costs; may change with the epoch, half the number of iterations."""
        ...

    def stage(self, epoch: float) -> float:
        """A number that says when the penalty has changed."""
        ...

    def shares(self, start: State) -> Sequence[float]:
        """Shares of the kernels in the mean over the grid."""
        ...


@dataclass(frozen=True)
class Stage:
    """One level: voxel size of the images, and how long."""

    level_mm: float
    iterations: int


def stages(settings: Settings, pair: Pair) -> list[Stage]:
    """Levels, coarse to fine, from settings and effort.

    Raises SettingsError when levels and iterations do not match.
    """
    finest = min(pair.grid.spacing)
    levels = settings.levels_mm or tuple(finest * level for level in LEVELS)
    counts = settings.iterations or ITERATIONS[settings.effort]
    if len(levels) != len(counts):
        raise SettingsError(
            f"{len(levels)} levels {levels} and {len(counts)} numbers of iterations {counts} do not match."
        )
    pairs = sorted(zip(levels, counts, strict=True), reverse=True)
    return [Stage(max(level, finest), count) for level, count in pairs]


@dataclass(frozen=True, eq=False)
class Descended:
    """Where a search ended.  steps: of the flow.  evaluations, gradients: what it cost."""

    tensors: Tensors
    steps: int
    iterations: int
    evaluations: int
    gradients: int
    value: float

    @property
    def note(self) -> str:
        """For the report."""
        return (
            f"L-BFGS: {self.iterations} iterations, {self.evaluations} evaluations, "
            f"{self.gradients} gradients; {self.steps} time steps."
        )


def descend(
    model: Model,
    tensors: Tensors,
    place: MapGrid,
    pair: Pair,
    options: Options,
    settings: Settings,
    report: Report,
) -> Descended:
    """The tensors of a model after all levels; levels without iterations are skipped.

    Raises Cancelled from the report, and InputError where the start has no value.
    """
    todo = [stage for stage in stages(settings, pair) if stage.iterations > 0]
    effort = [stage.iterations / stage.level_mm**pair.grid.dim for stage in todo]
    run = _Run(model, tensors, place, options)
    done = 0.0
    for stage, share in zip(todo, effort, strict=True):
        level = _level(pair, stage, place, settings)

        def tell(iteration: int, value: float, s: Stage = stage, a: float = done, b: float = share) -> None:
            fraction = (a + b * (iteration + 1) / s.iterations) / sum(effort)
            step = f"{s.level_mm:g} mm, step {iteration + 1} of {s.iterations}"
            report(Progress("optimise", fraction, f"{step}: loss {value:.4f}"))

        run.optimise(level, stage.iterations, settings.regularity, tell)
        done += share
    return Descended(run.tensors, run.steps, run.iterations, run.evaluations, run.gradients, run.value)


def _level(pair: Pair, stage: Stage, place: MapGrid, settings: Settings) -> Comparison:
    preset = PRESETS[settings.preset]
    # Presets for one modality ask for a correlation: this one is that of the paper.
    usual = SIMILARITY if preset.similarity.startswith("lncc") else preset.similarity
    return Comparison(
        pair, stage.level_mm, place.grid, settings.similarity or usual,
        window_vox=settings.window_vox or preset.window_vox, guidance_weight=settings.guidance_weight,
    )  # fmt: skip


class _Run:
    """One search through all levels."""

    def __init__(self, model: Model, tensors: Tensors, place: MapGrid, options: Options) -> None:
        self.model, self.tensors, self.place, self.options = model, tensors, place, options
        self.steps = model.steps(model.start(tensors))
        self.iterations, self.evaluations, self.gradients = 0, 0, 0
        self.value = float("nan")

    @property
    def epoch(self) -> float:
        return self.iterations / 2

    def optimise(self, level: Comparison, iterations: int, regularity: float, tell: _Tell) -> None:
        """One level; time steps and penalties are brought up to date between iterations."""
        kinetic, stage = self.options.kinetic * regularity, self.model.stage(self.epoch)
        epoch = self.epoch

        def objective(tensors: Tensors) -> Tensor:
            start = self.model.start(tensors)
            total = level.value(self.model.displacement(start, self.steps))
            total = total + 2 * kinetic * energy(self.model.metric, start).mean()
            penalty = self.model.penalty(start, epoch)
            return total if penalty is None else total + penalty

        descent = LBFGS(
            objective, self.tensors, self.options.search, precondition=self._preconditioner(),
            first_step=self._first_step, infinite=InputError,
        )  # fmt: skip
        watch = Watch(self.options.tolerance)
        for iteration in range(iterations):
            before = descent.value
            moved = descent.step()
            self.iterations += moved
            tell(iteration, descent.value)
            changed = self._more_steps(descent.point)
            if self.model.stage(self.epoch) != stage:
                stage, epoch, changed = self.model.stage(self.epoch), self.epoch, True
            if changed:
                descent.restart()
                watch = Watch(self.options.tolerance)
            elif not moved or watch.idle(before, descent.value):
                break
        self.tensors, self.value = descent.point, descent.value
        self.evaluations += descent.evaluations
        self.gradients += descent.gradients

    def _more_steps(self, tensors: Tensors) -> bool:
        """Whether the motion has outgrown the time steps; takes a few more than it needs, then."""
        needed = self.model.steps(self.model.start(tensors))
        if needed <= self.steps:
            return False
        self.steps = needed + needed // 4
        return True

    @torch.no_grad()
    def _first_step(self, direction: Tensors) -> float:
        """A length at which the flow moves by FIRST_RATE and scores by FIRST_SCORES at most."""
        start = self.model.start([direction[0], *self.tensors[1:]])
        rate = crossing_rate(self.model.metric, self.model.metric.sources(start)[0])
        limits = [FIRST_RATE / max(rate, 1e-30)]
        limits += [FIRST_SCORES / max(float(part.abs().max()), 1e-30) for part in direction[1:]]
        return min(limits)

    def _preconditioner(self) -> _Precondition:
        floor, spectral = self.options.precondition, None
        if floor:
            shares = self.model.shares(self.model.start(self.tensors))
            spectral = SpectralPreconditioner(self.place, shares, floor, self.tensors[0])
        return _Precondition(spectral, SCORES_FACTOR)


class _Precondition:
    """The spectral one on the momentum; a factor on other tensors."""

    def __init__(self, spectral: SpectralPreconditioner | None, factor: float) -> None:
        self.spectral, self.factor = spectral, factor

    def __call__(self, tensors: Tensors) -> Tensors:
        momentum = tensors[0] if self.spectral is None else self.spectral(tensors[0])
        return [momentum, *(part * self.factor for part in tensors[1:])]


class _Tell(Protocol):
    def __call__(self, iteration: int, value: float, /) -> None: ...
