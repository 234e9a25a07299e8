"""The space half-way between two images: how both reach it, its grid, and what it is that comes first.

Whatever needs both images at once is done in an order that their contents decide, or does not depend on
the order at all: exchanged images are prepared alike to the last bit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from DiffeoRegLib.errors import MemoryLimitError
from DiffeoRegLib.settings import PRESETS, Settings
from DiffeoRegLib.space.grid import Grid, Matrix
from DiffeoRegLib.space.powers import affine_exponential, matrix_logarithm
from DiffeoRegLib.space.sample import array_from_tensor
from DiffeoRegLib.volumes.intensity import finite, foreground_points_mm
from DiffeoRegLib.volumes.pair import Correspondence, Masks, Pair
from DiffeoRegLib.volumes.pathology import Pathology, place_pathology
from DiffeoRegLib.volumes.prepare import read_pair
from DiffeoRegLib.volumes.volume import Volume
from DiffeoRegLib.volumes.working_grid import BASE_BYTES, MARGIN_MM, MARGIN_VOXELS

REFINEMENT_BYTES = {3: 340, 2: 260}
"""Peak bytes per working voxel of the refinement, the images and half-way maps kept meanwhile included."""
FEATURE_BYTES = 540
"""What the features of `mind` add to that."""
MARKED_BYTES = {3: 30, 2: 60}
"""What the marks of a pathology and the change between them add to that."""
JOINING_BYTES = {3: 400, 2: 300}
"""The same while the maps are joined and inverted, the ring around the working grid included."""
NO_MIDDLE = (
    "The initial alignment turns by half a circle or mirrors: there is no way half of it, "
    "so the images meet in the space of one of them."
)


@dataclass(frozen=True, eq=False)
class Halves:
    """Linear ways between two images and the space half-way between them, RAS mm 4x4.

    in_fixed: that space is the fixed image's, which is not moved; only the moving one is.
    """

    grid_from_fixed: Matrix
    fixed_from_grid: Matrix
    grid_from_moving: Matrix
    moving_from_grid: Matrix
    in_fixed: bool = False

    def exchanged(self) -> Halves:
        """The same ways with the images' names exchanged."""
        return Halves(
            self.grid_from_moving, self.moving_from_grid, self.grid_from_fixed, self.fixed_from_grid
        )


def fixed_first(fixed: Volume, moving: Volume, masks: Masks | None = None) -> bool | None:
    """Which image comes first, decided by nothing but contents; None if they do not differ at all."""
    masks = masks or Masks()
    own = _digest(fixed, masks.fixed, masks.exclude_fixed)
    other = _digest(moving, masks.moving, masks.exclude_moving)
    return None if own == other else own < other


def exchanged_masks(masks: Masks | None) -> Masks | None:
    """The masks of the same images with their names exchanged."""
    if masks is None:
        return None
    return Masks(masks.moving, masks.fixed, masks.exclude_moving, masks.exclude_fixed)


def _digest(image: Volume, mask: Volume | None, exclude: bool) -> bytes:
    """SHA-256 of values and places; names do not count."""
    total = hashlib.sha256(str(exclude and mask is not None).encode("ascii"))
    for volume in (image, mask):
        if volume is not None:
            total.update(f"{volume.data.dtype} {volume.grid.shape}".encode("ascii"))
            total.update(volume.grid.world_from_voxel.tobytes())
            total.update(array_from_tensor(volume.data).tobytes())
    return total.digest()


def halves_of(moving_from_fixed: Matrix) -> tuple[Halves, str | None]:
    """The two equal halves of an alignment, and a sentence where it has none."""
    if np.array_equal(moving_from_fixed, np.eye(4)):
        return Halves(np.eye(4), np.eye(4), np.eye(4), np.eye(4)), None
    logarithm = matrix_logarithm(moving_from_fixed)
    if logarithm is None:
        back = np.asarray(np.linalg.inv(moving_from_fixed), dtype=np.float64)
        return Halves(moving_from_fixed, back, np.eye(4), np.eye(4)), NO_MIDDLE
    onward, back = affine_exponential(0.5 * logarithm), affine_exponential(-0.5 * logarithm)
    return Halves(onward, back, back, onward), None


