"""A stationary velocity v = K m found by its momentum m: the kernel, not a smoothing, makes it regular.

phi^-1 = exp(-v), by scaling and squaring.
Source: the vSVF of Shen, Han, Xu and Niethammer, CVPR 2019, in the optimised form.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from DiffeoRegLib.flows.exponential import exp
from DiffeoRegLib.flows.runge_kutta import State
from DiffeoRegLib.flows.shooting import ShootingDiverged
from DiffeoRegLib.methods.base import Motion, Pair, Report
from DiffeoRegLib.methods.descent import descend
from DiffeoRegLib.methods.geodesic import momentum_metric
from DiffeoRegLib.methods.lddmm import MomentumModel
from DiffeoRegLib.methods.map_grid import MapGrid, map_grid
from DiffeoRegLib.methods.options import Options, options_from, start_sources
from DiffeoRegLib.settings import Settings

FEWEST_SQUARINGS = 5
FIRST_STEP_VOX = 0.1
MOST_SQUARINGS = 12
"""Beyond 400 voxels of motion something else is wrong."""


class StationaryModel(MomentumModel):
    """The exponential of a stationary velocity; a step is a squaring."""

    def steps(self, start: State) -> int:
        """Squarings that begin with a tenth of a voxel."""
        with torch.no_grad():
            fastest = float(self.metric.sources(start)[0].abs().max())
        if not math.isfinite(fastest):
            raise ShootingDiverged("The momentum contains NaN or infinite values.")
        needed = math.ceil(math.log2(max(fastest, FIRST_STEP_VOX) / FIRST_STEP_VOX))
        return max(FEWEST_SQUARINGS, needed)

    def displacement(self, start: State, steps: int) -> Tensor:
        """exp(-v); raises ShootingDiverged for squarings that begin with more than four tenths of a voxel."""
        if self.steps(start) > min(steps + 2, MOST_SQUARINGS):
            raise ShootingDiverged(f"The motion needs more than {steps} squarings.")
        return exp(-self.metric.sources(start)[0], steps)


class VectorMomentumVelocity:
    """The `vsvf` method: no training, any pair; gives a velocity like `svf`.

    options: None = what the settings say.
    """

    def __init__(self, options: Options | None = None) -> None:
        self.options = options

    def predict(self, pair: Pair, settings: Settings, report: Report) -> Motion:
        """Rest.

        Raises SettingsError for settings that do not fit, or a kernel below 1.5 voxels of the working grid.
        """
        place = map_grid(pair.grid, (self.options or options_from(settings, "vsvf")).kernels)
        rest = pair.fixed.new_zeros((1, place.grid.dim, *place.grid.shape))
        return Motion(rest, place.grid, notes=place.notes)

    def refine(self, motion: Motion, pair: Pair, settings: Settings, report: Report) -> Motion:
        """Coarse-to-fine optimisation of the momentum from rest, whatever the motion is so far.

        The squarings follow the motion; settings.steps are those of the finished map.
        """
        options = self.options or options_from(settings, "vsvf")
        place = map_grid(pair.grid, options.kernels)
        momentum = torch.zeros_like(motion.velocity_vox)

        def on(place: MapGrid) -> StationaryModel:
            metric = momentum_metric(
                place, options.kernels.weights, momentum, order=options.order, walls=options.walls
            )
            return StationaryModel(metric, "rk4")

        model, free = on(place), settings.with_changes(steps="auto")
        found = descend(model, [momentum], place, pair, options, free, report, on=on)
        velocity = -model.metric.sources(model.start(found.tensors))[0]
        return Motion(velocity, place.grid, notes=tuple(replace(found, unit="squarings").notes))

    def sources(self, settings: Settings) -> list[str]:
        """That of the start of the search, where it is not rest."""
        free = settings.with_changes(steps="auto")
        return start_sources(self.options or options_from(settings, "vsvf"), free)
