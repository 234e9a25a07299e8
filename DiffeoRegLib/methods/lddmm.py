"""LDDMM by shooting: the geodesic of one kernel whose end carries the moving image onto the fixed one.

Sources: Vialard, Risser, Rueckert and Cotter, IJCV 2012 (shooting); equation 2.4 of Shen, Vialard and
Niethammer, NeurIPS 2019 (vector momentum, multi-Gaussian kernel).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from DiffeoRegLib.flows.momentum import MomentumMetric
from DiffeoRegLib.flows.runge_kutta import State
from DiffeoRegLib.methods.base import Pair, Report
from DiffeoRegLib.methods.descent import Options, descend
from DiffeoRegLib.methods.geodesic import Geodesic, GeodesicModel
from DiffeoRegLib.methods.lbfgs import Tensors
from DiffeoRegLib.methods.map_grid import MapGrid, map_grid
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
    """LDDMM: no training, any pair."""

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or Options()

    def predict(self, pair: Pair, settings: Settings, report: Report) -> Geodesic:
        """Rest.  Raises SettingsError when the narrowest kernel is below 1.5 voxels of the working grid."""
        place = map_grid(pair.grid, self.options.kernels)
        momentum = pair.fixed.new_zeros((1, place.grid.dim, *place.grid.shape))
        metric = momentum_metric(place, self.options, momentum)
        model = MomentumModel(metric, self.options.integrator)
        steps = model.steps(model.start([momentum]))
        return Geodesic(metric, place, (momentum,), steps, model.integrator)

    def refine(self, motion: Geodesic, pair: Pair, settings: Settings, report: Report) -> Geodesic:
        """Coarse-to-fine optimisation of the momentum; zero iterations return it unchanged."""
        assert isinstance(motion.metric, MomentumMetric)
        model = MomentumModel(motion.metric, motion.integrator)
        found = descend(model, list(motion.tensors), motion.place, pair, self.options, settings, report)
        return Geodesic(
            motion.metric, motion.place, tuple(found.tensors), found.steps, motion.integrator, (found.note,)
        )


def momentum_metric(place: MapGrid, options: Options, like: Tensor) -> MomentumMetric:
    """One kernel for the whole grid; raises like MomentumMetric."""
    return MomentumMetric(
        place.grid.shape, place.spacing, place.sigmas, options.kernels.weights,
        order=options.order, dtype=like.dtype, device=like.device,
    )  # fmt: skip