def fixed_space(moving_from_fixed: Matrix) -> Halves:
    """The ways of methods that leave the fixed image where it is."""
    back = np.asarray(np.linalg.inv(moving_from_fixed), dtype=np.float64)
    return Halves(np.eye(4), np.eye(4), back, moving_from_fixed, in_fixed=True)


def prepare_halfway(
    fixed: Volume,
    moving: Volume,
    masks: Masks | None,
    guidance: Correspondence | None,
    settings: Settings,
    halves: Halves,
    *,
    network_mm: Sequence[float],
    refined: bool,
    network_bytes: Callable[[int], int],
    pathology: Pathology | None = None,
    device: torch.device | str = "cpu",
    memory_limit_bytes: int | None = None,
) -> Pair:
    """Two images on one grid half-way between them, its voxels whole fractions of the network's.

    network_mm: voxel size of the network per axis.  refined: iterations follow, so the grid may be finer.
    network_bytes: what the network takes on so many of its voxels.  pathology: of either image.
    memory_limit_bytes: None = settings.memory_limit_gb, or no limit.
    Raises InputError for unusable input, NoOverlapError, MemoryLimitError.
    """
    masks = masks or Masks()
    fixed, moving = finite(fixed), finite(moving)
    coarse = network_grid(fixed, moving, masks, halves, network_mm, settings)
    factor = refinement_factor([fixed.grid, moving.grid], network_mm, settings) if refined else 1
    if memory_limit_bytes is None and settings.memory_limit_gb is not None:
        memory_limit_bytes = int(settings.memory_limit_gb * 1e9)

    def needed(factor: int) -> int:
        plan = settings if refined else None
        return halfway_memory_bytes(coarse, factor, plan, network_bytes, pathology is not None)

    notes: list[str] = []
    if memory_limit_bytes is not None:
        factor, notes = fitting_factor(needed, factor, memory_limit_bytes)
    grid = coarse.refined([factor] * coarse.dim)
    shape, spacing = (" x ".join(f"{v:.3g}" for v in reversed(s)) for s in (grid.shape, grid.spacing))
    where = "over the fixed image" if halves.in_fixed else "half-way between the images"
    notes.append(f"Working grid: {shape} voxels of {spacing} mm, {where}.")
    ways = halves.fixed_from_grid, halves.moving_from_grid
    pair = read_pair(
        fixed, moving, grid, *ways, masks, guidance, settings, pathology=pathology, device=device, notes=notes
    )
    pair = replace(pair, memory_bytes=needed(factor))
    if pathology is None:
        return pair
    return replace(pair, pathology=place_pathology(pathology, grid, *ways, device))


def network_grid(
    fixed: Volume,
    moving: Volume,
    masks: Masks,
    halves: Halves,
    network_mm: Sequence[float],
    settings: Settings,
) -> Grid:
    """The grid of the network: over what counts in either image, with a margin; 3D axes to S, A and R.

    A 2D grid has the in-plane axes of the fixed image in its space, else of the image that comes first.
    """
    sides = (
        (fixed, masks.fixed, masks.exclude_fixed, halves.grid_from_fixed),
        (moving, masks.moving, masks.exclude_moving, halves.grid_from_moving),
    )
    by_content = fixed.grid.dim == 2 and not halves.in_fixed
    first = 1 if by_content and fixed_first(fixed, moving, masks) is False else 0
    axes = axes_of(sides[first][0].grid, sides[first][3])
    objects = []
    for image, mask, exclude, matrix in sides:
        points = _object_mm(image, mask if not exclude else None)
        objects.append(points @ matrix[:3, :3].T + matrix[:3, 3])
    thickness = float(np.linalg.norm(sides[first][0].grid.world_from_voxel[:3, 2]))
    return grid_over(objects, axes, network_mm, thickness, settings)


