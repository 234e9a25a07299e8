"""Gaussian kernels that are symmetric matrices on a grid: the inverse metrics of momentum flows.

A kernel is the Fourier multiplier exp(-2 pi^2 sigma^2 |f|^2) on a zero-padded box, cut back to the grid, so
that <K a, b> = <a, K b> holds to rounding, borders included.  Two forms of the same operator:
* `fourier`: one FFT there and back, whatever the number of Gaussians added up;
* `separable`: per axis the symmetric matrix of the cut convolution, applied through its leading eigenvectors
  where these are few (wide Gaussians) and as a band where not.  On a CPU it is several times as fast per
  Gaussian (`Testing/benchmarks/shooting.py`), because nothing is padded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from scipy.fft import next_fast_len
from torch import Tensor

from DiffeoRegLib.errors import SettingsError, ShapeError
from DiffeoRegLib.space.filters import Banded, apply_axes

Form = Literal["auto", "separable", "fourier"]

LEAST_SIGMA_STEPS = 1.5
"""Narrower kernels pass waves that central differences cannot carry."""
REACH_SIGMAS = 8.5
"""Farther out a Gaussian is below the rounding of float64."""
MOST_MODES = 0.5
"""Eigenvectors are used where they are at most this share of the voxels of the axes."""


@dataclass(frozen=True, eq=False)
class SymmetricFilter:
    """A symmetric positive matrix per axis: `first` along every axis, then its transpose `second`, if any."""

    first: tuple[Banded, ...]
    second: tuple[Banded, ...] | None

    def __call__(self, x: Tensor) -> Tensor:
        """The filtered x, (N, C, *spatial); differentiable."""
        y = apply_axes(x, self.first)
        return y if self.second is None else apply_axes(y, self.second)


def _filter(matrices: Sequence[Tensor], dtype: torch.dtype, device: torch.device) -> SymmetricFilter:
    """The cheaper form of symmetric positive float64 matrices, exact to the rounding of `dtype`."""
    tolerance = 0.5 * torch.finfo(dtype).eps
    factors = []
    for matrix in matrices:
        values, vectors = torch.linalg.eigh(matrix)
        kept = values > tolerance * values[-1]
        factors.append(vectors[:, kept] * values[kept].sqrt())
    if sum(f.shape[1] for f in factors) <= MOST_MODES * sum(len(m) for m in matrices):
        first = tuple(Banded.from_dense(f.T.to(device, dtype).contiguous()) for f in factors)
        return SymmetricFilter(first, tuple(banded.adjoint() for banded in first))
    cut = [torch.where(m.abs() < tolerance * m.abs().max(), 0.0, m) for m in matrices]
    return SymmetricFilter(tuple(Banded.from_dense(m.to(device, dtype)) for m in cut), None)


@lru_cache(maxsize=64)
def reflecting_gaussian(
    shape: tuple[int, ...], sigma_vox: tuple[float, ...], dtype: torch.dtype, device: torch.device
) -> SymmetricFilter:
    """A Gaussian that mirrors at the voxel faces of the border: symmetric, never negative, keeps constants.

    sigma_vox: one width per tensor axis, voxels.  Raises SettingsError for a width that is not positive.
    """
    if not min(sigma_vox) > 0:
        raise SettingsError(f"A Gaussian needs a width above zero, not {min(sigma_vox)}.")
    return _filter([_mirrored(n, s) for n, s in zip(shape, sigma_vox, strict=True)], dtype, device)


def _mirrored(n: int, sigma_vox: float) -> Tensor:
    """Sampled Gaussian of unit sum folded back at both ends, float64 (n, n)."""
    reach = max(1, math.ceil(REACH_SIGMAS * sigma_vox))
    offsets = torch.arange(-reach, reach + 1)
    weights = torch.exp(-0.5 * (offsets.double() / sigma_vox) ** 2)
    weights /= weights.sum()
    rows = torch.arange(n)[:, None]
    columns = (rows + offsets) % (2 * n)
    columns = torch.where(columns < n, columns, 2 * n - 1 - columns)
    matrix = torch.zeros(n, n, dtype=torch.float64).scatter_add_(1, columns, weights.expand(n, -1))
    return 0.5 * (matrix + matrix.T)


def _box(n: int, sigma_vox: float) -> int:
    """Points of the padded axis: no two ends of the grid meet."""
    return int(next_fast_len(n + min(n - 1, math.ceil(REACH_SIGMAS * sigma_vox)), real=True))


def _profile(points: int, sigma_vox: float) -> Tensor:
    """Multiplier of one axis, float64 (points,)."""
    frequency = torch.fft.fftfreq(points, dtype=torch.float64)
    return torch.exp(-2 * (math.pi * sigma_vox * frequency) ** 2)


@lru_cache(maxsize=64)
def _cut_gaussian(
    shape: tuple[int, ...],
    box: tuple[int, ...],
    sigma_vox: tuple[float, ...],
    dtype: torch.dtype,
    device: torch.device,
) -> SymmetricFilter:
    """The separable form of one Gaussian."""
    matrices = []
    for n, points, sigma in zip(shape, box, sigma_vox, strict=True):
        kernel = torch.fft.ifft(_profile(points, sigma)).real
        index = torch.arange(n)
        matrices.append(kernel[(index[:, None] - index).abs()])
    return _filter(matrices, dtype, device)


class GaussianKernels:
    """Gaussians of several widths on one grid, each of unit sum; zero outside the grid.

    shape: voxels per tensor axis, d = 2 or 3.  spacing and sigmas: the same unit of length, mm in the engine
    (1 / (n - 1) per axis gives the widths of the unit box that papers use).
    Raises ShapeError for a spacing that does not fit, SettingsError for no widths, or one below
    LEAST_SIGMA_STEPS steps of the coarsest axis, or an unknown form.
    """

    def __init__(
        self,
        shape: Sequence[int],
        spacing: Sequence[float],
        sigmas: Sequence[float],
        *,
        form: Form = "auto",
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.shape, self.spacing, self.sigmas = tuple(shape), tuple(spacing), tuple(sigmas)
        self._check(form)
        self.device = torch.device(device)
        if form == "auto":  # a device has many lanes and dear launches: few large calls
            form = "fourier" if self.device.type == "cuda" else "separable"
        self.form = form
        widths = [tuple(sigma / s for s in spacing) for sigma in sigmas]
        box = tuple(_box(n, max(w[a] for w in widths)) for a, n in enumerate(self.shape))
        self._box = box
        if form == "separable":
            self._filters = [_cut_gaussian(self.shape, box, w, dtype, self.device) for w in widths]
        else:
            self._multipliers = self._spectrum(box, widths).to(self.device, dtype)

    def _check(self, form: str) -> None:
        dim = len(self.shape)
        if dim not in (2, 3) or len(self.spacing) != dim or not min(self.spacing) > 0:
            raise ShapeError(f"A grid of {self.shape} needs {dim} positive spacings, not {self.spacing}.")
        if form not in ("auto", "separable", "fourier"):
            raise SettingsError(f"The form is auto, separable or fourier, not '{form}'.")
        least = LEAST_SIGMA_STEPS * max(self.spacing) * (1 - 1e-6)
        if not self.sigmas or not all(math.isfinite(s) and s >= least for s in self.sigmas):
            raise SettingsError(
                f"Kernels need widths of at least {LEAST_SIGMA_STEPS} grid steps, here {least:.4g}, "
                f"not {self.sigmas}: take wider kernels or a finer grid."
            )

    @staticmethod
    def _spectrum(box: tuple[int, ...], widths: Sequence[tuple[float, ...]]) -> Tensor:
        """Multipliers (n, *frequencies) of the real transform, float64."""
        spectra = []
        for width in widths:
            total = torch.ones((), dtype=torch.float64)
            for axis, (points, sigma) in enumerate(zip(box, width, strict=True)):
                profile = _profile(points, sigma)
                if axis == len(box) - 1:
                    profile = profile[: points // 2 + 1]
                total = total[..., None] * profile
            spectra.append(total)
        return torch.stack(spectra)

    def each(self, x: Tensor) -> Tensor:
        """Kernel i applied to slice i: (N, n, C, *shape) -> the same shape; differentiable."""
        if x.shape[1] != len(self.sigmas):
            raise ShapeError(f"{len(self.sigmas)} kernels do not fit a tensor of shape {tuple(x.shape)}.")
        if self.form == "separable":
            return torch.stack([f(part) for f, part in zip(self._filters, x.unbind(1), strict=True)], 1)
        return self._filtered(x, self._multipliers[:, None])

    def mixed(self, x: Tensor, weights: Sequence[float]) -> Tensor:
        """The weighted sum of all kernels applied to (N, C, *shape); differentiable."""
        if len(weights) != len(self.sigmas):
            raise ShapeError(f"{len(self.sigmas)} kernels need as many weights, not {len(weights)}.")
        if self.form == "separable":
            total: Tensor | None = None
            for f, weight in zip(self._filters, weights, strict=True):
                if weight != 0:
                    part = f(x) * weight
                    total = part if total is None else total + part
            return torch.zeros_like(x) if total is None else total
        share = self._multipliers.new_tensor(list(weights))
        return self._filtered(x, torch.tensordot(share, self._multipliers, 1))

    def _filtered(self, x: Tensor, multiplier: Tensor) -> Tensor:
        axes = tuple(range(-len(self.shape), 0))
        spectrum = torch.fft.rfftn(x, s=self._box, dim=axes) * multiplier
        full: Tensor = torch.fft.irfftn(spectrum, s=self._box, dim=axes)
        for axis, n in zip(axes, self.shape, strict=True):
            full = full.narrow(axis, 0, n)
        return full.contiguous()
