"""Central differences for transport equations that conserve what the continuum conserves, fused and chunked.

Two readings of one stencil: a gradient mirrors the border values (even), a divergence mirrors and negates
them (odd, no flux through the wall).  Divergence = -gradient^T to rounding, which is what makes the energy of
a semi-discrete geodesic constant.

Fields are laid out once with their ghost voxels, (N, C, points) with the spatial axes flattened; a neighbour
is then a shift of the flat index, whole rows are worked on at once, and a chunk stays in the cache for all
the terms of an equation.  About 0.6 of the time of the same terms with padded tensors, and their adjoint a
third of autograd's (`Testing/benchmarks/shooting.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from torch import Tensor

from DiffeoRegLib.errors import SettingsError, ShapeError

COEFFICIENTS = {2: (0.5,), 4: (2 / 3, -1 / 12)}
"""Weights of f(x + k) - f(x - k), k = 1, 2, per order."""
VALUES_PER_CHUNK = 1 << 16
FEWEST_POINTS_PER_CHUNK = 1 << 12


class Stencil:
    """Differences on a grid with steps of one voxel.

    shape: voxels per tensor axis, d = 2 or 3.  order: 2 or 4, of the interior scheme.
    `highest` is the largest |eigenvalue| of a difference: 1 for order 2, 1.37 for order 4.
    Raises ShapeError for axes too short for the stencil, SettingsError for another order.
    """

    def __init__(self, shape: Sequence[int], order: int = 2) -> None:
        if order not in COEFFICIENTS:
            raise SettingsError(f"Differences have order 2 or 4, not {order}.")
        self.order = order
        self.weights = COEFFICIENTS[order]
        self.width = len(self.weights)
        self.shape = tuple(shape)
        if len(self.shape) not in (2, 3) or min(self.shape) < 2 * self.width:
            raise ShapeError(f"Differences of order {order} need at least {2 * self.width} voxels per axis.")
        self.padded = tuple(n + 2 * self.width for n in self.shape)
        self.strides = tuple(math.prod(self.padded[a + 1 :]) for a in range(len(self.shape)))
        self.points = math.prod(self.padded)
        self.highest = 1.0 if order == 2 else 1.3722

    def blank(self, like: Tensor) -> Tensor:
        """Zeros (N, C, points) for a tensor (N, C, *shape)."""
        return like.new_zeros(*like.shape[:2], self.points)

    def even(self, x: Tensor) -> Tensor:
        """Layout of (N, C, *shape) for gradients."""
        return self._laid_out(x, 1.0)

    def odd(self, x: Tensor) -> Tensor:
        """Layout of (N, C, *shape) for divergences."""
        return self._laid_out(x, -1.0)

    def inside(self, flat: Tensor) -> Tensor:
        """The grid's own voxels of a layout, a view (N, C, *shape)."""
        full = flat.view(*flat.shape[:2], *self.padded)
        for axis, n in enumerate(self.shape):
            full = full.narrow(2 + axis, self.width, n)
        return full

    def _laid_out(self, x: Tensor, sign: float) -> Tensor:
        flat = self.blank(x)
        self.inside(flat).copy_(x)
        full, dim, width = flat.view(*x.shape[:2], *self.padded), len(self.shape), self.width
        for axis, n in enumerate(self.shape):
            face = full
            for other in range(dim):  # corners of ghosts are never read
                if other != axis:
                    face = face.narrow(2 + other, width, self.shape[other])
            for k in range(width):
                for ghost, source in ((width - 1 - k, width + k), (width + n + k, width + n - 1 - k)):
                    edge = face.narrow(2 + axis, source, 1)
                    face.narrow(2 + axis, ghost, 1).copy_(edge if sign > 0 else -edge)
        return flat

    def map_speed(self, velocity: Tensor) -> Tensor:
        """The velocity (N, d, *shape) with which a displacement is carried: more in the border voxels.

        With it the mirrored difference is exact for linear displacements, as if these went on linearly past
        the border.
        """
        out = velocity.clone()
        for axis in range(len(self.shape)):
            self.weigh_border(out, axis)
        return out

    def weigh_border(self, vectors: Tensor, axis: int) -> None:
        """The weights of `map_speed` on one component, in place."""
        component = vectors[:, axis : axis + 1]
        slopes = self._border_slopes()
        for k, slope in enumerate(slopes):
            for index in (k, self.shape[axis] - 1 - k):
                component.narrow(2 + axis, index, 1).div_(slope)

    def _border_slopes(self) -> list[float]:
        """Mirrored difference of f(x) = x at the voxels next to the border."""
        slopes = []
        for row in range(self.width):
            slope = 0.0
            for k, weight in enumerate(self.weights, 1):
                below = row - k if row >= k else k - row - 1
                slope += weight * (row + k - below)
            slopes.append(slope)
        return slopes

    def chunks(self, like: Tensor) -> Iterator[slice]:
        """Runs of the flat index that cover the grid's own voxels."""
        first, last = self.width * self.strides[0], self.points - self.width * self.strides[0]
        size = last - first if like.is_cuda else max(FEWEST_POINTS_PER_CHUNK, VALUES_PER_CHUNK // len(like))
        for start in range(first, last, size):
            yield slice(start, min(start + size, last))

    def transport(self, out: Tensor, f: Tensor, v: Tensor, at: slice, sign: float = 1.0) -> None:
        """out_c += sign sum_d v_d D_d f_c on one chunk; f even, v (N, d, points), out (N, C, points)."""
        part = out[..., at]
        for axis, stride in enumerate(self.strides):
            for k, weight in enumerate(self.weights, 1):
                slope = _shift(f, at, k * stride) - _shift(f, at, -k * stride)
                part.addcmul_(slope, v[:, axis : axis + 1, at], value=sign * weight)

    def pull(self, out: Tensor, g: Tensor, f: Tensor, at: slice, sign: float = 1.0) -> None:
        """out_d += sign sum_c g_c D_d f_c on one chunk; f even and g (N, C, points), out (N, d, points)."""
        for axis, stride in enumerate(self.strides):
            for k, weight in enumerate(self.weights, 1):
                slope = _shift(f, at, k * stride) - _shift(f, at, -k * stride)
                for channel in range(f.shape[1]):
                    out[:, axis, at].addcmul_(slope[:, channel], g[:, channel, at], value=sign * weight)

    def flux(self, out: Tensor, v: Tensor, g: Tensor, at: slice, sign: float = 1.0) -> None:
        """out_c += sign sum_d div_d(v_d g_c) on one chunk; v even (N, d, points), g odd (N, C, points)."""
        part = out[..., at]
        for axis, stride in enumerate(self.strides):
            speed = v[:, axis : axis + 1]
            for k, weight in enumerate(self.weights, 1):
                for step, side in ((k * stride, 1.0), (-k * stride, -1.0)):
                    part.addcmul_(_shift(g, at, step), _shift(speed, at, step), value=side * sign * weight)


def _shift(f: Tensor, at: slice, step: int) -> Tensor:
    """The chunk moved along the flat index."""
    return f[..., at.start + step : at.stop + step]
