"""RDMM: geodesics whose regulariser differs from region to region and moves with the moving image.

Two of the paper's three modes: the regulariser is given by a map of regions, or is found together with the
momentum (the third predicts both with a network).
Source: Shen, Vialard and Niethammer, Region-specific diffeomorphic metric mapping, NeurIPS 2019.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from DiffeoRegLib.catalog import Card, card
from DiffeoRegLib.errors import InputError, SettingsError, ShapeError
from DiffeoRegLib.flows.momentum import shares as brought_to_one
from DiffeoRegLib.flows.regional import RegionalMetric, preweights_from_regions, preweights_from_scores
from DiffeoRegLib.flows.runge_kutta import State
from DiffeoRegLib.losses.preweights import range_energy, range_share, transport_energy
from DiffeoRegLib.methods.base import Motion, Pair, Report
from DiffeoRegLib.methods.descent import descend, first_steps
from DiffeoRegLib.methods.geodesic import Geodesic, GeodesicModel, regional_metric
from DiffeoRegLib.methods.lbfgs import Tensors
from DiffeoRegLib.methods.map_grid import Kernels, MapGrid, map_grid, read_on
from DiffeoRegLib.methods.options import Options, options_from, start_sources
from DiffeoRegLib.settings import Settings
from DiffeoRegLib.space.field import downsample_image
from DiffeoRegLib.space.fourier import LEAST_SIGMA_STEPS
from DiffeoRegLib.stiffness import shares_of
from DiffeoRegLib.volumes.regions import PlacedRegions, Regions, check_regions
from DiffeoRegLib.volumes.volume import Volume

REGION_SIGMA = 0.02
"""Smoothing of the edges of regions, in units of the box."""
STAGES = 10
"""The annealed weight of the energies changes in steps of 1 / STAGES."""


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
    """The `rdmm` method: no training, any pair.

    Where the pair has regions they say how stiff the moving image is; without, the regulariser is found
    together with the motion, and the weights of the kernels are those it is held to at first.
    options: None = what the settings say.
    """

    def __init__(self, options: Options | None = None) -> None:
        self.options = options

    def predict(self, pair: Pair, settings: Settings, report: Report) -> Motion:
        """Rest, with the pre-weights of the regions, or those all places share.

        Raises SettingsError for settings that do not fit, a kernel below 1.5 voxels of the working grid, a
        smoothing of pre-weights below 1.5 steps of the map grid, and shares that are negative, all zero, or
        of another number of kernels; ShapeError for regions on another grid.
        """
        options = self._options(settings, pair)
        place = map_grid(pair.grid, options.kernels)
        momentum = pair.fixed.new_zeros((1, place.grid.dim, *place.grid.shape))
        _check_smoothing(place)
        metric = regional_metric(place, momentum, order=options.order, walls=options.walls)
        notes = place.notes
        if pair.regions is None:
            weights = brought_to_one(options.kernels.weights, len(place.sigmas))
            row = momentum.new_tensor(weights).sqrt().view(1, -1, *[1] * place.grid.dim)
            preweights = row.expand(1, -1, *place.grid.shape).contiguous()
        else:
            preweights, note = _from_regions(pair.regions, place, pair, options.kernels)
            notes = (*notes, note)
        model = RegionalModel(metric, options.integrator, preweights)
        steps = first_steps(model, [momentum], settings)
        start = (momentum, preweights)
        return Motion.of(Geodesic(metric, place, start, steps, model.integrator, notes))

    def refine(self, motion: Motion, pair: Pair, settings: Settings, report: Report) -> Motion:
        """Coarse-to-fine optimisation of the momentum, and of the pre-weights unless regions give them."""
        options, (start,) = self._options(settings, pair), motion.geodesics
        assert isinstance(start.metric, RegionalMetric)
        momentum, preweights = start.tensors
        joint = pair.regions is None

        def on(place: MapGrid) -> RegionalModel:
            metric = regional_metric(place, momentum, order=options.order, walls=options.walls)
            if joint:
                return JointModel(metric, options, place)
            coarse = read_on(preweights, start.place, place)
            coarse = coarse / coarse.square().sum(1, keepdim=True).sqrt()
            return RegionalModel(metric, start.integrator, coarse)

        if joint:
            model: RegionalModel = JointModel(start.metric, options, start.place)
            tensors = [momentum, scores_of(preweights)]
        else:
            model = RegionalModel(start.metric, start.integrator, preweights)
            tensors = [momentum]
        found = descend(model, tensors, start.place, pair, options, settings, report, on=on)
        if pair.regions is None:
            preweights = preweights_from_scores(found.tensors[1])
        ends, notes = (found.tensors[0], preweights), (*start.notes, *found.notes)
        return Motion.of(replace(start, tensors=ends, steps=found.steps, notes=notes))

    def sources(self, settings: Settings) -> list[str]:
        """That of the start of the search, where it is not rest."""
        given = card(settings.method).needs_region_labels
        return start_sources(self.options or regional_options(settings, given=given), settings)

    def _options(self, settings: Settings, pair: Pair) -> Options:
        return self.options or regional_options(settings, given=pair.regions is not None)


def regional_options(settings: Settings, *, given: bool) -> Options:
    """What the settings say; given: whether there are regions.

    Raises SettingsError, also for weights of kernels beside regions: each region has its own.
    """
    if not given:
        return options_from(settings, "rdmm")
    if settings.kernel_weights is not None:
        raise SettingsError("With regions the stiffness of each is set, not one list of weights of kernels.")
    return options_from(settings, "rdmm-regions")


def checked_regions(chosen: Card, regions: Regions | None, moving: Volume, settings: Settings) -> list[str]:
    """Sentences for the report about the regions of a run.

    Raises InputError for regions that are missing or that the method has no use for, and as `check_regions`
    and `regional_options`.
    """
    if chosen.needs_region_labels and regions is None:
        raise InputError(
            f"'{chosen.name}' needs regions: a segmentation of the moving image, and how stiff each part is."
        )
    if regions is None:
        return []
    if not chosen.needs_region_labels:
        raise InputError(f"'{chosen.name}' has no use for regions: choose rdmm-regions, or leave them out.")
    return check_regions(regions, moving, len(regional_options(settings, given=True).kernels.sigmas))


def scores_of(preweights: Tensor) -> Tensor:
    """Scores whose pre-weights these are; a share of zero becomes a very small one."""
    return preweights.square().clamp(min=1e-6).log()


def _check_smoothing(place: MapGrid) -> None:
    """Pre-weights with edges ring under differences like too narrow a kernel."""
    steps = min(place.preweight_sigma / step for step in place.spacing)
    if steps < LEAST_SIGMA_STEPS * (1 - 1e-6):
        raise SettingsError(
            f"The smoothing of regional weights is {steps:.2g} grid steps wide, it needs "
            f"{LEAST_SIGMA_STEPS}: make it wider, or the narrowest kernel narrower."
        )


def _from_regions(regions: PlacedRegions, place: MapGrid, pair: Pair, kernels: Kernels) -> tuple[Tensor, str]:
    """Pre-weights (1, n, *map grid) and a sentence that says where which stiffness is."""
    labels, count = regions.labels, len(kernels.sigmas)
    if tuple(labels.shape) != (1, 1, *pair.grid.shape):
        raise ShapeError(f"Regions are (1, 1, *{pair.grid.shape}), not {tuple(labels.shape)}.")
    rows = [shares_of(stiffness, count) for stiffness in (regions.rest, *regions.stiffness.values())]
    index = torch.zeros_like(labels, dtype=torch.int64)
    for number, label in enumerate(regions.stiffness, start=1):
        index[labels == label] = number
    spacing = tuple(s / unit for s, unit in zip(pair.grid.spacing, place.unit_mm, strict=True))
    fine = preweights_from_regions(index, rows, spacing, REGION_SIGMA, dtype=pair.fixed.dtype)
    strides = [round(a / b) for a, b in zip(place.grid.spacing, pair.grid.spacing, strict=True)]
    coarse = downsample_image(fine, strides)
    preweights = coarse / coarse.square().sum(1, keepdim=True).sqrt()
    return preweights.to(pair.fixed), _coverage(regions, index)


def _coverage(regions: PlacedRegions, index: Tensor) -> str:
    """What is how stiff, and which label is nowhere."""
    rest = 100 * float((index == 0).double().mean())
    said = (
        f"Regions: {len(regions.stiffness)} with a stiffness of their own; the rest, {rest:.0f} % of the "
        f"working grid, is {regions.rest if isinstance(regions.rest, str) else tuple(regions.rest)}."
    )
    labels = enumerate(regions.stiffness, start=1)
    absent = [str(label) for number, label in labels if not bool((index == number).any())]
    return said + (f" Nowhere on the working grid: {', '.join(absent)}." if absent else "")
