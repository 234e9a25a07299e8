"""How sure the motion of a group is: samples of its velocities around the optimum, carried through the flow.

The posterior is a Gaussian around the velocities found (Laplace).  Its data term is that of images which are
one template each and noise: for image k the precision at a place is the outer product of the slope of the
carried image over the variance of what the other images do not explain of it.  Its prior is a smooth random
field as large as the velocities found and as wide as the search smooths: what it does not smooth away stays
in the estimate, however much smoother the true motion may be.  With z = s G w, w white and G a Gaussian of
unit variance, the precision of w is  A = I + s^2 G^T H G, and  A^-1 (e_1 + s G^T H^1/2 e_2)  is a sample.
Every image is sampled as if it were alone; taking the mean off (all-moving), or the sample of the fixed
image (all-to-one), gives the covariance of the whole group.

Source: van der Ouderaa et al., GroupMorph, 2020 (posterior around a mean, samples through the flow);
Papandreou and Yuille, NIPS 2010 (samples by perturbed solves).  The diagonal covariance of the former knows
nothing of a neighbour and averages out along the flow; this one does not.  The model of the data is ours.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from DiffeoRegLib.flows.exponential import midpoint_exp
from DiffeoRegLib.methods.base import Progress, Report
from DiffeoRegLib.methods.group_search import GroupLevel, GroupMotion, compare_reads, group_plans
from DiffeoRegLib.settings import Settings
from DiffeoRegLib.space.field import change_grid, downsample_image
from DiffeoRegLib.space.filters import gaussian_smooth
from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.space.sample import array_from_tensor
from DiffeoRegLib.volumes.group import Group

SAMPLES = 16
STEPS_PER_WIDTH = 1.5
"""Voxels of the grid of the samples per standard deviation of the prior."""
MOST_VOXELS = 60_000
LAGS = 3
"""Neighbours whose noise may be the same noise: interpolation mixes it."""
ITERATIONS, TOLERANCE = 60, 1e-2
BINS = 32
MOST_ASKED = 6
LEAST_CLEAN = 0.1
STRUCTURE_VOX = 2.0
SEARCH_WIDTHS = 1.1
"""Widest prior, in standard deviations of the search's smoothing of its last updates: with it predicted and
real errors agree, see Testing/benchmarks/group_uncertainty.py."""


@dataclass(frozen=True, eq=False)
class Uncertainty:
    """Standard deviations.

    deviation_mm: (K, *grid.shape), root of the summed variance of the components of where a point of the
    common space lies in each image; 0 for the fixed image.
    components_mm: (K, d, *grid.shape), of each component, along the axes of the grid.
    noise: standard deviation of what the other images do not explain, per image, in [0, 1].
    size_mm, width_mm: standard deviation of the prior and of its Gaussian.
    """

    deviation_mm: Tensor
    components_mm: Tensor
    grid: Grid
    noise: tuple[float, ...]
    size_mm: float
    width_mm: float


@torch.no_grad()
def uncertainty(
    group: Group, motion: GroupMotion, settings: Settings, report: Report, samples: int = SAMPLES
) -> Uncertainty:
    """Standard deviations of the maps of a group from samples of their posterior; see above.

    The random numbers of an image follow from what it holds and settings.seed, not from its place.
    """
    count = len(group.images)
    size_mm, width_mm = prior_of(motion, telling(group, motion.grid))
    last = group_plans(settings, group.grid)[-1]
    width_mm = min(width_mm, SEARCH_WIDTHS * last.update_sigma * last.level_mm * (2 if last.fine else 1))
    grid = _sample_grid(motion.grid, width_mm)
    steps = motion.velocities_vox.new_tensor(grid.spacing).view(1, -1, *[1] * grid.dim)
    prior = Prior(grid, size_mm, width_mm, steps)
    precisions, noise = _precisions(group, motion, settings, grid)
    drawn = motion.velocities_vox.new_empty((count, samples, grid.dim, *grid.shape))
    for index, (precision, generator) in enumerate(zip(precisions, generators(group, settings), strict=True)):
        report(Progress("uncertainty", index / count, f"image {index + 1} of {count}"))
        drawn[index] = prior.samples(precision, samples, generator)
    reference = drawn.mean(0) if motion.fixed is None else drawn[motion.fixed].clone()
    components = drawn.new_empty((count, grid.dim, *grid.shape))
    velocities = change_grid(motion.velocities_vox, motion.grid, grid)
    for index in range(count):
        apart = (drawn[index] - reference) / steps
        flows = torch.cat([midpoint_exp(velocities[index : index + 1] + one[None]) for one in apart])
        components[index] = (flows.var(0, keepdim=True).sqrt() * steps)[0]
    return Uncertainty(components.square().sum(1).sqrt(), components, grid, noise, size_mm, width_mm)


def generators(group: Group, settings: Settings) -> list[torch.Generator]:
    """Of every image, from what it holds and settings.seed; images that hold the same get others."""
    found, taken = list[torch.Generator](), dict[int, int]()
    for image in group.images:
        content = zlib.crc32(array_from_tensor(image).tobytes())
        taken[content] = taken.get(content, -1) + 1
        found.append(torch.Generator().manual_seed(content + 7919 * taken[content] + settings.seed))
    return found


def telling(group: Group, grid: Grid) -> Tensor:
    """Where the images have structure that motion can be seen by, in [0, 1], (*grid.shape).

    Smoothed first: in a plain background velocities follow the noise, and say nothing about motion.
    """
    strides = [-(-n // m) for n, m in zip(group.grid.shape, grid.shape, strict=True)]
    total = torch.zeros(grid.shape)
    for image in group.images:
        smooth = gaussian_smooth(downsample_image(image, strides), STRUCTURE_VOX)[0, 0]
        for axis, size in enumerate(grid.shape):
            if size > 1:
                total += torch.gradient(smooth, dim=axis)[0].square()
    return total / total.max().clamp(min=1e-12)


def prior_of(motion: GroupMotion, weight: Tensor) -> tuple[float, float]:
    """Standard deviation of the velocities of a single image and width of the Gaussian they look made of, mm.

    A field G w has the slope variance s^2 / (2 width^2) along every axis.  weight: (*grid.shape), where.
    """
    velocities, spacing = motion.velocities_vox, motion.grid.spacing
    moving = [index for index in range(len(velocities)) if index != motion.fixed]
    # what taking off the mean, or the fixed image, does to the variance of independent fields
    factor = 1 - 1 / len(velocities) if motion.fixed is None else 2.0
    energy, slopes, places = 0.0, 0.0, 0
    for index in moving:
        for axis, step in enumerate(spacing):
            component = velocities[index, axis] * step
            energy += float((component.square() * weight).sum() / weight.sum().clamp(min=1e-12))
            for along, length in enumerate(spacing):
                if component.shape[along] > 1:
                    shares = weight.narrow(along, 0, weight.shape[along] - 1)
                    squares = (component.diff(dim=along) / length).square()
                    slopes += float((squares * shares).sum() / shares.sum().clamp(min=1e-12))
                    places += 1
    variance = energy / (len(moving) * len(spacing)) / factor
    slope = slopes / max(places, 1) / factor
    least = min(spacing)
    widest = max(motion.grid.extent_mm) / 4
    size = max(math.sqrt(variance), 0.05 * least)
    width = math.sqrt(variance / (2 * slope)) if slope > 0 else widest
    return size, min(max(width, least), widest)


def _sample_grid(grid: Grid, width_mm: float) -> Grid:
    """A grid just fine enough for the prior, by whole strides of the grid of the velocities."""
    step = width_mm / STEPS_PER_WIDTH
    while True:
        strides = [max(1, min(int(step / s), n // 4)) for s, n in zip(grid.spacing, grid.shape, strict=True)]
        found = grid.coarsened(strides)
        if found.voxel_count <= MOST_VOXELS or step > max(grid.extent_mm):
            return found
        step *= 1.1


class Prior:
    """The smooth random fields of the prior, mm, on a grid."""

    def __init__(self, grid: Grid, size_mm: float, width_mm: float, like: Tensor) -> None:
        self.grid, self.size_mm = grid, size_mm
        self.sigma = [width_mm / step for step in grid.spacing]
        impulse = like.new_ones((1, 1, *grid.shape))
        self.scale = size_mm / self._spread(impulse).sqrt()

    def _spread(self, ones: Tensor) -> Tensor:
        """Sum of squared weights of the smoothing at every voxel, axis by axis."""
        out = torch.ones_like(ones)
        for axis, size in enumerate(self.grid.shape):
            sigma = [self.sigma[axis] if a == axis else 0.0 for a in range(self.grid.dim)]
            line = torch.eye(size, dtype=ones.dtype).view(
                size, 1, *[size if a == axis else 1 for a in range(self.grid.dim)]
            )
            squares = gaussian_smooth(line, sigma, "zero").square().sum(0, keepdim=True)
            out = out * squares
        return out

    def field(self, white: Tensor) -> Tensor:
        """s G w of (N, d, *grid.shape)."""
        return gaussian_smooth(white, self.sigma, "zero") * self.scale

    def adjoint(self, field_mm: Tensor) -> Tensor:
        """The transpose of `field`."""
        return gaussian_smooth(field_mm * self.scale, self.sigma, "zero")

    def samples(self, precision: Precision, count: int, generator: torch.Generator) -> Tensor:
        """Samples (count, d, *grid.shape), mm, of the posterior with some data."""
        shape = (count, self.grid.dim, *self.grid.shape)
        like = precision.values
        white, other = (torch.randn(shape, generator=generator).to(like) for _ in range(2))
        right = white + self.adjoint(precision.root(other))
        solved = _conjugate_gradients(lambda w: w + self.adjoint(precision.times(self.field(w))), right)
        return self.field(solved)


@dataclass(frozen=True, eq=False)
class Precision:
    """Symmetric H = V diag(values) V^T at every voxel: vectors (*shape, d, d), values (*shape, d)."""

    vectors: Tensor
    values: Tensor

    def times(self, field_mm: Tensor) -> Tensor:
        """H u of (N, d, *shape)."""
        return self._turned(field_mm, self.values)

    def root(self, white: Tensor) -> Tensor:
        """A root of H times white noise (N, d, *shape)."""
        scaled = white.movedim(1, -1) * self.values.sqrt()
        return torch.einsum("...ab,n...b->n...a", self.vectors, scaled).movedim(-1, 1)

    def _turned(self, field_mm: Tensor, values: Tensor) -> Tensor:
        own = torch.einsum("...ab,n...a->n...b", self.vectors, field_mm.movedim(1, -1)) * values
        return torch.einsum("...ab,n...b->n...a", self.vectors, own).movedim(-1, 1)


def _conjugate_gradients(product: Callable[[Tensor], Tensor], right: Tensor) -> Tensor:
    """x with A x = b for every entry of a batch, A symmetric and positive."""
    axes = tuple(range(1, right.dim()))
    x = torch.zeros_like(right)
    residual = right.clone()
    direction = residual.clone()
    energy = residual.square().sum(axes, keepdim=True)
    enough = energy * TOLERANCE**2
    for _ in range(ITERATIONS):
        if bool((energy <= enough).all()):
            break
        image = product(direction)
        step = energy / (direction * image).sum(axes, keepdim=True).clamp(min=1e-30)
        x += step * direction
        residual -= step * image
        following = residual.square().sum(axes, keepdim=True)
        direction = residual + following / energy.clamp(min=1e-30) * direction
        energy = following
    return x


def _precisions(
    group: Group, motion: GroupMotion, settings: Settings, grid: Grid
) -> tuple[list[Precision], tuple[float, ...]]:
    """What the data say at every voxel of the samples' grid, per image, 1/mm^2; and each image's noise."""
    level = GroupLevel(group, group_plans(settings, group.grid)[-1], motion.fixed)
    blocks = level.blocks
    spacing = [step / side for step, side in zip(level.grid.spacing, blocks.sides, strict=True)]
    reads, weight = compare_reads(
        level, change_grid(motion.velocities_vox, motion.grid, level.grid), settings
    )
    del level
    images = torch.empty((len(reads), 1, *blocks.shape), dtype=reads.dtype)
    for index, read in enumerate(reads):
        images[index] = blocks.join(read[None])
    del reads
    counted = blocks.join(weight.expand(blocks.per_block, *weight.shape)[None])[None]
    found, noise = list[Precision](), list[float]()
    for index in range(len(images)):
        image = images[index : index + 1]
        prediction, others = predicted(images, index, counted)
        residual = (image - prediction).mul_(counted)
        variance = float(residual.square().sum()) / max(float(counted.sum()), 1.0) * others / (others + 1)
        variance = max(variance, 1e-8)
        shared, along = _shared_noise(residual)
        noise.append(math.sqrt(variance))
        tensor, clean = _slopes_squared(image, counted, spacing, variance, along)
        values, vectors = torch.linalg.eigh(_pooled(tensor, grid) * (clean / (variance * shared)))
        found.append(Precision(vectors, values.clamp(min=0)))
    return found, tuple(noise)


def predicted(images: Tensor, index: int, weight: Tensor) -> tuple[Tensor, int]:
    """What the other images say about one, (1, 1, *spatial), and how many of them were asked.

    The mean over them of E[x_k | x_j]: the mean of one image where another has a certain intensity needs no
    common contrast.  Of many some are asked, evenly chosen.
    """
    others = [k for k in range(len(images)) if k != index]
    others = others[:: -(-len(others) // MOST_ASKED)]
    flat, counted = images[index].flatten(), weight.flatten()
    out = torch.zeros_like(flat)
    for other in others:
        position = images[other].flatten().clamp(0, 1).mul_(BINS - 1)
        bins = position.round().long()
        held = torch.bincount(bins, counted, BINS).clamp(min=1e-6)
        out += _between(torch.bincount(bins, counted * flat, BINS) / held, position) / len(others)
    return out.view(1, 1, *images.shape[2:]), len(others)


def _between(table: Tensor, position: Tensor) -> Tensor:
    """A table read linearly between its entries."""
    low = position.floor().clamp(max=len(table) - 2)
    share = position - low
    index = low.long()
    return table[index] * (1 - share) + table[index + 1] * share


def _shared_noise(residual: Tensor) -> tuple[float, list[float]]:
    """Voxels per independent value of the noise, and its correlation two voxels away along every axis."""
    energy = max(float(residual.square().mean()), 1e-12)
    shared, along = 1.0, list[float]()
    for axis in range(2, residual.dim()):
        size, line = residual.shape[axis], list[float]()
        for lag in range(1, LAGS + 1):
            if lag < size:
                product = residual.narrow(axis, 0, size - lag) * residual.narrow(axis, lag, size - lag)
                line.append(max(0.0, float(product.mean()) / energy))
        shared *= 1 + 2 * sum(line)
        along.append(line[1] if len(line) > 1 else 0.0)
    return shared, along


def _slopes_squared(
    image: Tensor, weight: Tensor, spacing: Sequence[float], variance: float, along: Sequence[float]
) -> tuple[Tensor, float]:
    """Outer products of the slope, 1/mm^2, less what noise alone would have: (d, d, *spatial).

    And the share of the slopes that is no noise: forces made with noisy slopes are less sure by it.
    """
    dim = len(spacing)
    slopes = torch.cat(
        [
            torch.gradient(image[0, 0], spacing=step, dim=axis)[0][None]
            if image.shape[2 + axis] > 1
            else torch.zeros_like(image[0])
            for axis, step in enumerate(spacing)
        ]
    )
    tensor = slopes[:, None] * slopes[None]
    raw, noisy = float(slopes.square().sum(0).mul(weight[0, 0]).sum()), 0.0
    for axis, (step, correlation) in enumerate(zip(spacing, along, strict=True)):
        own = variance * (1 - correlation) / (2 * step**2)
        tensor[axis, axis] -= own
        noisy += own * float(weight.sum())
    clean = max(LEAST_CLEAN, 1 - noisy / max(raw, 1e-12))
    return tensor.view(dim, dim, *image.shape[2:]) * weight[0, 0], clean


def _pooled(tensor: Tensor, grid: Grid) -> Tensor:
    """Sums over the voxels of a coarser grid of the same field of view, (*grid.shape, d, d)."""
    strides = [-(-n // m) for n, m in zip(tensor.shape[2:], grid.shape, strict=True)]
    mean = downsample_image(tensor.flatten(0, 1)[:, None], strides)[:, 0]
    dim = tensor.shape[0]
    return (mean * math.prod(strides)).view(dim, dim, *mean.shape[1:]).movedim((0, 1), (-2, -1)).contiguous()
