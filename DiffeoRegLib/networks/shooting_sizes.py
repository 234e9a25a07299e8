"""Sizes and options of the networks that predict a momentum, and the fixed linear parts they imply."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from DiffeoRegLib.errors import SettingsError, UnknownNameError
from DiffeoRegLib.flows.momentum import MomentumMetric
from DiffeoRegLib.flows.momentum import shares as brought_to_one
from DiffeoRegLib.flows.regional import RegionalMetric
from DiffeoRegLib.networks.momentum_net import STRIDE
from DiffeoRegLib.networks.sitreg_options import PRECISIONS, Precision
from DiffeoRegLib.space.filters import apply_axes, linear_resize_matrix

STEPS_PER_SIGMA = 1.9
"""Grid steps to the narrowest kernel, at least, as in `methods/map_grid.py`."""
LEAST_SIGMA_VOX = 1.5
MOST_STEPS = 60
"""Beyond some 120 map voxels of motion the weights are at fault, not the steps."""
MOST_LOOKS = 2


@dataclass(frozen=True)
class ShootingSizes:
    """What belongs to the weights: kernels, and the size of the network.

    box: voxels per tensor axis of the image whose sides count as 1, that of training.
    sigmas, preweight_sigma: widths of the kernels and of the smoothing of pre-weights, in these units.
    weights: shares of the kernels; those all places share, in RDMM.  width: see `MomentumNet`.
    most_momentum: no component of RDMM's momentum is larger, in sides of the box.
    sharpening: floor f of the filter (1 + f) / (K^ + f) that turns the output into the momentum, 0 = none;
    it gives back part of what the kernels take away, without which training takes many times the steps.
    Raises SettingsError for sizes that do not fit, or a kernel narrower than 1.5 voxels.
    """

    box: tuple[int, ...]
    sigmas: tuple[float, ...] = (0.05, 0.1, 0.15, 0.2, 0.25)
    weights: tuple[float, ...] = (1.0, 2.0, 3.0, 4.0, 5.0)
    preweight_sigma: float = 0.06
    width: float = 1.0
    most_momentum: float = 1.0
    sharpening: float = 0.0

    def __post_init__(self) -> None:
        if len(self.box) not in (2, 3) or min(self.box) < 8:
            raise SettingsError(f"The box has 2 or 3 sides of 8 voxels or more, not {self.box}.")
        lengths = (*self.sigmas, self.preweight_sigma, self.most_momentum)
        if not self.sigmas or not all(0 < length < math.inf for length in lengths):
            raise SettingsError(
                f"Widths of kernels and the largest momentum must be above zero, not {lengths}."
            )
        if not 0 <= self.sharpening < math.inf:
            raise SettingsError(f"The floor of the sharpening is at least 0, not {self.sharpening}.")
        brought_to_one(self.weights, len(self.sigmas))
        narrowest = min(self.sigmas) * (min(self.box) - 1)
        if narrowest < LEAST_SIGMA_VOX:
            raise SettingsError(
                f"The narrowest kernel is {narrowest:.2g} voxels wide, it needs {LEAST_SIGMA_VOX}: take a "
                "wider one, or smaller voxels."
            )

    @property
    def dim(self) -> int:
        """2 or 3."""
        return len(self.box)

    @property
    def shares(self) -> tuple[float, ...]:
        """The weights, of sum 1."""
        return brought_to_one(self.weights, len(self.sigmas))

    @property
    def strides(self) -> tuple[int, ...]:
        """Voxels of the images per voxel of momentum and map, per axis."""
        widths = (min(self.sigmas) * (n - 1) for n in self.box)
        return tuple(max(1, math.floor(width / STEPS_PER_SIGMA)) for width in widths)

    @property
    def map_spacing(self) -> tuple[float, ...]:
        """Steps of the map grid, in sides of the box."""
        return tuple(s / (n - 1) for s, n in zip(self.strides, self.box, strict=True))


@dataclass(frozen=True)
class ShootingOptions:
    """How a network is run; the weights fit all of them.

    looks: 1 or 2.  second_look_from: the step of training from which there are two.
    steps: of rk4, or squarings for vSVF; None = by the speed.  precision: of the convolutions.
    Raises SettingsError for values that make no sense, UnknownNameError for an unknown precision.
    """

    looks: int = 2
    second_look_from: int = 0
    steps: int | None = None
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        if not 1 <= self.looks <= MOST_LOOKS or self.second_look_from < 0:
            raise SettingsError(f"A network looks once or twice, not {self.looks} times.")
        if self.steps is not None and not 1 <= self.steps <= MOST_STEPS:
            raise SettingsError(f"A flow takes 1 to {MOST_STEPS} steps, not {self.steps}.")
        if self.precision not in PRECISIONS:
            raise UnknownNameError("precision", self.precision, PRECISIONS)


@lru_cache(maxsize=16)
def metric_on(
    sizes: ShootingSizes, regional: bool, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> MomentumMetric | RegionalMetric:
    """Made once per grid: its kernels take longer to prepare than to apply."""
    if regional:
        return RegionalMetric(
            shape, sizes.map_spacing, sizes.sigmas, sizes.preweight_sigma, dtype=dtype, device=device
        )
    return MomentumMetric(shape, sizes.map_spacing, sizes.sigmas, sizes.weights, dtype=dtype, device=device)


def on_map_grid(momentum: Tensor, strides: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Values at half resolution read at the voxels of the map grid; both are cell-centred in the images."""
    matrices = []
    for stride, n, columns in zip(strides, shape, momentum.shape[2:], strict=True):
        step, start = stride / STRIDE, stride / STRIDE / 2 - 0.5
        rows = -(-n // stride)
        matrices.append(
            None
            if stride == STRIDE
            else linear_resize_matrix(rows, columns, step, start, momentum.dtype, momentum.device)
        )
    return apply_axes(momentum, matrices)


def sharpened(sizes: ShootingSizes, x: Tensor) -> Tensor:
    """(1 + f) / (K^ + f) applied to (N, d, *map grid), on the periodic grid: it only has to be near."""
    if sizes.sharpening == 0:
        return x
    axes = tuple(range(2, x.dim()))
    gain = _gain(sizes, tuple(x.shape[2:]), x.dtype, x.device)
    full: Tensor = torch.fft.irfftn(torch.fft.rfftn(x, dim=axes) * gain, s=x.shape[2:], dim=axes)
    return full


@lru_cache(maxsize=16)
def _gain(sizes: ShootingSizes, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """The multiplier of `sharpened`, 1 for constants, (*frequencies of the real transform)."""
    kernel = torch.zeros((), dtype=torch.float64)
    for sigma, share in zip(sizes.sigmas, sizes.shares, strict=True):
        spectrum = torch.ones((), dtype=torch.float64)
        for axis, (n, step) in enumerate(zip(shape, sizes.map_spacing, strict=True)):
            frequency = torch.fft.fftfreq(n, d=step, dtype=torch.float64)
            if axis == len(shape) - 1:
                frequency = frequency[: n // 2 + 1].abs()
            spectrum = spectrum[..., None] * torch.exp(-2 * (math.pi * sigma * frequency) ** 2)
        kernel = kernel + share * spectrum
    gain: Tensor = (1 + sizes.sharpening) / (kernel + sizes.sharpening)
    return gain.to(device, dtype)
