"""Where a registration starts: the initial alignment, and the two halves of it where images meet half-way."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
import torch

from DiffeoRegLib.catalog import card
from DiffeoRegLib.errors import InputError
from DiffeoRegLib.methods.affine import initial_alignment
from DiffeoRegLib.methods.affine_network import alignment_sources, asked_for, network_alignment
from DiffeoRegLib.settings import Settings
from DiffeoRegLib.space.grid import Grid, Matrix
from DiffeoRegLib.space.transform import AffineTransform, CompositeTransform, Transform
from DiffeoRegLib.volumes.halfway import Halves, exchanged_masks, fixed_first, halves_of
from DiffeoRegLib.volumes.pair import Correspondence, Masks
from DiffeoRegLib.volumes.pathology import Pathology
from DiffeoRegLib.volumes.regions import Regions
from DiffeoRegLib.volumes.resample import warp_labels, warp_volume
from DiffeoRegLib.volumes.volume import Volume

SEARCHES = ("auto", "rigid", "affine")
SAME_SHARE = 1e-4
"""Of the intensity range: reading between voxels rounds by less."""
FEW = 8
BACKWARD = "The alignment was computed from the moving to the fixed image; the lines above say that one."


@dataclass(frozen=True, eq=False)
class Start:
    """The initial alignment.

    moving: what is registered: the moving image itself, or, after a given non-linear transform, that image
    already carried to the fixed grid.  moving_from_fixed: RAS mm 4x4 that leads to it.
    halves: its two halves, for methods that meet half-way.  sources: citations of what found it.
    """

    transform: Transform
    moving: Volume
    moving_from_fixed: Matrix
    carried: bool = False
    halves: Halves | None = None
    sources: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Beside:
    """What counts in the search besides the images; each part may be missing."""

    masks: Masks | None
    guidance: Correspondence | None
    regions: Regions | None
    pathology: Pathology | None = None

    def carried(self, start: Start, grid: Grid) -> Beside:
        """The same as the moving image is after the initial alignment."""
        if not start.carried:
            return self
        masks, guidance = carried_along(self.masks, self.guidance, start.transform, grid)
        regions = self.regions
        if regions is not None:
            labels = warp_labels(regions.labels, start.transform, grid)
            regions = dataclasses.replace(regions, labels=labels)
        pathology = self.pathology
        if pathology is not None and pathology.moving is not None:
            labels = warp_labels(pathology.moving, start.transform, grid)
            pathology = dataclasses.replace(pathology, moving=labels)
        return Beside(masks, guidance, regions, pathology)


def find_start(
    fixed: Volume,
    moving: Volume,
    masks: Masks | None,
    initial: Transform | None,
    settings: Settings,
    notes: list[str],
    *,
    halfway: bool = False,
) -> Start:
    """The alignment that settings.init and `initial` ask for; sentences for the report go to `notes`.

    halfway: both halves of it, too, and the same whichever image is called fixed.
    Raises NoOverlapError when the two images hardly share space afterwards, InputError where a network that
    aligns linearly would have to start from a non-linear transform.
    """
    given = None
    if initial is not None:
        given = linear_matrix(initial)
        if given is None and asked_for(settings):
            raise InputError(
                "An affine network starts from a linear transform or none, and the given one is not linear: "
                "give another one, or use the method affine or another initial alignment."
            )
        if given is None:
            carried = warp_volume(moving, initial, fixed.grid, fill=background_of(moving))
            notes.append("Initial alignment: the given non-linear transform, as it is.")
            halves = halves_of(np.eye(4))[0] if halfway else None
            return Start(initial, carried, np.eye(4), True, halves)
    if not halfway:
        matrix = _aligned(fixed, moving, settings, masks, given, notes)
        return Start(AffineTransform(matrix), moving, matrix, sources=_sources(settings, given))
    found = _halves(fixed, moving, masks, given, settings, notes)
    matrix = found.moving_from_grid @ found.grid_from_fixed
    return Start(AffineTransform(matrix), moving, matrix, False, found, _sources(settings, given))


def _aligned(
    fixed: Volume,
    moving: Volume,
    settings: Settings,
    masks: Masks | None,
    given: Matrix | None,
    notes: list[str],
) -> Matrix:
    """The linear alignment asked for: by a trained network, or in one of the other ways."""
    if given is None and settings.init in SEARCHES and lie_alike(fixed, moving):
        notes.append("Initial alignment: none, the images already show the same everywhere.")
        return np.eye(4)
    find = network_alignment if asked_for(settings) else initial_alignment
    return find(fixed, moving, settings, masks, given, notes=notes)


def lie_alike(fixed: Volume, moving: Volume) -> bool:
    """True if both images show the same at every voxel of the fixed one, in whatever order they are stored.

    A search would find no better place, and stop a fraction of a voxel beside this one.
    """
    if fixed.grid.dim != moving.grid.dim:
        return False
    least = SAME_SHARE * float(fixed.data.max() - fixed.data.min())
    for stride in (FEW, 1):  # other images differ at the first few voxels already
        strides = [min(stride, n) for n in fixed.grid.shape]
        step = np.diag([*strides, *[1.0] * (4 - fixed.grid.dim)])
        here = fixed.data[tuple(slice(None, None, s) for s in strides)]
        grid = Grid(tuple(here.shape), fixed.grid.world_from_voxel @ step)
        there = warp_volume(moving, AffineTransform(np.eye(4)), grid, fill=background_of(moving)).data
        if not bool((here - there).abs().max() <= least):  # also where one of them is no number
            return False
    return True


def _sources(settings: Settings, given: Matrix | None) -> tuple[str, ...]:
    """Citations of what `_aligned` uses."""
    if asked_for(settings):
        return tuple(alignment_sources(settings))
    searched = settings.init in ("rigid", "affine") or (settings.init == "auto" and given is None)
    return (card("affine").citation,) if searched else ()


def _halves(
    fixed: Volume,
    moving: Volume,
    masks: Masks | None,
    given: Matrix | None,
    settings: Settings,
    notes: list[str],
) -> Halves:
    """Halves of the alignment, computed from the image that comes first to the other one."""
    order = fixed_first(fixed, moving, masks)
    if order is None and given is None:
        notes.append("Initial alignment: none, the images are the same.")
        return halves_of(np.eye(4))[0]
    if order is not False:
        matrix = _aligned(fixed, moving, settings, masks, given, notes)
    else:
        back = None if given is None else np.asarray(np.linalg.inv(given), dtype=np.float64)
        matrix = _aligned(moving, fixed, settings, exchanged_masks(masks), back, notes)
        if given is None and settings.init not in ("identity", "geometry", "mass"):
            notes.append(BACKWARD)
    halves, problem = halves_of(matrix)
    if problem is not None:
        notes.append(problem)
    return halves if order is not False else halves.exchanged()


def linear_matrix(transform: Transform) -> Matrix | None:
    """The 4x4 matrix of a transform made of linear parts only, else None."""
    if isinstance(transform, AffineTransform):
        return transform.moving_from_fixed
    if isinstance(transform, CompositeTransform):
        matrix = np.eye(4)
        for part in transform.parts:
            linear = linear_matrix(part)
            if linear is None:
                return None
            matrix = linear @ matrix
        return matrix
    return None


def carried_along(
    masks: Masks | None, guidance: Correspondence | None, transform: Transform, grid: Grid
) -> tuple[Masks | None, Correspondence | None]:
    """Moving mask, labels and landmarks brought to fixed space by a transform, as the image was."""
    if masks is not None and masks.moving is not None:
        masks = dataclasses.replace(masks, moving=warp_labels(masks.moving, transform, grid))
    if guidance is not None:
        labels, points = guidance.moving_labels, guidance.moving_points_mm
        guidance = Correspondence(
            guidance.fixed_labels,
            None if labels is None else warp_labels(labels, transform, grid),
            guidance.fixed_points_mm,
            None if points is None else transform.inverse().map_points(points),
        )
    return masks, guidance


def background_of(moving: Volume) -> float:
    """What resampling puts where the moving image has no data: its smallest finite value."""
    data = moving.data
    low = float(data.min()) if data.numel() else math.nan
    if not math.isfinite(low):  # picking the finite voxels out would take seven times the memory of the image
        good = torch.isfinite(data)
        low = float(torch.where(good, data, math.inf).min()) if bool(good.any()) else 0.0
    return low
