"""What LDDMM and RDMM find: the start of a geodesic, from where everything else follows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from DiffeoRegLib.errors import SettingsError
from DiffeoRegLib.flows.closing import close
from DiffeoRegLib.flows.integrate import Flow
from DiffeoRegLib.flows.momentum import MomentumMetric
from DiffeoRegLib.flows.regional import RegionalMetric, local_sigma
from DiffeoRegLib.flows.runge_kutta import State, scheme_named
from DiffeoRegLib.flows.shooting import Path, Plan, shoot, steps_for, trace
from DiffeoRegLib.methods.map_grid import MapGrid
from DiffeoRegLib.space.field import change_grid, compose
from DiffeoRegLib.space.grid import Grid

Maps = tuple[Tensor, Tensor]
"""Displacements (1, d, *shape), voxels, of phi^-1 (fixed to moving points) and of phi."""


@dataclass(frozen=True, eq=False)
class Geodesic:
    """A motion given by its start alone.

    metric, place: kernels and the map grid.  tensors: momentum (1, d, *shape) and, for a regional metric,
    pre-weights (1, n, *shape).  steps, integrator: how it is shot.  notes: sentences for the report.
    """

    metric: MomentumMetric | RegionalMetric
    place: MapGrid
    tensors: tuple[Tensor, ...]
    steps: int
    integrator: str = "rk4"
    notes: tuple[str, ...] = ()

    @property
    def start(self) -> State:
        """The state at time 0."""
        return self.metric.start(*self.tensors)

    @property
    def plan(self) -> Plan:
        """How time is stepped."""
        return Plan(self.steps, scheme_named(self.integrator))

    @cached_property
    def path(self) -> Path:
        """The whole geodesic with both maps; computed once, kept. Raises ShootingDiverged."""
        return trace(self.metric, self.start, self.plan)

    @property
    def velocity_vox(self) -> Tensor:
        """v(0), (1, d, *shape), voxels of the map grid: where the moving image sets out to."""
        return self.metric.sources(self.start)[0]

    def to(self, device: torch.device | str) -> Geodesic:
        """The geodesic on another device, with the kernels in the form that suits this one."""
        if self.tensors[0].device == torch.device(device):
            return self
        return self.started_by(tuple(part.to(device) for part in self.tensors))

    def started_by(self, tensors: tuple[Tensor, ...]) -> Geodesic:
        """The geodesic of other tensors of the same shapes; its kernels are placed and typed like them."""
        order, walls = 2 * self.metric.stencil.width, self.metric.walls
        metric: MomentumMetric | RegionalMetric
        if isinstance(self.metric, MomentumMetric):
            metric = momentum_metric(self.place, self.metric.weights, tensors[0], order=order, walls=walls)
        else:
            metric = regional_metric(self.place, tensors[0], order=order, walls=walls)
        return replace(self, metric=metric, tensors=tensors)

    def maps(self, grid: Grid, time: float = 1.0) -> Maps:
        """Displacements (1, d, *grid.shape), voxels of `grid`, of phi^-1 and of phi at a time.

        phi^-1 leads from a fixed to a moving point, phi back; they undo each other up to the error of the
        steps and of the grid.  Raises SettingsError for a time outside [0, 1], GeometryError for other axes.
        """
        moment = self.path.at(time)
        inverse, forward = (
            change_grid(u, self.place.grid, grid) for u in (moment.inverse_vox, moment.forward_vox)
        )
        return inverse, forward

    @torch.no_grad()
    def sigma_mm(self, time: float) -> Tensor:
        """The width of the regulariser at a time, mm, (1, 1, *shape) of the map grid.

        In the unit of a box with unequal sides, mm stand for the geometric mean of the sides.
        At time 0 it lies in the space of the moving image, at time 1 in that of the fixed one.
        """
        unit = self.place.mean_unit_mm
        if isinstance(self.metric, RegionalMetric):
            weights = self.metric.weights_of(self.path.at(time).state[1])
        else:
            shares = torch.tensor(self.metric.weights).to(self.tensors[0])
            weights = shares.sqrt().view(1, -1, *[1] * self.place.grid.dim)
            weights = weights.expand(1, -1, *self.place.grid.shape)
        return local_sigma(weights, self.place.sigmas) * unit


class GeodesicModel:
    """What shooting with either metric has in common; see `descent.Model`."""

    metric: MomentumMetric | RegionalMetric
    integrator: str

    def steps(self, start: State) -> int:
        """By the speed at the start."""
        return steps_for(self.metric, start)

    def displacement(self, start: State, steps: int) -> Tensor:
        """By shooting."""
        return shoot(self.metric, start, Plan(steps, scheme_named(self.integrator)))[-1]


def momentum_metric(
    place: MapGrid, weights: Sequence[float], like: Tensor, *, order: int = 2, walls: bool = False
) -> MomentumMetric:
    """One kernel for the whole map grid, placed and typed like a tensor; raises like its class."""
    return MomentumMetric(
        place.grid.shape, place.spacing, place.sigmas, weights,
        order=order, walls=walls, dtype=like.dtype, device=like.device,
    )  # fmt: skip


def regional_metric(place: MapGrid, like: Tensor, *, order: int = 2, walls: bool = False) -> RegionalMetric:
    """The metric of pre-weights, placed and typed like a tensor; raises like its class."""
    return RegionalMetric(
        place.grid.shape, place.spacing, place.sigmas, place.preweight_sigma,
        order=order, walls=walls, dtype=like.dtype, device=like.device,
    )  # fmt: skip


def chain(geodesics: Sequence[Geodesic], grid: Grid, time: float = 1.0) -> Maps:
    """phi^-1 = g_0^-1 o g_1^-1 o ... and phi at a time, (1, d, *grid.shape), voxels of `grid`.

    A point of the fixed image is carried by the last geodesic first.  At time t of k geodesics the first
    floor(t k), from g_0, are whole, the next has come to its share of the rest.
    Raises SettingsError for a time outside [0, 1] or no geodesic, GeometryError for other axes.
    """
    if not geodesics:
        raise SettingsError("There is no geodesic to follow.")
    if not 0 <= time <= 1:
        raise SettingsError(f"A path runs from time 0 to 1; there is no {time}.")
    passed = time * len(geodesics)
    whole = min(math.floor(passed), len(geodesics) - 1)
    total = geodesics[0].maps(grid, min(1.0, passed))
    for number, geodesic in enumerate(geodesics[1 : whole + 1], start=1):
        if passed == number:
            break
        inverse, forward = geodesic.maps(grid, min(1.0, passed - number))
        total = compose(total[0], inverse), compose(forward, total[1])
    return total


def finished(
    geodesics: Sequence[Geodesic], working: Grid, cover: Grid, taper_mm: float | None, time: float = 1.0
) -> Flow:
    """The map of a chain at a time, closed around `cover`; shot on the CPU, so that it is the same again.

    working: the grid the images were compared on.  cover, taper_mm: see `flows.closing.close`.
    Raises like `chain`.
    """
    inverse, _ = chain([geodesic.to("cpu") for geodesic in geodesics], working, time)
    return close(inverse, working, cover, taper_mm)
