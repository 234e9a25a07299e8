"""RDMM: geodesics whose regulariser differs from region to region and moves with the moving image.

Two of the paper's three modes: the regulariser is given by a map of regions, or is found together with the
momentum (the third predicts both with a network).
Source: Shen, Vialard and Niethammer, Region-specific diffeomorphic metric mapping, NeurIPS 2019.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from DiffeoRegLib.errors import ShapeError, UnknownNameError
from DiffeoRegLib.flows.momentum import shares as brought_to_one
from DiffeoRegLib.flows.regional import RegionalMetric, preweights_from_regions, preweights_from_scores
from DiffeoRegLib.flows.runge_kutta import State
from DiffeoRegLib.losses.preweights import range_energy, range_share, transport_energy
from DiffeoRegLib.methods.base import Pair, Report
from DiffeoRegLib.methods.descent import Options, descend
from DiffeoRegLib.methods.geodesic import Geodesic, GeodesicModel
from DiffeoRegLib.methods.lbfgs import Tensors
from DiffeoRegLib.methods.map_grid import Kernels, MapGrid, map_grid
from DiffeoRegLib.settings import Settings
from DiffeoRegLib.space.field import downsample_image

Stiffness = str | Sequence[float]
REGIONAL_KERNELS = Kernels((0.03, 0.06, 0.09, 0.3), (0.0, 0.0, 0.0, 1.0), 0.05)
"""The widths of the paper's synthetic study with given regions."""
STIFFNESS: Mapping[str, tuple[float, float, float, float]] = {
    "soft": (0.2, 0.5, 0.3, 0.0),
    "normal": (0.1, 0.2, 0.3, 0.4),
    "stiff": (0.0, 0.05, 0.15, 0.8),
    "rigid-like": (0.0, 0.0, 0.0, 1.0),
}
"""Shares of the REGIONAL_KERNELS; soft and rigid-like are the paper's inside and outside."""
REGION_SIGMA = 0.02
"""Smoothing of the edges of regions, in units of the box."""
STAGES = 10
"""The annealed weight of the energies changes in steps of 1 / STAGES."""


@dataclass(frozen=True, eq=False)
class Regions:
    """Where the moving image is how stiff.

    labels: whole numbers, (1, 1, *working grid), on the working grid like the moving image of the pair.
    stiffness: of every label: a name of STIFFNESS, or shares of the kernels.  rest: of all other labels.
    """

    labels: Tensor
    stiffness: Mapping[int, Stiffness]
    rest: Stiffness = "rigid-like"


class RegionalModel(GeodesicModel):
    """The geodesic of a momentum and given pre-weights."""

    metric: RegionalMetric

    def __init__(self, metric: RegionalMetric, integrator: str, preweights: Tensor) -> None:
        self.metric, self.integrator, self.preweights = metric, integrator, preweights

    def start(self, tensors: Tensors) -> State:
        """tensors: the momentum."""
        return self.metric.start(tensors[0], self.preweights)

    def penalty(self, start: State, epoch: float) -> Tensor | None:
        """None."""
        return None

    def stage(self, epoch: float) -> float:
        """Nothing changes."""
        return 0.0

    def shares(self, start: State) -> Sequence[float]:
        """Mean of the squares of the smoothed pre-weights."""
        axes = (0, *range(2, start[1].dim()))
        return [float(v) for v in self.metric.weights_of(start[1].detach()).square().mean(axes)]


class JointModel(RegionalModel):
    """The geodesic of a momentum and of scores, which give the pre-weights."""

    def __init__(self, metric: RegionalMetric, options: Options, place: MapGrid) -> None:
        self.metric, self.integrator = metric, options.integrator
        self.options, self.sigmas = options, place.sigmas
        self.common = brought_to_one(options.kernels.weights, len(place.sigmas))

    def start(self, tensors: Tensors) -> State:
        """tensors: momentum and scores."""
        return self.metric.start(tensors[0], preweights_from_scores(tensors[1]))

    def penalty(self, start: State, epoch: float) -> Tensor | None:
        """Range and transport energy; with the epochs the first fades and the second grows."""
        weights, rho = self.metric.weights_of(start[1]), self.stage(epoch)
        pulled = self.options.common * rho * range_energy(weights, self.common)
        return pulled + self.options.transport * (1 - rho) * transport_energy(weights, self.sigmas)

    def stage(self, epoch: float) -> float:
        """Share of the range energy, in steps."""
        return math.ceil(range_share(epoch) * STAGES) / STAGES


