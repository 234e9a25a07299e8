"""Images and label maps read through a transform onto another grid, block by block.

Beyond half a voxel outside the moving image (ITK's rule) there is nothing to read: `fill`, or label 0.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor

from DiffeoRegLib.errors import GeometryError
from DiffeoRegLib.space.bspline import sample_spline, spline_coefficients
from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.space.lattice import CHUNK, inside, slabs
from DiffeoRegLib.space.sample import Mode, sample
from DiffeoRegLib.space.transform import Transform
from DiffeoRegLib.volumes.volume import Volume

Reader = Callable[[Tensor], Tensor]


def warp_volume(
    moving: Volume, transform: Transform, grid: Grid, *, mode: Mode = "linear", fill: float = 0.0
) -> Volume:
    """The moving image as seen on `grid` (usually the fixed image's) through a transform.

    mode: linear, nearest or cubic (B-spline, may overshoot); fill: value outside the moving image.
    Raises GeometryError when one of the two is 2D and the other 3D.
    """
    if mode == "nearest":
        data = _read(moving, transform, grid, _nearest_reader(moving.data), fill, moving.data.dtype)
        return Volume(data, grid, moving.name, moving.is_labels)
    image = moving.batch if moving.data.is_floating_point() else moving.batch.float()
    reader = _cubic_reader(image) if mode == "cubic" else _linear_reader(image)
    return Volume(_read(moving, transform, grid, reader, fill, image.dtype), grid, moving.name)


def warp_labels(moving: Volume, transform: Transform, grid: Grid, *, smooth: bool = False) -> Volume:
    """The moving label map as seen on `grid` through a transform; 0 outside the moving image.

    smooth: every label (background too) is interpolated linearly as its own 0/1 image and the strongest
    wins, the smallest label on a tie: smoother surfaces than the nearest voxel gives. Only the labels of
    the 2^d voxels around a position can have a share there, so the cost does not grow with their number.
    Raises GeometryError when one of the two is 2D and the other 3D.
    """
    reader = _strongest_label_reader(moving.data) if smooth else _nearest_reader(moving.data)
    data = _read(moving, transform, grid, reader, 0, moving.data.dtype)
    return Volume(data, grid, moving.name, is_labels=True)


def _read(
    moving: Volume, transform: Transform, grid: Grid, reader: Reader, fill: float, dtype: torch.dtype
) -> Tensor:
    """reader(position (1, d, *block)) -> (*block) over all blocks of the grid, `fill` outside."""
    if grid.dim != moving.grid.dim:
        raise GeometryError(
            f"'{moving.name}' is {moving.grid.dim}D and the target grid is {grid.dim}D: "
            "both must be 2D or both 3D."
        )
    device = moving.data.device
    out = torch.empty(grid.shape, dtype=dtype, device=device)
    outside_value = torch.tensor(fill, dtype=dtype, device=device)
    for block in slabs(grid, CHUNK):
        position = transform.advance(block).positions_vox(moving.grid).to(device)
        within = inside(position, moving.grid.shape)[0, 0]
        out[block.start : block.start + block.shape[0]] = torch.where(within, reader(position), outside_value)
    return out


def _linear_reader(image: Tensor) -> Reader:
    return lambda position: sample(image, position, outside="border")[0, 0]


def _cubic_reader(image: Tensor) -> Reader:
    coefficients = spline_coefficients(image)
    return lambda position: sample_spline(coefficients, position)[0, 0]


def _nearest_reader(data: Tensor) -> Reader:
    """Value of the nearest voxel, halves upwards as ITK rounds; exact for any integer label."""

    def read(position: Tensor) -> Tensor:
        index = torch.zeros(position.shape[2:], dtype=torch.long, device=position.device)
        for axis, size in enumerate(data.shape):
            index = index * size + (position[0, axis] + 0.5).floor().long().clamp(0, size - 1)
        return data.reshape(-1)[index]

    return read


def _strongest_label_reader(data: Tensor) -> Reader:
    """Label whose linearly interpolated 0/1 image is largest."""

    def read(position: Tensor) -> Tensor:
        labels, weights = _corners(data, position[0])
        winner = labels[0].flatten()
        # Inside a region all corners agree; only its surface has to be voted on.
        mixed = torch.stack([label != labels[0] for label in labels]).any(dim=0).flatten().nonzero()[:, 0]
        pairs = zip(labels, weights, strict=True)
        corners = [(label.flatten()[mixed], weight.flatten()[mixed]) for label, weight in pairs]
        winner[mixed] = _vote(corners)
        return winner.reshape(position.shape[2:])

    return read


def _vote(corners: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The label with the largest sum of weights among (label, weight) pairs, the smaller one on a tie."""
    winner = corners[0][0]
    best = torch.full_like(corners[0][1], -1.0)
    for label, _ in corners:
        score = torch.zeros_like(best)
        for other, weight in corners:
            score += weight * (other == label)
        # Equal sums may differ in their last bit, depending on the order they were added in.
        better = (score > best + 1e-6) | ((score > best - 1e-6) & (label < winner))
        winner = torch.where(better, label, winner)
        best = torch.where(better, torch.maximum(score, best), best)
    return winner


def _corners(data: Tensor, position: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Values of the 2^d voxels around positions (d, *out) and their linear weights, each (*out)."""
    low, share = [], []
    for axis, size in enumerate(data.shape):
        x = position[axis].clamp(0, size - 1)
        base = x.floor().clamp(max=max(size - 2, 0))
        low.append(base.long())
        share.append(x - base)
    labels, weights = [], []
    for corner in product((0, 1), repeat=data.dim()):
        index = torch.zeros_like(low[0])
        weight = torch.ones_like(share[0])
        for axis, (bit, size) in enumerate(zip(corner, data.shape, strict=True)):
            index = index * size + (low[axis] + bit).clamp(max=size - 1)
            weight = weight * (share[axis] if bit else 1 - share[axis])
        labels.append(data.reshape(-1)[index])
        weights.append(weight)
    return labels, weights
