"""The half-way affine of SITReg: twelve numbers per order of the images to a map and its inverse.

Each order of the images gives M = exp(symmetric) exp(skew) T.  Half of the way from image 1 to image 2 is
a = M(1, 2) M(2, 1)^-1 and its inverse M(2, 1) M(1, 2)^-1: exactly one another when the images are exchanged.
Source: Honkamaa and Marttinen, SITReg, MELBA 2024, section 3.6; Kaji and Ochiai, A concise parametrization
of affine transformation, SIAM J. Imaging Sciences 2016.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from DiffeoRegLib.errors import ShapeError
from DiffeoRegLib.space.sample import identity_vox


@dataclass(frozen=True, eq=False)
class HalfwayAffine:
    """x -> L x + t in voxels of the image.

    linear: (N, d, d), offset_vox: (N, d), both float64 on the CPU.
    """

    linear: Tensor
    offset_vox: Tensor

    def item(self, index: int) -> HalfwayAffine:
        """That of one item of the batch."""
        return HalfwayAffine(self.linear[index : index + 1], self.offset_vox[index : index + 1])

    def after(self, u_vox: Tensor, stride: int = 1) -> Tensor:
        """Displacement of x -> a(x + u(x)).

        u_vox: (N, d, *grid), voxels of a cell-centred grid of this stride.  Returns the same shape.
        """
        moved = identity_vox(u_vox.shape[2:], u_vox.dtype, u_vox.device) + u_vox
        return u_vox + self._step(moved, stride)

    def at(self, position_vox: Tensor) -> Tensor:
        """a(x) at positions (N, d, *out) or points (N, d, n), voxels of the image."""
        return position_vox + self._step(position_vox, 1)

    def _step(self, position: Tensor, stride: int) -> Tensor:
        """a(x) - x in steps of the grid, from positions on it; small numbers stay small in float32."""
        dim = position.shape[1]
        origin = (stride - 1) / 2
        step = self.linear - torch.eye(dim, dtype=self.linear.dtype)
        start = (step.sum(2) * origin + self.offset_vox) / stride
        step, start = step.to(position.device, position.dtype), start.to(position.device, position.dtype)
        moved = torch.einsum("nab,nb...->na...", step, position)
        return moved + start.view(*start.shape, *[1] * (position.dim() - 2))


def halfway_affines(
    first: Tensor, second: Tensor, shape: Sequence[int], spacing: Sequence[float] | None = None
) -> tuple[HalfwayAffine, HalfwayAffine]:
    """a, towards image 1, and its inverse, towards image 2, from the parameters of both orders.

    first, second: (N, d (d + 1)): d log scales, the off-diagonals of the symmetric part, those of the
    rotation, the translation.  They act in centred coordinates in which the longest edge of the field of
    view spans [-1, 1].  shape, spacing: voxels of the image and their size, any unit; cubes by default.
    Raises ShapeError for a number of parameters or sizes that do not fit.
    """
    sizes = [1.0] * len(shape) if spacing is None else [float(s) for s in spacing]
    if len(sizes) != len(shape) or min(sizes) <= 0:
        raise ShapeError(f"{len(shape)} positive voxel sizes are needed, not {tuple(sizes)}.")
    longest = max(n * s for n, s in zip(shape, sizes, strict=True))
    unit = torch.tensor([2 * s / longest for s in sizes], dtype=torch.float64)
    one, other = (affine_matrix(p.to("cpu", torch.float64), len(shape)) for p in (first, second))
    forward, back = one @ torch.linalg.inv(other), other @ torch.linalg.inv(one)
    return _in_voxels(forward, unit, shape), _in_voxels(back, unit, shape)


def _in_voxels(matrix: Tensor, unit: Tensor, shape: Sequence[int]) -> HalfwayAffine:
    """A map of centred coordinates, voxels times `unit`, as one of voxels."""
    center = torch.tensor([(n - 1) / 2 for n in shape], dtype=torch.float64)
    linear = matrix[:, :-1, :-1] * unit / unit[:, None]
    return HalfwayAffine(linear, center + matrix[:, :-1, -1] / unit - linear @ center)


def affine_matrix(parameters: Tensor, dim: int) -> Tensor:
    """exp(symmetric) exp(skew) T as homogeneous matrices.

    parameters: (N, d (d + 1)).  Returns (N, d + 1, d + 1).  Raises ShapeError for another number.
    """
    off = dim * (dim - 1) // 2
    if parameters.dim() != 2 or parameters.shape[1] != dim * (dim + 1):
        raise ShapeError(f"{dim * (dim + 1)} affine parameters are needed, not {tuple(parameters.shape)}.")
    scales, shears, turns, shift = torch.split(parameters, [dim, off, off, dim], dim=1)
    row, column = torch.triu_indices(dim, dim, 1)
    upper = parameters.new_zeros(len(parameters), dim, dim)
    shear, turn = upper.clone(), upper.clone()
    shear[:, row, column], turn[:, row, column] = shears, turns
    symmetric = torch.diag_embed(scales) + shear + shear.mT
    linear = torch.linalg.matrix_exp(symmetric) @ torch.linalg.matrix_exp(turn - turn.mT)
    top = torch.cat([linear, linear @ shift[:, :, None]], dim=2)
    bottom = torch.eye(dim + 1, dtype=top.dtype)[-1:].expand(len(top), 1, -1)
    return torch.cat([top, bottom], dim=1)