class RDMM:
    """RDMM: no training, any pair.

    regions: None = the regulariser is found together with the motion; its common weights are then those of
    `options.kernels`, all above zero.
    """

    def __init__(self, options: Options | None = None, regions: Regions | None = None) -> None:
        default = Options() if regions is None else Options(kernels=REGIONAL_KERNELS)
        self.options, self.regions = options or default, regions

    def predict(self, pair: Pair, settings: Settings, report: Report) -> Geodesic:
        """Rest, with the pre-weights of the regions, or those all places share.

        Raises SettingsError for a kernel below 1.5 voxels of the working grid and for shares that are
        negative, all zero, or of another number of kernels, ShapeError for regions on another grid.
        """
        place = map_grid(pair.grid, self.options.kernels)
        momentum = pair.fixed.new_zeros((1, place.grid.dim, *place.grid.shape))
        metric = RegionalMetric(
            place.grid.shape, place.spacing, place.sigmas, place.preweight_sigma,
            order=self.options.order, dtype=momentum.dtype, device=momentum.device,
        )  # fmt: skip
        notes: tuple[str, ...] = ()
        if self.regions is None:
            weights = brought_to_one(self.options.kernels.weights, len(place.sigmas))
            row = momentum.new_tensor(weights).sqrt().view(1, -1, *[1] * place.grid.dim)
            preweights = row.expand(1, -1, *place.grid.shape).contiguous()
        else:
            preweights, note = _from_regions(self.regions, place, pair, self.options.kernels)
            notes = (note,)
        start = (momentum, preweights)
        model = RegionalModel(metric, self.options.integrator, preweights)
        steps = model.steps(model.start([momentum]))
        return Geodesic(metric, place, start, steps, model.integrator, notes)

    def refine(self, motion: Geodesic, pair: Pair, settings: Settings, report: Report) -> Geodesic:
        """Coarse-to-fine optimisation of the momentum, and of the pre-weights unless regions give them."""
        assert isinstance(motion.metric, RegionalMetric)
        momentum, preweights = motion.tensors
        if self.regions is None:
            model: RegionalModel = JointModel(motion.metric, self.options, motion.place)
            tensors = [momentum, scores_of(preweights)]
        else:
            model = RegionalModel(motion.metric, motion.integrator, preweights)
            tensors = [momentum]
        found = descend(model, tensors, motion.place, pair, self.options, settings, report)
        if self.regions is None:
            preweights = preweights_from_scores(found.tensors[1])
        start = (found.tensors[0], preweights)
        notes = (*motion.notes, found.note)
        return Geodesic(motion.metric, motion.place, start, found.steps, motion.integrator, notes)


def scores_of(preweights: Tensor) -> Tensor:
    """Scores whose pre-weights these are; a share of zero becomes a very small one."""
    return preweights.square().clamp(min=1e-6).log()


def _from_regions(regions: Regions, place: MapGrid, pair: Pair, kernels: Kernels) -> tuple[Tensor, str]:
    """Pre-weights (1, n, *map grid) and a sentence that says where which stiffness is."""
    labels = regions.labels
    if tuple(labels.shape) != (1, 1, *pair.grid.shape):
        raise ShapeError(f"Regions are (1, 1, *{pair.grid.shape}), not {tuple(labels.shape)}.")
    rows = [_row(regions.rest, kernels), *(_row(s, kernels) for s in regions.stiffness.values())]
    index = torch.zeros_like(labels, dtype=torch.int64)
    for number, label in enumerate(regions.stiffness, start=1):
        index[labels == label] = number
    spacing = tuple(s / unit for s, unit in zip(pair.grid.spacing, place.unit_mm, strict=True))
    fine = preweights_from_regions(index, rows, spacing, REGION_SIGMA, dtype=pair.fixed.dtype)
    strides = [round(a / b) for a, b in zip(place.grid.spacing, pair.grid.spacing, strict=True)]
    coarse = downsample_image(fine, strides)
    preweights = coarse / coarse.square().sum(1, keepdim=True).sqrt()
    return preweights.to(pair.fixed), _coverage(regions, index)


def _coverage(regions: Regions, index: Tensor) -> str:
    """What is how stiff, and which label is nowhere."""
    rest = 100 * float((index == 0).double().mean())
    said = (
        f"Regions: {len(regions.stiffness)} with a stiffness of their own; the rest, {rest:.0f} % of the "
        f"working grid, is {regions.rest if isinstance(regions.rest, str) else tuple(regions.rest)}."
    )
    labels = enumerate(regions.stiffness, start=1)
    absent = [str(label) for number, label in labels if not bool((index == number).any())]
    return said + (f" Nowhere in the map: {', '.join(absent)}." if absent else "")


def _row(stiffness: Stiffness, kernels: Kernels) -> Sequence[float]:
    """Shares of the kernels, narrow to wide; names stand for those of four."""
    if isinstance(stiffness, str) and stiffness not in STIFFNESS:
        raise UnknownNameError("stiffness", stiffness, STIFFNESS)
    row = STIFFNESS[stiffness] if isinstance(stiffness, str) else tuple(stiffness)
    return brought_to_one(row, len(kernels.sigmas))