def grid_over(
    objects: Sequence[NDArray[np.float64]],
    axes: NDArray[np.float64],
    network_mm: Sequence[float],
    thickness_mm: float,
    settings: Settings,
) -> Grid:
    """The grid of a network over points (n, 3), RAS mm, with a margin; thickness_mm: of a 2D grid's slice.

    axes: (3, 3), unit vectors as columns.
    """
    boxes = [
        (position.min(axis=0), position.max(axis=0)) for position in (points @ axes for points in objects)
    ]
    low = np.min([box[0] for box in boxes], axis=0)
    high = np.max([box[1] for box in boxes], axis=0)
    spacing = np.asarray(network_mm, dtype=np.float64)
    dim = len(spacing)
    margin = np.clip(np.ceil(MARGIN_MM / spacing), *MARGIN_VOXELS) + np.ceil(settings.padding_mm / spacing)
    shape = (np.ceil((high - low)[:dim] / spacing) + 2 * margin + 1).astype(int)
    matrix = np.eye(4)
    matrix[:3, :3] = axes
    matrix[:3, :dim] *= spacing
    if dim == 2:
        matrix[:3, 2] *= thickness_mm
    matrix[:3, 3] = axes @ ((low + high) / 2) - matrix[:3, :dim] @ ((shape - 1) / 2)
    return Grid(tuple(int(n) for n in shape), matrix)


def axes_of(grid: Grid, halfway_from_image: Matrix) -> NDArray[np.float64]:
    """Unit axes (3, 3) of a network's grid: S, A, R, or those of an image's plane, at right angles."""
    if grid.dim == 3:
        return np.eye(3)[:, ::-1]
    columns = halfway_from_image[:3, :3] @ grid.world_from_voxel[:3, :3]
    left, _, right = np.linalg.svd(columns / np.linalg.norm(columns, axis=0))
    return np.asarray(left @ right)


def _object_mm(image: Volume, mask: Volume | None) -> NDArray[np.float64]:
    """Points (n, 3), RAS mm, whose box holds what counts: the mask, the object, or all there is."""
    if mask is not None:
        return mask.grid.world_from_index(array_from_tensor((mask.data != 0).nonzero()).astype(np.float64))
    points = foreground_points_mm(image)
    return image.grid.corners_mm() if points is None else points


def refinement_factor(grids: Sequence[Grid], network_mm: Sequence[float], settings: Settings) -> int:
    """Working voxels per voxel of the network along each axis.

    As the settings ask, or as the preset does where an image has that much detail.
    """
    wanted = settings.working_spacing_mm
    if wanted is None:
        wanted = max(PRESETS[settings.preset].working_spacing_mm, min(min(g.spacing) for g in grids))
    return max(1, round(min(network_mm) / wanted))


def halfway_memory_bytes(
    coarse: Grid,
    factor: int,
    refined: Settings | None,
    network_bytes: Callable[[int], int],
    marked: bool = False,
) -> int:
    """Peak memory of a run on `coarse`, the network's grid, refined by a factor; without the input images.

    refined: the settings of the refinement, None without any.  marked: images have a pathology.
    """
    dim, voxels = coarse.dim, coarse.voxel_count
    after = JOINING_BYTES[dim]
    if refined is not None:
        features = (refined.similarity or PRESETS[refined.preset].similarity) == "mind"
        marks = MARKED_BYTES[dim] * marked
        after = max(after, REFINEMENT_BYTES[dim] + FEATURE_BYTES * features + marks)
    return BASE_BYTES + max(network_bytes(voxels), after * voxels * int(factor**dim))


def fitting_factor(needed: Callable[[int], int], factor: int, limit_bytes: int) -> tuple[int, list[str]]:
    """The largest factor up to this one that fits, and a sentence if it is smaller."""
    fits = next((f for f in range(factor, 0, -1) if needed(f) <= limit_bytes), None)
    if fits is None:
        raise MemoryLimitError(
            f"This network needs about {needed(1) / 1e9:.2g} GB for these images and only "
            f"{limit_bytes / 1e9:.2g} GB may be used: free memory, crop the images, or choose 'svf'."
        )
    if fits == factor:
        return factor, []
    return fits, [
        f"The working grid is coarser than asked for: in full the run needs about {needed(factor) / 1e9:.2g} "
        f"GB and {limit_bytes / 1e9:.2g} GB may be used."
    ]
