"""What a run needs, in memory and on the disk: bytes, from sizes alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from DiffeoRegLib.catalog import card
from DiffeoRegLib.errors import MemoryLimitError, SettingsError
from DiffeoRegLib.flows.integrate import WIDEST_TAPER_MM, covering_grid
from DiffeoRegLib.flows.shooting import Plan
from DiffeoRegLib.methods.discrete import search_bytes
from DiffeoRegLib.methods.map_grid import map_grid
from DiffeoRegLib.methods.options import options_from
from DiffeoRegLib.methods.rdmm import regional_options
from DiffeoRegLib.methods.svf import plans, searches
from DiffeoRegLib.optimise import layout
from DiffeoRegLib.settings import Settings
from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.space.storage import storage_bytes
from DiffeoRegLib.volumes.working_grid import BASE_BYTES, estimate_memory_bytes

WORKING_BYTES = 210
"""Per working voxel: images, similarity, and the finished map with its inverse."""
MAP_BYTES, MAP_BYTES_PER_KERNEL = 900, 210
"""Per voxel of the map: history, right-hand side and its adjoint; and of every regional kernel."""
STATIONARY_BYTES = 600
"""Per voxel of the map and graph: a velocity's exponential, all squarings."""
METAMORPHIC_BYTES = {3: 340, 2: 330}
"""Per working voxel of a metamorphosis: what svf needs, marks and the source between them."""
APPEARANCE_BYTES = 75
"""Per voxel of the fixed image: what a metamorphosis shows on its grid, and how that is made."""
KEPT_BYTES = 60
"""Per working voxel: the pair, its velocity and the finished maps, which are there meanwhile."""
GRAPHS = 3
"""So many flows wait for their gradient at once, at most: the longest steps of a first direction."""
STEPS = 8
"""Of a motion that is not known yet."""
PAIR_BYTES = 24
"""Per working voxel: both images, their weights, and what brings them to the search's grid."""
IMAGE_BYTES = 4
"""Per voxel of everything that was read: it stays in memory as float32 or int32."""
FIELD_BYTES = 150
"""Per voxel of the finished map: velocity, map, inverse, and what finds, measures and writes them."""
SHOWN_BYTES = 16
"""Per voxel of the fixed image: the moved one, and what aligns, measures and writes images."""
OPTIMISED = ("svf", "metamorphosis")
"""Methods whose map has the voxels of their finest level; that of others has those of the working grid."""
FILE_BYTES = 40_000
"""Of a transform's file beside its field."""
# Measured on the CPU, 3D, mk-lncc: bytes a voxel of 48 x 56 x 48, all of them voxels of the map, and what
# this says: vsvf 2290 and 2910; of five steps lddmm 3300 and 3270, rdmm with four kernels 9020 and 8910; of
# 80 x 96 x 80 with a map of next to nothing, 201 and 210.  Metamorphosis with marks of both images, each a
# third of every side long: 306 of 128 x 128 x 128 (svf 284), 312 of 1024 x 1024 (svf 256); its volumes, a
# voxel of 160 x 160 x 160: 44 with marks of one image, 61 to 74 with marks of both.


def memory_of(settings: Settings, fixed_voxels: int = 0) -> Callable[[Grid], int] | None:
    """Peak memory of a run on a working grid, bytes, without the input images; None for other methods.

    fixed_voxels: of the fixed image, on whose grid a change of appearance is shown.
    Raises SettingsError for settings that do not fit.
    """
    chosen = card(settings.method)
    if chosen.appearance_change:
        shown = APPEARANCE_BYTES * fixed_voxels

        def metamorphic(working: Grid) -> int:
            search, kept = METAMORPHIC_BYTES[working.dim], KEPT_BYTES * working.voxel_count
            return BASE_BYTES + max(search * working.voxel_count, kept + shown)

        return metamorphic
    if not chosen.kernels or chosen.trained:
        return None
    regional = chosen.method == "rdmm"
    if regional:
        kernels = regional_options(settings, given=chosen.needs_region_labels).kernels
    else:
        kernels = options_from(settings, "lddmm" if chosen.geodesic else "vsvf").kernels
    steps = STEPS if settings.steps == "auto" else settings.steps

    def estimate(working: Grid) -> int:
        try:
            voxels = map_grid(working, kernels).grid.voxel_count
        except SettingsError:  # too coarse for its kernels: the method refuses it by that sentence
            voxels = working.voxel_count
        if chosen.geodesic:
            flow = flow_bytes(voxels, working.dim, len(kernels.sigmas) if regional else 0, steps)
        else:
            flow = voxels * (MAP_BYTES + GRAPHS * STATIONARY_BYTES)
        return BASE_BYTES + WORKING_BYTES * working.voxel_count + flow

    return estimate


