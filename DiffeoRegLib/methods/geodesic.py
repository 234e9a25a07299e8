"""What LDDMM and RDMM find: the start of a geodesic, from where everything else follows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from DiffeoRegLib.flows.momentum import MomentumMetric
from DiffeoRegLib.flows.regional import RegionalMetric, local_sigma
from DiffeoRegLib.flows.runge_kutta import State, scheme_named
from DiffeoRegLib.flows.shooting import Path, Plan, shoot, steps_for, trace
from DiffeoRegLib.methods.map_grid import MapGrid
from DiffeoRegLib.space.field import change_grid
from DiffeoRegLib.space.grid import Grid


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

    def maps(self, grid: Grid, time: float = 1.0) -> tuple[Tensor, Tensor]:
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
