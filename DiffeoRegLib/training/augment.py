"""Random variants of a pair: affine, mirrored, other intensities, noise; same numbers, same result."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from DiffeoRegLib.errors import SettingsError
from DiffeoRegLib.space.sample import identity_vox, sample
from DiffeoRegLib.training.draws import generator_for, log_uniform, normal, uniform
from DiffeoRegLib.training.pairs import Item

SIDES = ("moving", "fixed")


@dataclass(frozen=True)
class AffineRange:
    """Limits of a random affine: rotation (degrees), scale (factor), shear, shift (share of each axis)."""

    rotation_degrees: float = 10.0
    scale: float = 1.1
    shear: float = 0.05
    shift: float = 0.03

    def __post_init__(self) -> None:
        if not (
            0 <= self.rotation_degrees <= 180 and self.scale >= 1 and self.shear >= 0 and self.shift >= 0
        ):
            raise SettingsError(
                "A random affine has a rotation from 0 to 180, a scale from 1, no negative size."
            )


NO_AFFINE = AffineRange(0.0, 1.0, 0.0, 0.0)


@dataclass(frozen=True)
class Augmentation:
    """What is varied, and how much; probabilities count per pair.

    together: one affine for both images; apart: another one for the moving image alone (their difference is
    then part of what the network has to find).  affine_probability: of having them.
    flip_probability: of a mirror image of both along flip_axis (tensor axis; -1 = left-right in 3D).
    gamma: each image to a power from 1/gamma to gamma; contrast, brightness: each scaled about its mean
    by a factor, and shifted; noise: largest standard deviation.  Images stay in [0, 1].
    """

    together: AffineRange = AffineRange()
    apart: AffineRange = NO_AFFINE
    affine_probability: float = 0.9
    flip_probability: float = 0.5
    flip_axis: int = -1
    gamma: float = 1.3
    contrast: float = 1.15
    brightness: float = 0.05
    noise: float = 0.03

    def __post_init__(self) -> None:
        chances = (self.affine_probability, self.flip_probability)
        if not all(0 <= chance <= 1 for chance in chances):
            raise SettingsError(f"Probabilities lie between 0 and 1, not {chances}.")
        if not (self.gamma >= 1 and self.contrast >= 1 and self.brightness >= 0 and self.noise >= 0):
            raise SettingsError("gamma and contrast are factors from 1, brightness and noise at least 0.")


class AugmentedPairs(Dataset[Item]):
    """The pairs of a data set, each item varied by the seed, the epoch and its index alone."""

    def __init__(
        self, pairs: Any, options: Augmentation, *, seed: int = 0, spacing: Sequence[float] | None = None
    ) -> None:
        self.pairs, self.options, self.seed, self.spacing = pairs, options, seed, spacing
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order and the variants of an epoch."""
        self.epoch = epoch
        self.pairs.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Item:
        item = self.pairs[index]
        batch = {key: value[None] if isinstance(value, Tensor) else value for key, value in item.items()}
        varied = augment(
            batch, generator_for("augment", self.seed, self.epoch, index), self.options, self.spacing
        )
        return {key: value[0] if isinstance(value, Tensor) else value for key, value in varied.items()}


def augment(
    batch: Item,
    generator: torch.Generator,
    options: Augmentation = Augmentation(),
    spacing: Sequence[float] | None = None,
) -> Item:
    """A varied copy of a batch of pairs; images, labels, masks and points of a pair stay consistent.

    batch: as an `Item`, with a leading batch axis; its pathology goes with the fixed image.
    spacing: of the grid, for rotations in mm; None = cubes.
    Works on the batch's device; the numbers come from the generator, whatever its device.
    """
    images = {side: batch[side] for side in SIDES}
    count, shape = images["fixed"].shape[0], tuple(images["fixed"].shape[2:])
    chosen = uniform(generator, 0, 1, (count,)) < options.affine_probability
    together = _affines(generator, options.together, chosen, shape, spacing)
    apart = _affines(generator, options.apart, chosen, shape, spacing)
    maps = {"fixed": together, "moving": together @ apart}
    flipped = (uniform(generator, 0, 1, (count,)) < options.flip_probability).tolist()
    result = dict(batch)
    for side in SIDES:
        keys = [side + end for end in ("", "_labels", "_mask", "_points_vox")]
        for key in (*keys, "pathology") if side == "fixed" else keys:
            if key in batch:
                points = key.endswith("_points_vox")
                values = (_points if points else _read)(batch[key], maps[side], shape, key)
                result[key] = _flipped(values, flipped, options.flip_axis, shape, points)
        result[side] = vary_intensity(result[side], generator, options)
    return result


