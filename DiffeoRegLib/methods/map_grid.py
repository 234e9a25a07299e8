"""Where momenta live: kernels in units of the image box, and the coarsest grid that carries them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from DiffeoRegLib.errors import SettingsError
from DiffeoRegLib.space.filters import apply_axes, linear_resize_matrix
from DiffeoRegLib.space.fourier import LEAST_SIGMA_STEPS
from DiffeoRegLib.space.grid import Grid

SigmaUnits = Literal["box", "mm"]
STEPS_PER_SIGMA = 1.9
"""Grid steps to the narrowest kernel, at least; below 1.5 differences cannot carry what it passes."""
FEWEST_VOXELS = 8
LEAST_KERNEL = 1e-3


@dataclass(frozen=True)
class Kernels:
    """The Gaussians of a regulariser.

    sigmas: widths, as shares of the image box along each axis (as in papers) or in mm, alike along all axes.
    weights: their shares, brought to sum 1 where they are used; for RDMM those of places without a region.
    preweight_sigma: width of the smoothing G of pre-weights (RDMM), in the same unit.
    widened: on a working grid too coarse for them all widths grow in proportion; else they are refused there.
    Raises SettingsError for an unknown unit, widths that are not positive, or as many weights as widths not.
    """

    sigmas: tuple[float, ...] = (0.05, 0.1, 0.15, 0.2, 0.25)
    weights: tuple[float, ...] = (1.0, 2.0, 3.0, 4.0, 5.0)
    preweight_sigma: float = 0.06
    units: SigmaUnits = "box"
    widened: bool = False

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
    sigmas, preweight_sigma: widths in that unit.  widened: by this factor they are wider than asked for.
    """

    grid: Grid
    unit_mm: tuple[float, ...]
    sigmas: tuple[float, ...]
    preweight_sigma: float
    widened: float = 1.0

    @property
    def notes(self) -> tuple[str, ...]:
        """For the report: whether the kernels are others than asked for."""
        if self.widened == 1.0:
            return ()
        return (
            f"All kernels were made {self.widened:.3g} times as wide: the narrowest would have had fewer "
            f"than {LEAST_SIGMA_STEPS} voxels of the working grid.",
        )

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
    narrowest, widened = min(kernels.sigmas) * factor, 1.0
    if kernels.widened:
        coarsest = max(step / one for step, one in zip(working.spacing, unit, strict=True))
        widened = max(1.0, LEAST_SIGMA_STEPS * coarsest / narrowest)
        factor, narrowest = factor * widened, narrowest * widened
    strides = []
    for n, step, one in zip(working.shape, working.spacing, unit, strict=True):
        width_vox = narrowest * one / step
        if width_vox < LEAST_SIGMA_STEPS * (1 - 1e-6):
            raise SettingsError(
                f"The narrowest kernel is {width_vox:.2g} voxels wide, it needs {LEAST_SIGMA_STEPS}: "
                "take a wider one, or a finer working grid."
            )
        strides.append(max(1, min(math.floor(width_vox / steps_per_sigma), n // FEWEST_VOXELS)))
    sigmas = tuple(sigma * factor for sigma in kernels.sigmas)
    return MapGrid(working.coarsened(strides), unit, sigmas, kernels.preweight_sigma * factor, widened)


def coarser(place: MapGrid, level_mm: float) -> MapGrid:
    """The map grid at whole strides of itself, no step longer than `level_mm` unless it is already.

    Kernels too narrow for it get the least width it carries: fine motion waits for the finer grid.
    """
    strides = [
        max(1, min(math.floor(level_mm / step + 1e-6), n // FEWEST_VOXELS))
        for n, step in zip(place.grid.shape, place.grid.spacing, strict=True)
    ]
    if max(strides) == 1:
        return place
    grid = place.grid.coarsened(strides)
    least = LEAST_SIGMA_STEPS * max(s / one for s, one in zip(grid.spacing, place.unit_mm, strict=True))
    sigmas = tuple(max(sigma, least) for sigma in place.sigmas)
    return MapGrid(grid, place.unit_mm, sigmas, max(place.preweight_sigma, least))


def read_on(values: Tensor, from_place: MapGrid, to_place: MapGrid) -> Tensor:
    """Values (N, C, *shape) of one map grid at the voxels of another that covers the same box; linear."""
    matrices = []
    target, source = to_place.grid, from_place.grid
    for n, m, a, b in zip(target.shape, source.shape, target.spacing, source.spacing, strict=True):
        step = a / b
        matrices.append(linear_resize_matrix(n, m, step, 0.5 * step - 0.5, values.dtype, values.device))
    return apply_axes(values, matrices)


def carried(momentum: Tensor, from_place: MapGrid, to_place: MapGrid, shares: Sequence[float]) -> Tensor:
    """The momentum (N, d, *shape) that has, on a finer map grid, the velocity it had on a coarser one.

    A momentum is a density: its values stay.  Where kernels get narrower with the grid, K^ of the one over K^
    of the other, at most 1, takes back what would be more.  shares: of the kernels, for K^.
    """
    fine = read_on(momentum, from_place, to_place)
    wide, narrow = (
        spectrum_of(to_place, place.sigmas, shares).to(momentum) for place in (from_place, to_place)
    )
    return filtered(fine, wide / narrow.clamp(min=torch.finfo(momentum.dtype).tiny))


def momentum_of_velocity(velocity: Tensor, place: MapGrid, shares: Sequence[float]) -> Tensor:
    """The momentum whose velocity is near a given one, both (N, d, *shape), the velocity in the unit.

    K^ / (K^^2 + LEAST_KERNEL): waves that the kernels hardly pass are left out.
    """
    spectrum = spectrum_of(place, place.sigmas, shares)
    return filtered(velocity, (spectrum / (spectrum.square() + LEAST_KERNEL)).to(velocity))


def spectrum_of(place: MapGrid, sigmas: Sequence[float], shares: Sequence[float]) -> Tensor:
    """K^ = sum_i c_i exp(-2 pi^2 sigma_i^2 |f|^2) at the frequencies of the real transform, float64."""
    total = torch.zeros((), dtype=torch.float64)
    for sigma, share in zip(sigmas, shares, strict=True):
        spectrum = torch.ones((), dtype=torch.float64)
        for axis, (n, step) in enumerate(zip(place.grid.shape, place.spacing, strict=True)):
            frequency = torch.fft.fftfreq(n, d=step, dtype=torch.float64)
            if axis == place.grid.dim - 1:
                frequency = frequency[: n // 2 + 1].abs()
            spectrum = spectrum[..., None] * torch.exp(-2 * (math.pi * sigma * frequency) ** 2)
        total = total + share * spectrum
    return total


def filtered(momentum: Tensor, multiplier: Tensor) -> Tensor:
    """A field (N, d, *shape) multiplied in Fourier space, on the periodic grid."""
    axes = tuple(range(2, momentum.dim()))
    full: Tensor = torch.fft.irfftn(
        torch.fft.rfftn(momentum, dim=axes) * multiplier, s=momentum.shape[2:], dim=axes
    )
    return full


class SpectralPreconditioner:
    """1 / (K^ + floor) in Fourier space: takes the smoothing by K out of the gradient by a momentum.

    K^ = sum_i c_i exp(-2 pi^2 sigma_i^2 |f|^2), on the periodic grid: it only has to be near.
    floor: share of the strongest frequency below which none is made stronger.
    """

    def __init__(self, place: MapGrid, shares: Sequence[float], floor: float, like: Tensor) -> None:
        self.multiplier = (1 / (spectrum_of(place, place.sigmas, shares) + floor)).to(like)

    def __call__(self, momentum: Tensor) -> Tensor:
        """(N, d, *shape) -> the same shape; symmetric and positive."""
        return filtered(momentum, self.multiplier)
