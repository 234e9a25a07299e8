"""Reading values between voxels, and the door between numpy and torch.

The only place that calls `grid_sample` and the only one that converts arrays: its axis order, corner
alignment and border rules are decided here once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from DiffeoRegLib.errors import ShapeError
from DiffeoRegLib.space.bspline import interpolate_cubic

SLAB_VOXELS = 1 << 17
"""Read at once per thread of the CPU: the positions stay in the cache and take no memory."""

Mode = Literal["linear", "nearest", "cubic"]
Outside = Literal["border", "zeros"]


def tensor_from_array(
    array: NDArray[Any], dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> Tensor:
    """Tensor with the values of a numpy array of any byte order and strides; never shares its memory."""
    native = np.array(array, dtype=array.dtype.newbyteorder("="), order="C", copy=True)
    if native.dtype in (np.uint16, np.uint32, np.uint64):
        native = native.astype(np.int64)  # torch has next to no operations on wide unsigned integers
    return torch.from_numpy(native).to(device=device, dtype=dtype)


def array_from_tensor(tensor: Tensor) -> NDArray[Any]:
    """Numpy array with the values of a tensor of any device; bfloat16 comes back as float32."""
    detached = tensor.detach()
    if detached.dtype == torch.bfloat16:
        detached = detached.float()
    return detached.cpu().contiguous().numpy()


def identity_vox(
    shape: Sequence[int], dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
) -> Tensor:
    """Voxel positions of a grid, (1, d, *shape), component a = index along tensor axis a."""
    axes = [torch.arange(n, dtype=dtype, device=device) for n in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]


def sample(
    values: Tensor, position_vox: Tensor, *, mode: Mode = "linear", outside: Outside = "border"
) -> Tensor:
    """Values of an image or field at voxel positions.

    values: (N, C, *spatial); position_vox: (N or 1, d, *out) in voxels of `values`.  Returns (N, C, *out).
    outside: `border` repeats the edge value, `zeros` fades to 0 over one voxel beyond the last centre.
    Raises ShapeError when the number of components is not the number of spatial axes.
    """
    dim = values.dim() - 2
    if position_vox.shape[1] != dim or position_vox.dim() < 3:
        raise ShapeError(f"Positions need {dim} components in axis 1, got shape {tuple(position_vox.shape)}.")
    out = position_vox.shape[2:]
    if mode == "cubic":
        return interpolate_cubic(values, position_vox, outside)
    if len(out) != dim:  # a list of points: give grid_sample the spatial rank it expects
        flat = position_vox.reshape(*position_vox.shape[:2], -1, *[1] * (dim - 1))
        return sample(values, flat, mode=mode, outside=outside).reshape(
            values.shape[0], values.shape[1], *out
        )
    normalised = _normalised(position_vox, values.shape[2:]).expand(values.shape[0], *out, dim)
    read = _grid_sample(values, normalised, "nearest" if mode == "nearest" else "bilinear", outside)
    return read if outside == "border" else _faded_off_single_axes(read, position_vox, values.shape[2:])


def warp(values: Tensor, u_vox: Tensor, *, mode: Mode = "linear", outside: Outside = "border") -> Tensor:
    """Values read at x + u(x) for every voxel x of the field's grid.

    values: (N, C, *spatial); u_vox: (N, d, *spatial) on the same voxel grid.  Returns (N, C, *spatial).
    """
    dim, shape = values.dim() - 2, u_vox.shape[2:]
    tracked = torch.is_grad_enabled() and (values.requires_grad or u_vox.requires_grad)
    if tracked or mode != "linear" or outside != "border" or u_vox.shape[1] != dim or len(shape) != dim:
        return sample(
            values, identity_vox(shape, u_vox.dtype, u_vox.device) + u_vox, mode=mode, outside=outside
        )
    threads = torch.get_num_threads()
    rows = threads * max(1, SLAB_VOXELS // math.prod(shape[1:]))
    if len(values) > 1 or rows >= shape[0] or values.device.type != "cpu":
        return sample_normalised(
            values, _normalised_steps(u_vox, values.shape[2:]).expand(len(values), *shape, dim)
        )
    out = values.new_empty(1, values.shape[1], *shape)
    for first in range(0, shape[0], rows):
        part = slice(first, min(first + rows, shape[0]))
        out[:, :, part] = sample_normalised(
            values, _normalised_steps(u_vox[:, :, part], values.shape[2:], first)
        )
    return out


def _normalised_steps(u_vox: Tensor, shape: Sequence[int], first: int = 0) -> Tensor:
    """grid_sample's coordinates of x + u(x), written in one pass per axis; see `_normalised`.

    first: index, on the first axis, at which the given part of u begins.
    """
    dim = len(shape)
    grid = u_vox.new_empty((u_vox.shape[0], *u_vox.shape[2:], dim))
    for axis, size in enumerate(shape):
        scale = 2.0 / max(size - 1, 1)
        begin = first if axis == 0 else 0
        index = torch.arange(begin, begin + u_vox.shape[2 + axis], dtype=u_vox.dtype, device=u_vox.device)
        start = index * scale - 1.0
        start = start.view([-1 if a == axis else 1 for a in range(dim)])
        torch.add(start, u_vox[:, axis], alpha=scale, out=grid[..., dim - 1 - axis])
    return grid


def sample_normalised(values: Tensor, positions: Tensor) -> Tensor:
    """Linear reading at coordinates already in grid_sample's form, border repeated: for inner loops.

    values: (N, C, *spatial); positions: (N, *out, d), last axis first, -1 and 1 at the outer voxel centres.
    Returns (N, C, *out).
    """
    return _grid_sample(values, positions, "bilinear", "border")


def _grid_sample(values: Tensor, positions: Tensor, mode: str, outside: str) -> Tensor:
    """grid_sample on voxel centres, spread over the CPU's threads.

    torch divides a CPU reading among threads by the batch only. A batch of one is therefore cut along its
    first output axis into as many pieces as there are threads, which read the same values without a copy.
    """
    rows, threads = positions.shape[1], torch.get_num_threads()
    by_values, by_positions = (torch.is_grad_enabled() and t.requires_grad for t in (values, positions))
    if len(positions) > 1 or by_values or threads == 1 or rows < threads or values.device.type != "cpu":
        return functional.grid_sample(values, positions, mode=mode, padding_mode=outside, align_corners=True)
    even = rows - rows % threads
    pieces = positions[:, :even].reshape(threads, even // threads, *positions.shape[2:])
    read = functional.grid_sample(
        values.expand(threads, *values.shape[1:]), pieces, mode=mode, padding_mode=outside, align_corners=True
    )
    if by_positions:
        parts = [read.transpose(0, 1).reshape(1, values.shape[1], even, *positions.shape[2:-1])]
        if even < rows:
            last = positions[:, even:]
            parts.append(
                functional.grid_sample(values, last, mode=mode, padding_mode=outside, align_corners=True)
            )
        return torch.cat(parts, 2)
    out = values.new_empty(1, values.shape[1], *positions.shape[1:-1])
    divided = out[:, :, :even].view(1, values.shape[1], threads, even // threads, *positions.shape[2:-1])
    divided.copy_(read.transpose(0, 1)[None])
    if even < rows:
        out[:, :, even:] = functional.grid_sample(
            values, positions[:, even:], mode=mode, padding_mode=outside, align_corners=True
        )
    return out


def _normalised(position_vox: Tensor, shape: Sequence[int]) -> Tensor:
    """grid_sample's coordinates (N, *out, d): last axis first, -1 and 1 at the outer voxel centres.

    An axis of one voxel has no extent to normalise by: grid_sample reads its voxel wherever the position is.
    """
    dim = len(shape)
    scales = [2.0 / max(size - 1, 1) for size in shape]
    if torch.is_grad_enabled() and position_vox.requires_grad:
        parts = [position_vox[:, axis] * scales[axis] - 1.0 for axis in range(dim)]
        return torch.stack(parts[::-1], dim=-1)
    grid = position_vox.new_empty((position_vox.shape[0], *position_vox.shape[2:], dim))
    for axis in range(dim):
        torch.mul(position_vox[:, axis], scales[axis], out=grid[..., dim - 1 - axis]).sub_(1.0)
    return grid


def _faded_off_single_axes(out: Tensor, position_vox: Tensor, shape: Sequence[int]) -> Tensor:
    """`zeros` along axes of one voxel, where grid_sample itself knows no outside."""
    for axis, size in enumerate(shape):
        if size == 1:
            out = out * (1 - position_vox[:, axis : axis + 1].abs()).clamp(min=0)
    return out