@dataclass(frozen=True)
class RunPlan:
    """What a run is expected to take at most, bytes.

    memory: of the whole process.  transforms: transform and inverse on the disk.
    """

    memory: int
    transforms: int

    def as_dict(self) -> dict[str, float]:
        """For JSON, MB."""
        return {"memory_mb": self.memory / 2**20, "transforms_mb": self.transforms / 2**20}

    @property
    def sentence(self) -> str:
        """For people."""
        return (
            f"This run needs about {self.memory / 1e9:.2g} GB of memory, and its transforms at most "
            f"{math.ceil(self.transforms / 2**20)} MB on the disk."
        )


def run_plan(settings: Settings, fixed: Grid, held_voxels: int, working: Grid, search_bytes: int) -> RunPlan:
    """What a run on this working grid takes.

    held_voxels: of all images, masks and label maps together.  search_bytes: of the method on that grid.
    """
    field = finished_grid(settings, fixed, working)
    finish = finish_bytes(settings, fixed, working)
    return RunPlan(
        max(search_bytes, finish) + IMAGE_BYTES * held_voxels, 2 * (storage_bytes(field) + FILE_BYTES)
    )


def require_memory(fixed_voxels: int, moving_voxels: int, limit_bytes: int | None) -> None:
    """Refuses images that no working grid is coarse enough for, by their sizes alone.

    limit_bytes: what may be used, None = not known.  Raises MemoryLimitError.
    """
    needed = BASE_BYTES + IMAGE_BYTES * (fixed_voxels + moving_voxels) + SHOWN_BYTES * fixed_voxels
    if limit_bytes is not None and needed > limit_bytes:
        sizes = f"{fixed_voxels / 1e6:.3g} and {moving_voxels / 1e6:.3g} million voxels"
        raise MemoryLimitError(
            f"The images have {sizes}: to register them takes at least {needed / 1e9:.2g} GB of memory, and "
            f"{limit_bytes / 1e9:.2g} GB may be used. Crop them, bring them to larger voxels, or free memory."
        )


def whole_run(settings: Settings, fixed: Grid) -> Callable[[Grid], int]:
    """Peak memory on a working grid from the search to the files, bytes, without the input images."""
    search = memory_of(settings, fixed.voxel_count)

    def estimate(working: Grid) -> int:
        found = estimate_memory_bytes(working, settings) if search is None else search(working)
        if settings.method in OPTIMISED and searches(settings):
            pair = PAIR_BYTES * working.voxel_count
            found = max(found, BASE_BYTES + pair + search_bytes(working, settings))
        return max(found, finish_bytes(settings, fixed, working))

    return estimate


def finish_bytes(settings: Settings, fixed: Grid, working: Grid) -> int:
    """From the motion to the files: maps over the whole fixed image, and the moved image."""
    field = finished_grid(settings, fixed, working)
    return BASE_BYTES + FIELD_BYTES * field.voxel_count + SHOWN_BYTES * fixed.voxel_count


def finished_grid(settings: Settings, fixed: Grid, working: Grid) -> Grid:
    """The largest grid of the finished map: over the fixed image, and the widest ring around it.

    Of maps that are not flows of one velocity the ring may become wider, where they move much at the border.
    """
    ring_mm = WIDEST_TAPER_MM if settings.taper_mm is None else settings.taper_mm
    if settings.method in OPTIMISED:
        working = layout(working, plans(settings, working)[-1]).grid
    return covering_grid(working, fixed, ring_mm)


def flow_bytes(voxels: int, dim: int, kernels: int, steps: int) -> int:
    """Of shooting so many steps on a map of so many voxels, there and back; kernels: 0 for one metric."""
    values = 3 * dim + kernels * (dim + 2)  # of a stage: state and sources
    graph = min(Plan(steps).keep_bytes, 4 * 4 * steps * values * voxels)
    return voxels * (MAP_BYTES + MAP_BYTES_PER_KERNEL * kernels) + GRAPHS * graph
