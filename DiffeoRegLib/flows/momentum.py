"""LDDMM: geodesics of one kernel for the whole image (EPDiff), from a vector momentum.

State, in voxels: m (a covector: m . v does not depend on the unit), u of phi^-1.
    v       = K m,   K = sum_i c_i K_i            (with walls M K (M m), `flows/walls.py`)
    dm_a/dt = - sum_d div_d(v_d m_a) - sum_k m_k D_a v_k
    du/dt   = - v - v . D u
div = -D^T (`space/stencils.py`) and K = K^T, hence d(m . v)/dt = 0 but for the error of the time steps.
Source: equation 2.4 of Shen, Vialard and Niethammer, NeurIPS 2019; Younes et al., NeuroImage 2009.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from DiffeoRegLib.errors import SettingsError, ShapeError
from DiffeoRegLib.flows.runge_kutta import State
from DiffeoRegLib.flows.walls import held, wall_mask
from DiffeoRegLib.space.fourier import Form, GaussianKernels
from DiffeoRegLib.space.stencils import Stencil


class MomentumMetric:
    """The inverse metric K = sum_i c_i K_i of LDDMM on a grid.

    shape, spacing: the grid of the momentum; sigmas: widths of the Gaussians, in the unit of the spacing, mm;
    weights: their shares c_i, brought to sum 1.  order: of the differences, 2 or 4.
    walls: next to nothing moves at the border (`flows/walls.py`).
    Raises ShapeError and SettingsError like `GaussianKernels`, `Stencil` and `wall_mask`, SettingsError for
    weights that are negative or sum to zero.
    """

    def __init__(
        self,
        shape: Sequence[int],
        spacing: Sequence[float],
        sigmas: Sequence[float],
        weights: Sequence[float],
        *,
        order: int = 2,
        walls: bool = False,
        form: Form = "auto",
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.kernels = GaussianKernels(shape, spacing, sigmas, form=form, dtype=dtype, device=device)
        self.weights = shares(weights, len(self.kernels.sigmas))
        self.stencil = Stencil(shape, order)
        self.spacing = tuple(float(s) for s in spacing)
        self._squared = spacing_like(self.spacing, len(self.spacing), dtype, self.kernels.device).square()
        self.walls = walls
        self._mask = wall_mask(self.stencil.shape, dtype, self.kernels.device) if walls else None

    def start(self, momentum: Tensor) -> State:
        """The state of a momentum (N, d, *shape), component a along tensor axis a; v = K m is in mm."""
        check_field(momentum, self.stencil.shape)
        return (momentum * self._squared.sqrt(),)

    def momentum_of(self, state: State) -> Tensor:
        """The momentum of a state, as `start` takes it."""
        return state[0] / self._squared.sqrt()

    def sources(self, state: State) -> State:
        """The velocity (N, d, *shape), voxels per unit time."""
        return (self._kernel(state[0]),)

    def _kernel(self, m: Tensor) -> Tensor:
        """K m in voxels; symmetric."""
        return held(self.kernels.mixed(held(m, self._mask) / self._squared, self.weights), self._mask)

    def rate(self, state: State, sources: State) -> State:
        """Rates of m and u."""
        (m, u), (v,) = state, sources
        grid = self.stencil
        speed, momentum, place = grid.even(v), grid.odd(m), grid.even(u)
        map_speed = grid.even(grid.map_speed(v))
        dm, du = grid.blank(m), grid.blank(u)
        for at in grid.chunks(m):
            grid.flux(dm, speed, momentum, at, -1)
            grid.pull(dm, momentum, speed, at, -1)
            grid.transport(du, place, map_speed, at, -1)
        return grid.inside(dm), grid.inside(du) - v

    def adjoint(self, state: State, sources: State, cotangent: State) -> State:
        """Transposed derivative of `rate`, by the transposed stencils."""
        (m, u), (v,), (by_m, by_u) = state, sources, cotangent
        grid = self.stencil
        speed, map_speed, momentum = grid.even(v), grid.even(grid.map_speed(v)), grid.odd(m)
        place, of_m, of_u = grid.even(u), grid.even(by_m), grid.odd(by_u)
        dv, dm, du, dw = (grid.blank(m) for _ in range(4))
        for at in grid.chunks(m):
            grid.flux(dv, of_m, momentum, at)
            grid.pull(dv, momentum, of_m, at)
            grid.transport(dm, of_m, speed, at)
            grid.transport(dm, speed, of_m, at, -1)
            grid.pull(dw, of_u, place, at, -1)
            grid.flux(du, map_speed, of_u, at)
        by_v = through_map(grid, dv, dw) - by_u
        return self._kernel(by_v) + grid.inside(dm), grid.inside(du)


def shares(weights: Sequence[float], count: int) -> tuple[float, ...]:
    """Weights brought to sum 1; raises SettingsError for a wrong number, a negative one or a sum of zero."""
    total = sum(weights)
    if len(weights) != count or not min(weights) >= 0 or not 0 < total < float("inf"):
        raise SettingsError(f"{count} kernels need as many weights >= 0, not all 0; got {tuple(weights)}.")
    return tuple(float(w) / total for w in weights)


def spacing_like(
    spacing: Sequence[float], dim: int, dtype: torch.dtype, device: torch.device | str
) -> Tensor:
    """The spacing shaped to multiply a field (N, d, *shape)."""
    return torch.tensor(list(spacing), dtype=dtype, device=device).view(1, dim, *[1] * dim)


def check_field(momentum: Tensor, shape: tuple[int, ...]) -> None:
    """Raises ShapeError unless the tensor is (N, d, *shape)."""
    if tuple(momentum.shape[1:]) != (len(shape), *shape):
        raise ShapeError(f"The momentum should be (N, {len(shape)}, *{shape}), not {tuple(momentum.shape)}.")


def through_map(grid: Stencil, by_speed: Tensor, by_map_speed: Tensor) -> Tensor:
    """Gradient by the velocity from that by its two layouts, (N, d, *shape); alters the second."""
    weighted = grid.inside(by_map_speed)
    for axis in range(len(grid.shape)):
        grid.weigh_border(weighted, axis)
    return grid.inside(by_speed) + weighted
