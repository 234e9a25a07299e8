"""What flows of a momentum and metamorphoses need to be found: bytes, from sizes alone."""

from __future__ import annotations

from collections.abc import Callable

from DiffeoRegLib.catalog import card
from DiffeoRegLib.errors import SettingsError
from DiffeoRegLib.flows.shooting import Plan
from DiffeoRegLib.methods.map_grid import map_grid
from DiffeoRegLib.methods.options import options_from
from DiffeoRegLib.methods.rdmm import regional_options
from DiffeoRegLib.settings import Settings
from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.volumes.working_grid import BASE_BYTES

WORKING_BYTES = 210
"""Per working voxel: images, similarity, and the finished map with its inverse."""
MAP_BYTES, MAP_BYTES_PER_KERNEL = 900, 210
"""Per voxel of the map: history, right-hand side and its adjoint; and of every regional kernel."""
STATIONARY_BYTES = 600
"""Per voxel of the map and graph: a velocity's exponential, all squarings."""
METAMORPHIC_BYTES = {3: 340, 2: 330}
"""Per working voxel of a metamorphosis: what svf needs, marks and the source between them."""
APPEARANCE_BYTES = 60
"""Per voxel of the fixed image: what a metamorphosis shows on its grid, and how that is made."""
KEPT_BYTES = 60
"""Per working voxel: the pair, its velocity and the finished maps, which are there meanwhile."""
GRAPHS = 3
"""So many flows wait for their gradient at once, at most: the longest steps of a first direction."""
STEPS = 8
"""Of a motion that is not known yet."""
# Measured on the CPU, 3D, mk-lncc: bytes a voxel of 48 x 56 x 48, all of them voxels of the map, and what
# this says: vsvf 2290 and 2910; of five steps lddmm 3300 and 3270, rdmm with four kernels 9020 and 8910; of
# 80 x 96 x 80 with a map of next to nothing, 201 and 210.  Metamorphosis with marks of both images, each a
# third of every side long: 306 of 128 x 128 x 128 (svf 284), 312 of 1024 x 1024 (svf 256); its volumes, a
# voxel of 160 x 160 x 160: 44 with marks of one image, 59 with marks of both.


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


def flow_bytes(voxels: int, dim: int, kernels: int, steps: int) -> int:
    """Of shooting so many steps on a map of so many voxels, there and back; kernels: 0 for one metric."""
    values = 3 * dim + kernels * (dim + 2)  # of a stage: state and sources
    graph = min(Plan(steps).keep_bytes, 4 * 4 * steps * values * voxels)
    return voxels * (MAP_BYTES + MAP_BYTES_PER_KERNEL * kernels) + GRAPHS * graph
