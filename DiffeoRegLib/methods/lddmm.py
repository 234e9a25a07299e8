"""LDDMM by shooting: the geodesic of one kernel whose end carries the moving image onto the fixed one.

Sources: Vialard, Risser, Rueckert and Cotter, IJCV 2012 (shooting); equation 2.4 of Shen, Vialard and
Niethammer, NeurIPS 2019 (vector momentum, multi-Gaussian kernel).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from DiffeoRegLib.flows.momentum import MomentumMetric
from DiffeoRegLib.flows.runge_kutta import State
from DiffeoRegLib.methods.base import Motion, Pair, Report
from DiffeoRegLib.methods.descent import descend, first_steps
from DiffeoRegLib.methods.geodesic import Geodesic, GeodesicModel, momentum_metric
from DiffeoRegLib.methods.lbfgs import Tensors
from DiffeoRegLib.methods.map_grid import MapGrid, map_grid
from DiffeoRegLib.methods.options import Options, options_from, start_sources
from DiffeoRegLib.settings import Settings


class MomentumModel(GeodesicModel):
    """The geodesic of a momentum."""

    metric: MomentumMetric

    def __init__(self, metric: MomentumMetric, integrator: str) -> None:
        self.metric, self.integrator = metric, integrator

    def start(self, tensors: Tensors) -> State:
        """tensors: the momentum."""
        return self.metric.start(tensors[0])

    def penalty(self, start: State, epoch: float) -> Tensor | None:
        """None."""
        return None

    def stage(self, epoch: float) -> float:
        """Nothing changes."""
        return 0.0

    def shares(self, start: State) -> Sequence[float]:
        """The weights."""
        return self.metric.weights


class LDDMM:
    """The `lddmm` method: no training, any pair.  options: None = what the settings say."""

    def __init__(self, options: Options | None = None) -> None:
        self.options = options

    def predict(self, pair: Pair, settings: Settings, report: Report) -> Motion:
        """Rest.

        Raises SettingsError for settings that do not fit, or a kernel below 1.5 voxels of the working grid.
        """
        options = self.options or options_from(settings)
        place = map_grid(pair.grid, options.kernels)
        momentum = pair.fixed.new_zeros((1, place.grid.dim, *place.grid.shape))
        metric = momentum_metric(
            place, options.kernels.weights, momentum, order=options.order, walls=options.walls
        )
        model = MomentumModel(metric, options.integrator)
        steps = first_steps(model, [momentum], settings)
        return Motion.of(Geodesic(metric, place, (momentum,), steps, model.integrator, place.notes))

    def refine(self, motion: Motion, pair: Pair, settings: Settings, report: Report) -> Motion:
        """Coarse-to-fine optimisation of the momentum; zero iterations return it unchanged."""
        options, (start,) = self.options or options_from(settings), motion.geodesics
        assert isinstance(start.metric, MomentumMetric)

        def on(place: MapGrid) -> MomentumModel:
            metric = momentum_metric(
                place, options.kernels.weights, start.tensors[0], order=options.order, walls=options.walls
            )
            return MomentumModel(metric, start.integrator)

        model = MomentumModel(start.metric, start.integrator)
        found = descend(model, list(start.tensors), start.place, pair, options, settings, report, on=on)
        notes = (*start.notes, *found.notes)
        return Motion.of(replace(start, tensors=tuple(found.tensors), steps=found.steps, notes=notes))

    def sources(self, settings: Settings) -> list[str]:
        """That of the start of the search, where it is not rest."""
        return start_sources(self.options or options_from(settings), settings)
