"""Coarse-to-fine search for the momentum (and pre-weights) that carries one image onto the other.

Minimise  D(I1, I0 o phi^-1) + kappa sum m.v + penalties  over the start of a flow.  The images get finer from
level to level; the map's grid is as coarse as the narrowest kernel allows, and, where the options say so,
coarser yet while the images are.
Source: Shen, Vialard and Niethammer, NeurIPS 2019, with the settings of the authors' program; the search by
values alone, the map grid and the time steps that follow the motion are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from DiffeoRegLib.errors import InputError, SettingsError
from DiffeoRegLib.flows.runge_kutta import State
from DiffeoRegLib.flows.shooting import Metric, crossing_rate, energy
from DiffeoRegLib.methods.base import Motion, Pair, Progress, Report
from DiffeoRegLib.methods.comparing import Comparison
from DiffeoRegLib.methods.lbfgs import LBFGS, Tensors, Watch
from DiffeoRegLib.methods.map_grid import (
    MapGrid,
    SpectralPreconditioner,
    carried,
    coarser,
    momentum_of_velocity,
    read_on,
)
from DiffeoRegLib.methods.options import Options
from DiffeoRegLib.methods.svf import StationaryVelocity
from DiffeoRegLib.settings import MOMENTUM_LEVELS, PRESETS, Settings
from DiffeoRegLib.space.field import change_grid

SIMILARITY = "mk-lncc"
FIRST_RATE = 0.5
"""Voxels of the map grid that the first step of a level moves the fastest point."""
FIRST_SCORES = 0.5
SCORES_FACTOR = 512.0
"""How much longer the steps of scores are than those of momentum, gradient for gradient; more of it lets
scores move sooner and momentum later (chosen on the synthetic pictures)."""


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
    """One level: voxel size of the images, how long, and voxels along the blocks of windows (0 = none)."""

    level_mm: float
    iterations: int
    block: int = 0


def stages(settings: Settings, pair: Pair, options: Options | None = None) -> list[Stage]:
    """Levels, coarse to fine, from settings, effort and options.

    Raises SettingsError when levels and iterations do not match.
    """
    finest = min(pair.grid.spacing)
    levels = settings.levels_mm or tuple(finest * level for level in MOMENTUM_LEVELS)
    options = options or Options()
    counts = settings.iterations or options.iterations[settings.effort]
    if len(levels) != len(counts):
        raise SettingsError(
            f"{len(levels)} levels {levels} and {len(counts)} numbers of iterations {counts} do not match."
        )
    pairs = sorted(zip(levels, counts, strict=True), reverse=True)
    # Windows of coarser images are long enough as they are.
    sides = [(2 if number == len(pairs) - 1 else 1) if options.blocks else 0 for number in range(len(pairs))]
    return [Stage(max(level, finest), count, side) for (level, count), side in zip(pairs, sides, strict=True)]


@dataclass(frozen=True, eq=False)
class Descended:
    """Where a search ended.

    steps: of the flow.  needed: what the motion asks for, more only where the user set too few.
    evaluations, gradients: what it cost.  begun: iterations of `svf` it started from, 0 = rest or what was
    given.  unit: what a step is, in words.
    """

    tensors: Tensors
    steps: int
    needed: int
    iterations: int
    evaluations: int
    gradients: int
    value: float
    begun: int = 0
    unit: str = "time steps"

    @property
    def notes(self) -> list[str]:
        """For the report."""
        said = [
            f"L-BFGS: {self.iterations} iterations, {self.evaluations} evaluations, "
            f"{self.gradients} gradients; {self.steps} {self.unit}."
        ]
        if self.begun:
            said.append(f"The search started from the velocity of {self.begun} coarse iterations of svf.")
        if self.needed > self.steps:
            said.append(
                f"The motion asks for {self.needed} time steps and {self.steps} were set; motion that so few "
                "cannot follow was not allowed."
            )
        return said


def first_steps(model: Model, tensors: Tensors, settings: Settings) -> int:
    """Time steps to begin with: the user's, or those of a start."""
    return model.steps(model.start(tensors)) if settings.steps == "auto" else settings.steps


