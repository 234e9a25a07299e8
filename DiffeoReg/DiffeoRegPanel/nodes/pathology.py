"""What only one of two volumes shows: which segments or labels mark it, and whether they can be used."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from DiffeoRegLib.errors import InputError
from DiffeoRegLib.exchange import Image
from DiffeoRegPanel.nodes.layers import Layer, grid_of, label_map_layer, layers_of
from DiffeoRegPanel.nodes.places import Matrix, parent_matrix, world_from_voxel
from DiffeoRegPanel.nodes.regions import mask_of, region_text
from DiffeoRegPanel.nodes.volumes import array_of
from DiffeoRegPanel.request import Region

# As volumes/pathology.py of the engine has them, which has the last word.
ALL_COVERED, MOST_COVERED = 0.98, 0.5
MOST_POINTS = 100_000
"""Voxels that are looked at on either side: enough for a share of the volume, at once for any size."""
MOST_NAMED = 6


class Seen(NamedTuple):
    """What a look at some marks told, each a sentence or empty.

    problem: why they cannot be used.  note: what to know about them.  empty: nothing is marked.
    reported: the engine's report has the note, too.
    """

    problem: str = ""
    note: str = ""
    empty: bool = False
    reported: bool = True


class _Marked(NamedTuple):
    """A layer, where it is marked, (k, j, i) bool, and the 4x4 from the world to its (i, j, k)."""

    layer: Layer
    where: NDArray[np.bool_]
    index_from_world: Matrix


def look_at(region: Region, volume: Any) -> Seen:
    """What can be said of the marks in a volume before a run, from a sample of its voxels."""
    try:
        layers = layers_of(region, grid_of(volume), parent_matrix(volume))
        missing = _missing(region, layers)
        world_from_local = parent_matrix(region.node)
    except InputError as error:
        return Seen(str(error))
    if missing:
        return Seen(missing)
    marked = [_marked(layer, world_from_local) for layer in layers]
    name, text = volume.GetName(), region_text(region)
    if not any(one.where.any() for one in marked):
        return Seen(note=f"{text} marks nothing: '{name}' is taken for healthy.", empty=True)
    if not any(_touches(one, volume) for one in marked):
        return Seen(
            f"{text} does not touch '{name}': was it drawn on another volume, or is one of them under a "
            "transform?"
        )
    share = _covered_share(marked, volume)
    if share >= ALL_COVERED:
        return Seen(
            f"{text} covers all of '{name}': no healthy tissue is left that could be aligned. "
            "Was it inverted, or is it a mask of the organ?"
        )
    if share > MOST_COVERED:
        return Seen(
            note=f"{text} covers {100 * share:.0f} % of '{name}': the map rests on the little that is left."
        )
    return Seen(note=_absent(region, layers), reported=False)


def marks_of(region: Region, volume: Any) -> Image:
    """uint8 marks of a region on the voxels of a volume; none at all where nothing is marked.

    Raises InputError for marks that cannot be used.
    """
    seen = look_at(region, volume)
    if seen.problem:
        raise InputError(seen.problem)
    if seen.empty:
        nothing = np.zeros(array_of(volume).shape, dtype=np.uint8)
        return Image(nothing, world_from_voxel(volume), region.node.GetName())
    return mask_of(region, volume)


def _missing(region: Region, layers: list[Layer]) -> str:
    """A sentence when a label map has none of the chosen labels; of segments, `layers_of` says it."""
    if not region.classes or any(layer.entries for layer in layers) or not _is_label_map(region):
        return ""
    there = [entry.key for entry in label_map_layer(region.node).entries]
    has = f"it has {_listed(there)}" if there else "it is empty"
    return (
        f"'{region.node.GetName()}' has none of the chosen labels ({_listed(region.classes)}); {has}: "
        "choose among these."
    )


def _absent(region: Region, layers: list[Layer]) -> str:
    """A sentence about chosen labels without a voxel."""
    if not region.classes or not _is_label_map(region):
        return ""
    there = {entry.key for layer in layers for entry in layer.entries}
    absent = [key for key in region.classes if key not in there]
    return f"Labels without a voxel in '{region.node.GetName()}': {_listed(absent)}." if absent else ""


def _is_label_map(region: Region) -> bool:
    return bool(region.node.IsA("vtkMRMLLabelMapVolumeNode"))


def _marked(layer: Layer, world_from_local: Matrix) -> _Marked:
    where = np.isin(layer.labels, [entry.value for entry in layer.entries])
    return _Marked(layer, where, np.linalg.inv(world_from_local @ layer.local_from_index))


def _touches(one: _Marked, volume: Any) -> bool:
    """Whether, of a sample, a marked voxel lies inside the volume."""
    found = np.flatnonzero(one.where)
    found = found[:: max(1, len(found) // MOST_POINTS)]
    index = np.stack(np.unravel_index(found, one.where.shape), axis=1)[:, ::-1] + np.array(one.layer.start)
    voxel_from_index = np.linalg.inv(one.index_from_world @ world_from_voxel(volume))
    at = index @ voxel_from_index[:3, :3].T + voxel_from_index[:3, 3]
    return bool(_inside(at, array_of(volume).shape).any())


def _covered_share(marked: list[_Marked], volume: Any) -> float:
    """Share of the object in a volume, or of all of it without a background, that is marked."""
    array, world = array_of(volume), world_from_voxel(volume)
    step = max(1, math.ceil((array.size / MOST_POINTS) ** (1 / 3)))
    steps = tuple(slice(min(step, n) // 2, None, step) for n in array.shape)
    around, shown = background_of(array), array[steps]
    foreground = np.ones(shown.shape, bool) if around is None else np.abs(shown - around[0]) > around[1]
    grids = np.meshgrid(*(np.arange(n)[s] for n, s in zip(array.shape, steps, strict=True)), indexing="ij")
    index = np.stack([grid[foreground] for grid in grids], axis=1)
    places = index @ world[:3, :3].T + world[:3, 3]
    covered = np.zeros(len(places), dtype=bool)
    for one in marked:
        at = places @ one.index_from_world[:3, :3].T + one.index_from_world[:3, 3]
        at = at[:, ::-1] - np.array(one.layer.start)[::-1]
        there = _inside(at, one.where.shape)
        voxels = np.rint(at[there]).astype(np.intp)
        covered[there] |= one.where[tuple(voxels.T)]
    return float(covered.mean()) if len(covered) else 0.0


def _inside(at: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Whether fractional indices (n, 3) lie in an array of this shape."""
    found: NDArray[np.bool_] = ((at > -0.5) & (at < np.array(shape) - 0.5)).all(axis=1)
    return found


def background_of(array: NDArray[Any]) -> tuple[float, float] | None:
    """Value of an image's flat background and how near to it counts; None where its border shows none.

    As `background` in volumes/intensity.py of the engine, which needs torch.
    """
    axes = [axis for axis, size in enumerate(array.shape) if size > 1]
    faces = [np.take(array, end, axis=axis).ravel() for axis in axes for end in (0, -1)]
    border = np.concatenate(faces).astype(np.float64)
    sample = array.ravel()[:: max(1, array.size // 200_000)].astype(np.float64)
    border, sample = border[np.isfinite(border)], sample[np.isfinite(sample)]
    if not border.size or not sample.size:
        return None
    low, high = np.percentile(sample, (0.5, 99.5))
    span = max(high - low, float(np.abs(sample).max()) * 1e-9, 1e-30)
    value = float(np.median(border))
    tolerance = max(6.0 * float(np.percentile(np.abs(border - value), 50)), 0.04 * span)
    return None if tolerance > 0.2 * span else (value, tolerance)


def _listed(names: Any) -> str:
    names = [str(name) for name in names]
    return ", ".join(names[:MOST_NAMED]) + (", ..." if len(names) > MOST_NAMED else "")