def vary_group(
    item: Item,
    generator: torch.Generator,
    options: Augmentation = Augmentation(),
    spacing: Sequence[float] | None = None,
) -> Item:
    """A varied copy of a group (training/group_terms.py): together as one, apart and in intensity each image.

    item: images, labels, masks (K, 1, *shape) and points (n, d) of every image.  spacing: see `augment`.
    """
    count, shape = len(item["images"]), tuple(item["images"].shape[2:])
    chosen = uniform(generator, 0, 1, (1,)) < options.affine_probability
    together = _affines(generator, options.together, chosen, shape, spacing)
    apart = _affines(generator, options.apart, chosen.expand(count), shape, spacing)
    maps = together @ apart
    flipped = (uniform(generator, 0, 1, (1,)) < options.flip_probability).tolist() * count
    result = dict(item)
    for key, kind in (("images", SIDES[0]), ("labels", "labels"), ("masks", "masks")):
        if item.get(key) is not None:
            values = _read(item[key], maps, shape, kind)
            result[key] = _flipped(values, flipped, options.flip_axis, shape, False)
    if item.get("points"):
        moved = [_points(p[None], maps[k : k + 1], shape, "points") for k, p in enumerate(item["points"])]
        result["points"] = tuple(_flipped(p, flipped[:1], options.flip_axis, shape, True)[0] for p in moved)
    result["images"] = vary_intensity(result["images"], generator, options)
    return result


def vary_intensity(image: Tensor, generator: torch.Generator, options: Augmentation) -> Tensor:
    """Gamma, contrast, brightness and noise, drawn per image of (N, 1, *spatial) in [0, 1]."""
    one = (len(image), *[1] * (image.dim() - 1))
    gamma = log_uniform(generator, options.gamma, one).to(image)
    contrast = log_uniform(generator, options.contrast, one).to(image)
    shift = uniform(generator, -options.brightness, options.brightness, one).to(image)
    sigma = uniform(generator, 0, options.noise, one).to(image)
    image = image.clamp(0, 1) ** gamma
    mean = image.flatten(1).mean(1).view(one)
    image = image + (contrast - 1) * (image - mean) + shift
    if options.noise > 0:
        image = image + sigma * normal(generator, image.shape).to(image)
    return image.clamp(0, 1)


def _affines(
    generator: torch.Generator,
    limits: AffineRange,
    chosen: Tensor,
    shape: Sequence[int],
    spacing: Sequence[float] | None,
) -> Tensor:
    """Maps (N, d+1, d+1) of voxel positions about the grid's centre, float64; identity where not chosen."""
    count, dim = len(chosen), len(shape)
    angle = math.radians(limits.rotation_degrees)
    turns = uniform(generator, -angle, angle, (count, dim * (dim - 1) // 2)).double()
    strain = torch.diag_embed(log_uniform(generator, limits.scale, (count, dim)).double().log())
    shears = uniform(generator, -limits.shear, limits.shear, (count, dim * (dim - 1) // 2)).double()
    shift = uniform(generator, -limits.shift, limits.shift, (count, dim)).double()
    upper = torch.triu_indices(dim, dim, 1)
    skew = torch.zeros_like(strain)
    skew[:, upper[0], upper[1]], skew[:, upper[1], upper[0]] = turns, -turns
    strain[:, upper[0], upper[1]] = strain[:, upper[1], upper[0]] = shears
    size = torch.tensor(spacing or [1.0] * dim, dtype=torch.float64, device=strain.device)
    linear = torch.matrix_exp(skew) @ torch.matrix_exp(strain) * size / size[:, None]
    center = (torch.tensor(shape, dtype=torch.float64, device=strain.device) - 1) / 2
    moved = center + shift * (2 * center + 1)
    result = torch.eye(dim + 1, dtype=torch.float64, device=strain.device).repeat(count, 1, 1)
    result[:, :dim, :dim] = linear
    result[:, :dim, dim] = moved - (linear @ center)
    result[~chosen] = torch.eye(dim + 1, dtype=torch.float64, device=strain.device)
    return result


def _read(values: Tensor, maps: Tensor, shape: Sequence[int], key: str) -> Tensor:
    """Values at the mapped positions of every voxel: images repeat their border, labels and masks end."""
    dim = len(shape)
    maps = maps.to(values.device)
    if bool((maps == torch.eye(dim + 1, dtype=maps.dtype, device=maps.device)).all()):
        return values
    index = identity_vox(shape, torch.float32, values.device).flatten(2)
    linear, shift = maps[:, :dim, :dim].float(), maps[:, :dim, dim:].float()
    position = (linear @ index + shift).view(len(maps), dim, *shape)
    if not values.is_floating_point():
        # One pass per batch; whole numbers up to 2^24 survive float32.
        read = sample(values.float(), position, mode="nearest", outside="zeros")
        return read.round().to(values.dtype)
    return sample(values, position, outside="border" if key in SIDES else "zeros")


def _points(points: Tensor, maps: Tensor, shape: Sequence[int], key: str) -> Tensor:
    """Where the content at points (N, n, d) is in images read through the maps."""
    dim = len(shape)
    back = torch.linalg.inv(maps).to(points.device)
    linear, shift = back[:, :dim, :dim], back[:, None, :dim, dim]
    return torch.matmul(points.double(), linear.transpose(1, 2)).add(shift).to(points.dtype)


def _flipped(
    values: Tensor, flipped: Sequence[bool], axis: int, shape: Sequence[int], points: bool
) -> Tensor:
    """The chosen entries of a batch mirrored along a spatial axis."""
    if not any(flipped):
        return values
    values = values.clone()
    axis %= len(shape)
    for row, flip in enumerate(flipped):
        if flip and points:
            values[row, :, axis] = shape[axis] - 1 - values[row, :, axis]
        elif flip:
            values[row] = values[row].flip(1 + axis)
    return values