def descend(
    model: Model,
    tensors: Tensors,
    place: MapGrid,
    pair: Pair,
    options: Options,
    settings: Settings,
    report: Report,
    *,
    on: Callable[[MapGrid], Model] | None = None,
) -> Descended:
    """The tensors of a model after all levels; levels without iterations are skipped.

    on: the model on a coarser map grid, where options ask for that; a start that moves stays on its own grid.
    A start at rest is first given the velocity that a few iterations of `svf` find, where options say so.
    Raises Cancelled from the report, and InputError where the start has no value.
    """
    todo = [stage for stage in stages(settings, pair, options) if stage.iterations > 0]
    effort = [stage.iterations / stage.level_mm**pair.grid.dim for stage in todo]
    run = _Run(model, tensors, place, options, settings)
    # On a coarse map set steps would let the motion grow beyond what they can follow on a finer one.
    free = settings.steps == "auto" and not bool(tensors[0].any())
    coarse = on if options.coarse_maps and free else None
    begin = options.begin if coarse is not None else None
    done, begun = 0.0, sum(begin or ()) if todo else 0
    for stage, share in zip(todo, effort, strict=True):
        if coarse is not None:
            there = coarser(place, stage.level_mm)
            run.move(there, model if there is place else coarse(there))
        if begin is not None:
            run.begin(_stationary(pair, begin, settings, report))
            begin = None
        level = _level(pair, stage, run.place, options, settings)

        def tell(iteration: int, value: float, s: Stage = stage, a: float = done, b: float = share) -> None:
            fraction = (a + b * (iteration + 1) / s.iterations) / sum(effort)
            step = f"{s.level_mm:g} mm, step {iteration + 1} of {s.iterations}"
            report(Progress("optimise", fraction, f"{step}: loss {value:.4f}"))

        run.optimise(level, stage.iterations, settings.regularity, tell)
        done += share
    run.move(place, model)
    needed = model.steps(model.start(run.tensors))
    return Descended(
        run.tensors, run.steps, needed, run.iterations, run.evaluations, run.gradients, run.value, begun
    )  # fmt: skip


def _stationary(pair: Pair, iterations: tuple[int, ...], settings: Settings, report: Report) -> Motion:
    """What `svf` finds from rest in so many iterations at the levels of the preset."""
    levels = PRESETS[settings.preset].levels_mm
    plain = settings.with_changes(
        method="svf", levels_mm=levels, iterations=iterations, dense_iterations=0, large_displacement=False
    )

    def quietly(step: Progress) -> None:
        report(Progress("optimise", 0.0, f"start: {step.message}"))

    method = StationaryVelocity()
    return method.refine(method.predict(pair, plain, quietly), pair, plain, quietly)


def _level(pair: Pair, stage: Stage, place: MapGrid, options: Options, settings: Settings) -> Comparison:
    preset = PRESETS[settings.preset]
    # Presets for one modality ask for a correlation: this one is that of the paper.
    usual = SIMILARITY if preset.similarity.startswith("lncc") else preset.similarity
    usual = options.similarity or usual
    return Comparison(
        pair, stage.level_mm, place.grid, settings.similarity or usual,
        window_vox=settings.window_vox or preset.window_vox, guidance_weight=settings.guidance_weight,
        block=stage.block,
    )  # fmt: skip


class _Run:
    """One search through all levels."""

    def __init__(
        self, model: Model, tensors: Tensors, place: MapGrid, options: Options, settings: Settings
    ) -> None:
        self.model, self.tensors, self.place, self.options = model, tensors, place, options
        self.steps = first_steps(model, tensors, settings)
        self.fixed = settings.steps != "auto"
        self.iterations, self.evaluations, self.gradients = 0, 0, 0
        self.value = float("nan")

    def move(self, place: MapGrid, model: Model) -> None:
        """Go on with a model on another map grid of the same box; the motion stays what it is."""
        before, self.model = self.model, model
        if place is self.place or place.grid.shape == self.place.grid.shape:
            return
        momentum, *others = self.tensors
        if bool(momentum.any()):
            momentum = carried(momentum, self.place, place, before.shares(before.start(self.tensors)))
        else:
            momentum = momentum.new_zeros((1, place.grid.dim, *place.grid.shape))
        self.tensors = [momentum, *(read_on(part, self.place, place) for part in others)]
        self.place = place
        if not self.fixed:
            self.steps = model.steps(model.start(self.tensors))

    def begin(self, motion: Motion) -> None:
        """Give a flow at rest the velocity of a motion that leads from fixed to moving points."""
        grid, (momentum, *others) = self.place.grid, self.tensors
        velocity = change_grid(motion.velocity_vox, motion.grid, grid).to(momentum)
        spacing = velocity.new_tensor(self.place.spacing).view(1, -1, *[1] * grid.dim)
        shares = self.model.shares(self.model.start(self.tensors))
        self.tensors = [momentum_of_velocity(-velocity * spacing, self.place, shares), *others]
        if not self.fixed:
            self.steps = self.model.steps(self.model.start(self.tensors))

    @property
    def epoch(self) -> float:
        return self.iterations / 2

    def optimise(self, level: Comparison, iterations: int, regularity: float, tell: _Tell) -> None:
        """One level; time steps and penalties are brought up to date between iterations."""
        kinetic, stage = self.options.kinetic * regularity, self.model.stage(self.epoch)
        if self.options.kernels.units == "mm":
            kinetic *= self.place.unit_mm[0] ** 2
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
        if self.fixed or needed <= self.steps:
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
