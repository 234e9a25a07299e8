"""How rough velocities are, by the operator of LDDMM, (-alpha Laplacian + gamma)^beta, in voxel units.

The Laplacian is the sum of second differences.  `differences` repeats the border (or wraps around) and takes
whole powers; `fourier` wraps around and takes any power.  Where both apply they are equal to rounding.
Sources: Beg et al., Computing large deformation metric mappings, IJCV 2005; Chen, Frey and Du,
TransMorph-TVF, WBIR 2022, equation 2, and its code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from DiffeoRegLib.errors import SettingsError, ShapeError, UnknownNameError
from DiffeoRegLib.losses.regularity import diffusion
from DiffeoRegLib.losses.weighting import at_least_float32
from DiffeoRegLib.space.jacobian import require_field

Boundary = Literal["replicate", "periodic"]
BOUNDARIES: tuple[Boundary, ...] = ("periodic", "replicate")
Form = Literal["paper_sum", "paper_mean", "official"]
FORMS: tuple[Form, ...] = ("official", "paper_mean", "paper_sum")

ALPHA, GAMMA, BETA = 0.01, 0.001, 2.0
"""For brains; for faces the paper takes gamma = 0.01."""


def operator_symbol(
    shape: Sequence[int], alpha: float = ALPHA, gamma: float = GAMMA, *, dtype: torch.dtype = torch.float64
) -> Tensor:
    """A(k) = gamma + 2 alpha sum_a (1 - cos(2 pi k_a / n_a)), (*shape), of all frequencies in FFT order.

    Raises SettingsError for factors that cannot be.
    """
    _check_factors(alpha, gamma, 1.0)
    return _symbol(tuple(shape), alpha, gamma).to(dtype)


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def _symbol(shape: tuple[int, ...], alpha: float, gamma: float) -> Tensor:
    total = torch.full((1,) * len(shape), gamma, dtype=torch.float64)
    for axis, n in enumerate(shape):
        waves = 1 - torch.cos(2 * math.pi * torch.arange(n, dtype=torch.float64) / n)
        total = total + 2 * alpha * waves.view([-1 if a == axis else 1 for a in range(len(shape))])
    return total


def operator_by_differences(
    velocity_vox: Tensor,
    alpha: float = ALPHA,
    gamma: float = GAMMA,
    beta: float = BETA,
    *,
    boundary: Boundary = "replicate",
) -> Tensor:
    """(-alpha Laplacian + gamma)^beta v, (N, d, *grid), by 2 d + 1 neighbours, beta times.

    Raises ShapeError for anything but a field, SettingsError for factors that cannot be or a power that is
    not whole, UnknownNameError for an unknown border rule.
    """
    require_field(velocity_vox)
    _check_factors(alpha, gamma, beta)
    if boundary not in BOUNDARIES:
        raise UnknownNameError("border rule", boundary, BOUNDARIES)
    if beta != int(beta):
        raise SettingsError(f"By differences the power of the operator is whole, not {beta}; take 'fourier'.")
    out = velocity_vox
    for _ in range(int(beta)):
        out = _once(out, alpha, gamma, boundary)
    return out


def operator_by_fourier(
    velocity_vox: Tensor, alpha: float = ALPHA, gamma: float = GAMMA, beta: float = BETA
) -> Tensor:
    """(-alpha Laplacian + gamma)^beta v on a grid that wraps around, (N, d, *grid), for any power.

    Raises ShapeError for anything but a field, SettingsError for factors that cannot be.
    """
    dim = require_field(velocity_vox)
    _check_factors(alpha, gamma, beta)
    shape = tuple(velocity_vox.shape[2:])
    half = _symbol(shape, alpha, gamma)[..., : shape[-1] // 2 + 1] ** beta
    axes = tuple(range(-dim, 0))
    spectrum = torch.fft.rfftn(velocity_vox, dim=axes) * half.to(velocity_vox)
    back: Tensor = torch.fft.irfftn(spectrum, s=shape, dim=axes)
    return back


def lddmm_energy(
    velocities_vox: Sequence[Tensor],
    *,
    alpha: float = ALPHA,
    gamma: float = GAMMA,
    beta: float = BETA,
    form: Form = "paper_sum",
) -> Tensor:
    """Sum over the velocity fields of their norm by the operator, a scalar, mean over the batch.

    With g = (-alpha Laplacian + gamma)^beta v:
    * `paper_sum`: sum over voxels and components of g^2, which grows with the size of the image;
    * `paper_mean`: the same divided by the number of voxels, next to nothing beside a mean squared error;
    * `official`: of the published code: the operator once (beta does not count), no borders, sum of g^4.
    velocities_vox: each (N, d, *grid), voxels per step.  Borders are repeated where beta is whole.
    Raises ShapeError for no fields or axes too short, SettingsError or UnknownNameError for bad settings.
    """
    if form not in FORMS:
        raise UnknownNameError("form of the LDDMM energy", form, FORMS)
    if len(velocities_vox) == 0:
        raise ShapeError("The LDDMM energy needs at least one velocity field.")
    values = []
    for velocity in velocities_vox:
        v = at_least_float32(velocity)
        if form == "official":
            values.append(_inside(v, alpha, gamma).pow(4).sum() / len(v))
            continue
        by_waves = beta != int(beta)
        g = (operator_by_fourier if by_waves else operator_by_differences)(v, alpha, gamma, beta)
        total = g.square().sum() / len(v)
        values.append(total / math.prod(v.shape[2:]) if form == "paper_mean" else total)
    return torch.stack(values).sum()


def end_point_diffusion(velocities_vox: Sequence[Tensor]) -> Tensor:
    """Mean squared forward difference of the last velocity over axes, components and voxels, a scalar.

    velocities_vox: each (N, d, *grid), voxels per step.  This is the paper's |grad v_1|^2; its code penalises
    the final displacement instead, which is the loss `gradient` of a training.
    Raises ShapeError for no fields.
    """
    if len(velocities_vox) == 0:
        raise ShapeError("The diffusion of the end point needs at least one velocity field.")
    last = velocities_vox[-1]
    dim = require_field(last)
    return diffusion(last, [1.0] * dim) / dim**2


def _once(v: Tensor, alpha: float, gamma: float, boundary: Boundary) -> Tensor:
    """-alpha Laplacian v + gamma v."""
    out = (gamma + 2 * alpha * (v.dim() - 2)) * v
    for axis in range(2, v.dim()):
        if boundary == "periodic":
            out = out - alpha * (v.roll(1, axis) + v.roll(-1, axis))
        else:
            n = v.shape[axis]
            first, last = v.narrow(axis, 0, 1), v.narrow(axis, n - 1, 1)
            before = torch.cat([first, v.narrow(axis, 0, n - 1)], axis)
            after = torch.cat([v.narrow(axis, 1, n - 1), last], axis)
            out = out - alpha * (before + after)
    return out


def _inside(v: Tensor, alpha: float, gamma: float) -> Tensor:
    """-alpha Laplacian v + gamma v where all neighbours exist."""
    dim = require_field(v)
    _check_factors(alpha, gamma, 1.0)
    if min(v.shape[2:]) < 3:
        raise ShapeError(f"Second differences need at least 3 voxels per axis, not {tuple(v.shape[2:])}.")
    return functional.pad(_once(v, alpha, gamma, "replicate"), [-1] * (2 * dim))


def _check_factors(alpha: float, gamma: float, beta: float) -> None:
    if not (0 <= alpha < math.inf and 0 <= gamma < math.inf and alpha + gamma > 0 and 0 < beta < math.inf):
        raise SettingsError(
            "The LDDMM operator needs alpha and gamma of at least 0, not both 0, and a power above 0, "
            f"not {alpha}, {gamma} and {beta}."
        )
