"""RDMM: geodesics whose kernel differs from place to place and moves with the image.

State, in voxels: m (covector), pre-weights h_i, u of phi^-1.
    w_i     = G h_i,   nu_i = K_i (w_i m),   v = sum_i w_i nu_i
    dm_a/dt = - sum_d div_d(v_d m_a) - sum_k m_k D_a v_k + sum_i G(m . nu_i) D_a h_i
    dh_i/dt = - v . D h_i
    du/dt   = - v - v . D u
The same difference acts on h in both places and G = G^T, hence the energy is constant but for the error of
the time steps.  Constant h_i = sqrt(c_i) is LDDMM with weights c_i.  With walls (`flows/walls.py`) M m stands
for m in nu, and v and the source of momentum take a factor M.
Source: theorem 2 of Shen, Vialard and Niethammer, NeurIPS 2019.  The authors' program takes the gradient of h
at time 0 in the source of momentum; we follow the equation (h at the current time), which alone keeps energy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from DiffeoRegLib.errors import SettingsError, ShapeError
from DiffeoRegLib.flows.momentum import check_field, shares, spacing_like, through_map
from DiffeoRegLib.flows.runge_kutta import State
from DiffeoRegLib.flows.walls import held, wall_mask
from DiffeoRegLib.space.fourier import Form, GaussianKernels, reflecting_gaussian
from DiffeoRegLib.space.stencils import Stencil


class RegionalMetric:
    """The inverse metric K = sum_i w_i K_i w_i of RDMM on a grid.

    shape, spacing, sigmas, order, walls, form: as in `MomentumMetric`; preweight_sigma: width of G, in the
    unit of the spacing.
    Raises like `MomentumMetric`, and SettingsError for a G without width.
    """

    def __init__(
        self,
        shape: Sequence[int],
        spacing: Sequence[float],
        sigmas: Sequence[float],
        preweight_sigma: float,
        *,
        order: int = 2,
        walls: bool = False,
        form: Form = "auto",
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.kernels = GaussianKernels(shape, spacing, sigmas, form=form, dtype=dtype, device=device)
        self.stencil = Stencil(shape, order)
        self.spacing = tuple(float(s) for s in spacing)
        widths = tuple(float(preweight_sigma) / s for s in self.spacing)
        self._smooth = reflecting_gaussian(self.stencil.shape, widths, dtype, self.kernels.device)
        self._squared = spacing_like(self.spacing, len(self.spacing), dtype, self.kernels.device).square()
        self.walls = walls
        self._mask = wall_mask(self.stencil.shape, dtype, self.kernels.device) if walls else None

    def start(self, momentum: Tensor, preweights: Tensor) -> State:
        """The state of a momentum as in `MomentumMetric.start` and of pre-weights (N, n, *shape).

        Raises ShapeError for tensors of another grid or another number of kernels.
        """
        check_field(momentum, self.stencil.shape)
        expected = (len(momentum), len(self.kernels.sigmas), *self.stencil.shape)
        if tuple(preweights.shape) != expected:
            raise ShapeError(f"The pre-weights should be {expected}, not {tuple(preweights.shape)}.")
        return (momentum * self._squared.sqrt(), preweights)

    def momentum_of(self, state: State) -> Tensor:
        """The momentum of a state, as `start` takes it."""
        return state[0] / self._squared.sqrt()

    def weights_of(self, preweights: Tensor) -> Tensor:
        """w = G h, (N, n, *shape)."""
        return self._smooth(preweights)

    def sources(self, state: State) -> State:
        """Velocity (N, d, *shape), voxels per unit time; nu (N, n, d, *shape); w (N, n, *shape)."""
        m, w = held(state[0], self._mask), self._smooth(state[1])
        nu = self.kernels.each(w.unsqueeze(2) * (m / self._squared).unsqueeze(1))
        return (held(_weighted_sum(w, nu), self._mask), nu, w)

    def density(self, m: Tensor, nu: Tensor) -> Tensor:
        """G(m . nu_i), (N, n, *shape), M m for m with walls: how the energy changes with h_i."""
        return self._smooth(_dot(nu, held(m, self._mask)))

    def rate(self, state: State, sources: State) -> State:
        """Rates of m, h and u."""
        (m, h, u), (v, nu, _) = state, sources
        grid = self.stencil
        speed, momentum, place, pre = grid.even(v), grid.odd(m), grid.even(u), grid.even(h)
        map_speed, density = grid.even(grid.map_speed(v)), grid.odd(self.density(m, nu))
        dm, dh, du = (grid.blank(part) for part in (m, h, u))
        for at in grid.chunks(m):
            grid.flux(dm, speed, momentum, at, -1)
            grid.pull(dm, momentum, speed, at, -1)
            grid.pull(dm, density, pre, at)
            grid.transport(dh, pre, speed, at, -1)
            grid.transport(du, place, map_speed, at, -1)
        return grid.inside(dm), grid.inside(dh), grid.inside(du) - v

    def adjoint(self, state: State, sources: State, cotangent: State) -> State:
        """Transposed derivative of `rate`, by the transposed stencils."""
        (m, h, u), (v, nu, w), (by_m, by_h, by_u) = state, sources, cotangent
        grid = self.stencil
        speed, map_speed, momentum = grid.even(v), grid.even(grid.map_speed(v)), grid.odd(m)
        place, pre, density = grid.even(u), grid.even(h), grid.odd(self.density(m, nu))
        of_m, of_h, of_u = grid.even(by_m), grid.odd(by_h), grid.odd(by_u)
        dv, dm, du, dw = (grid.blank(m) for _ in range(4))
        dh, dq = grid.blank(h), grid.blank(h)
        for at in grid.chunks(m):
            grid.flux(dv, of_m, momentum, at)
            grid.pull(dv, momentum, of_m, at)
            grid.pull(dv, of_h, pre, at, -1)
            grid.transport(dm, of_m, speed, at)
            grid.transport(dm, speed, of_m, at, -1)
            grid.transport(dq, pre, of_m, at)
            grid.flux(dh, speed, of_h, at)
            grid.flux(dh, of_m, density, at, -1)
            grid.pull(dw, of_u, place, at, -1)
            grid.flux(du, map_speed, of_u, at)
        m, by_v = held(m, self._mask), held(through_map(grid, dv, dw) - by_u, self._mask)
        q = self._smooth(grid.inside(dq))
        by_nu = q.unsqueeze(2) * m.unsqueeze(1) + w.unsqueeze(2) * by_v.unsqueeze(1)
        back = self.kernels.each(by_nu / self._squared.unsqueeze(1))
        by_w = _dot(nu, by_v) + _dot(back, m)
        by_momentum = held(_weighted_sum(q, nu) + _weighted_sum(w, back), self._mask)
        return grid.inside(dm) + by_momentum, grid.inside(dh) + self._smooth(by_w), grid.inside(du)


def _dot(vectors: Tensor, other: Tensor) -> Tensor:
    """(N, n, d, *shape) . (N, d, *shape) -> (N, n, *shape)."""
    total = vectors[:, :, 0] * other[:, :1]
    for axis in range(1, other.shape[1]):  # no temporary with all components
        total = torch.addcmul(total, vectors[:, :, axis], other[:, axis : axis + 1])
    return total


def _weighted_sum(weights: Tensor, vectors: Tensor) -> Tensor:
    """sum_i (N, n, *shape)_i (N, n, d, *shape)_i -> (N, d, *shape)."""
    total = weights[:, :1] * vectors[:, 0]
    for index in range(1, weights.shape[1]):
        total = torch.addcmul(total, weights[:, index : index + 1], vectors[:, index])
    return total


def preweights_from_scores(scores: Tensor) -> Tensor:
    """Pre-weights (N, n, *shape) with sum_i h_i^2 = 1 from any numbers: h^2 = softmax over the kernels.

    scores = ln c_i gives h_i^2 = c_i.  Differentiable.
    """
    return torch.exp(0.5 * torch.log_softmax(scores, 1))


def preweights_from_regions(
    regions: Tensor,
    table: Sequence[Sequence[float]],
    spacing: Sequence[float],
    sigma: float,
    *,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Pre-weights (N, n, *shape) of a map of regions: root of the shares, smoothed, sum of squares 1.

    regions: integer (N, 1, *shape), row of `table` at every voxel.  table: per region the shares of the n
    kernels, brought to sum 1.  sigma: width of the smoothing in the unit of the spacing, so that no edge
    rings under differences; 0 for none.
    Raises ShapeError unless there is one channel, SettingsError for a region without a row, rows of
    different lengths, or shares that are negative or sum to zero.
    """
    shape = tuple(regions.shape[2:])
    if regions.dim() < 4 or regions.shape[1] != 1 or len(spacing) != len(shape):
        raise ShapeError(f"Regions are (N, 1, *shape) with a spacing per axis, not {tuple(regions.shape)}.")
    if regions.is_floating_point() or int(regions.min()) < 0 or int(regions.max()) >= len(table):
        raise SettingsError(f"Regions are integers from 0 to {len(table) - 1}, one per row of the table.")
    rows = [[math.sqrt(share) for share in shares(row, len(table[0]))] for row in table]
    lookup = torch.tensor(rows, dtype=torch.float64, device=regions.device)
    h = lookup[regions[:, 0].long()].movedim(-1, 1).contiguous()
    if sigma > 0:
        widths = tuple(float(sigma) / s for s in spacing)
        h = reflecting_gaussian(shape, widths, h.dtype, h.device)(h)
    elif sigma != 0:
        raise SettingsError(f"The smoothing of regions needs a width of 0 or more, not {sigma}.")
    return (h / h.square().sum(1, keepdim=True).sqrt()).to(dtype)


def local_sigma(weights: Tensor, sigmas: Sequence[float]) -> Tensor:
    """The width the kernel amounts to at every voxel, sqrt(sum_i w_i^2 sigma_i^2), (N, 1, *shape)."""
    squares = weights.new_tensor([s**2 for s in sigmas]).view(1, -1, *[1] * (weights.dim() - 2))
    return (weights.square() * squares).sum(1, keepdim=True).sqrt()
