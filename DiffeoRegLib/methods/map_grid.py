"""Where momenta live: kernels in units of the image box, and the coarsest grid that carries them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from DiffeoRegLib.errors import SettingsError
from DiffeoRegLib.space.grid import Grid

SigmaUnits = Literal["box", "mm"]
STEPS_PER_SIGMA = 1.9
"""Grid steps to the narrowest kernel, at least; below 1.5 differences cannot carry what it passes."""
FEWEST_VOXELS = 8


@dataclass(frozen=True)
class Kernels:
    """The Gaussians of a regulariser.

    sigmas: widths, as shares of the image box along each axis (as in papers) or in mm, alike along all axes.
    weights: their shares, brought to sum 1 where they are used; for RDMM those of places without a region.
    preweight_sigma: width of the smoothing G of pre-weights (RDMM), in the same unit.
    Raises SettingsError for an unknown unit, widths that are not positive, or as many weights as widths not.
    """

    sigmas: tuple[float, ...] = (0.05, 0.1, 0.15, 0.2, 0.25)
    weights: tuple[float, ...] = (1.0, 2.0, 3.0, 4.0, 5.0)
    preweight_sigma: float = 0.06
    units: SigmaUnits = "box"

    def __post_init__(self) -> None:
        if self.units not in ("box", "mm"):
            raise SettingsError(f"Widths are given in 'box' or 'mm', not '{self.units}'.")
        widths = (*self.sigmas, self.preweight_sigma)
        if not self.sigmas or not all(0 < width < math.inf for width in widths):
            raise SettingsError(f"Widths of kernels must be above zero, not {widths}.")
        if len(self.weights) != len(self.sigmas):
            raise SettingsError(f"{len(self.sigmas)} kernels need as many weights, not {len(self.weights)}.")


@dataclass(frozen=True, eq=False)
class MapGrid:
    """The grid of momentum and map, and the length that counts as 1.

    unit_mm: per tensor axis; the whole box along it, or the longest side of the box along all.
    sigmas, preweight_sigma: widths in that unit.
    """

    grid: Grid
    unit_mm: tuple[float, ...]
    sigmas: tuple[float, ...]
    preweight_sigma: float

    @property
    def spacing(self) -> tuple[float, ...]:
        """Grid steps in the unit."""
        return tuple(s / unit for s, unit in zip(self.grid.spacing, self.unit_mm, strict=True))

    @property
    def mean_unit_mm(self) -> float:
        """Geometric mean of the units: what turns a width into mm for display."""
        return float(math.prod(self.unit_mm) ** (1 / len(self.unit_mm)))


def map_grid(working: Grid, kernels: Kernels, steps_per_sigma: float = STEPS_PER_SIGMA) -> MapGrid:
    """The coarsest whole strides of the working grid that give the narrowest kernel so many steps.

    Raises SettingsError when a kernel is below 1.5 voxels of the working grid.
    """
    box = tuple(max(n - 1, 1) * s for n, s in zip(working.shape, working.spacing, strict=True))
    unit = box if kernels.units == "box" else (max(box),) * working.dim
    factor = 1.0 if kernels.units == "box" else 1 / max(box)
    narrowest = min(kernels.sigmas) * factor
    strides = []
    for n, step, one in zip(working.shape, working.spacing, unit, strict=True):
        width_vox = narrowest * one / step
        if width_vox < 1.5 * (1 - 1e-6):
            raise SettingsError(
                f"The narrowest kernel is {width_vox:.2g} voxels wide, it needs 1.5: "
                "take a wider one, or a finer working grid."
            )
        strides.append(max(1, min(math.floor(width_vox / steps_per_sigma), n // FEWEST_VOXELS)))
    sigmas = tuple(sigma * factor for sigma in kernels.sigmas)
    return MapGrid(working.coarsened(strides), unit, sigmas, kernels.preweight_sigma * factor)


class SpectralPreconditioner:
    """1 / (K^ + floor) in Fourier space: takes the smoothing by K out of the gradient by a momentum.

    K^ = sum_i c_i exp(-2 pi^2 sigma_i^2 |f|^2), on the periodic grid: it only has to be near.
    floor: share of the strongest frequency below which none is made stronger.
    """

    def __init__(self, place: MapGrid, shares: Sequence[float], floor: float, like: Tensor) -> None:
        self.axes = tuple(range(2, 2 + place.grid.dim))
        total = torch.zeros((), dtype=torch.float64)
        for sigma, share in zip(place.sigmas, shares, strict=True):
            spectrum = torch.ones((), dtype=torch.float64)
            for axis, (n, step) in enumerate(zip(place.grid.shape, place.spacing, strict=True)):
                frequency = torch.fft.fftfreq(n, d=step, dtype=torch.float64)
                if axis == place.grid.dim - 1:
                    frequency = frequency[: n // 2 + 1].abs()
                spectrum = spectrum[..., None] * torch.exp(-2 * (math.pi * sigma * frequency) ** 2)
            total = total + share * spectrum
        self.multiplier = (1 / (total + floor)).to(like)

    def __call__(self, momentum: Tensor) -> Tensor:
        """(N, d, *shape) -> the same shape; symmetric and positive."""
        spectrum = torch.fft.rfftn(momentum, dim=self.axes) * self.multiplier
        full: Tensor = torch.fft.irfftn(spectrum, s=momentum.shape[2:], dim=self.axes)
        return full
