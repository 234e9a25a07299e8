"""Regions marked in a segmentation or label map, as masks and labels on the voxel grid of a volume."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from DiffeoRegLib.errors import InputError
from DiffeoRegLib.exchange import Image
from DiffeoRegPanel.nodes.layers import Array, Entry, Layer, counts_of, grid_of, layers_of, resample
from DiffeoRegPanel.nodes.places import parent_matrix, world_from_voxel
from DiffeoRegPanel.request import Region

Place = tuple[int, int]
"""Where a label is found: number of the layer, value in it."""


class Found(NamedTuple):
    """The layers of a region, their values on the grid of a volume, and how often each value is there."""

    layers: list[Layer]
    arrays: list[Array]
    counts: list[dict[int, int]]

    def entries(self) -> list[tuple[Entry, Place]]:
        """What is marked inside the volume."""
        return [
            (entry, (n, entry.value))
            for n, layer in enumerate(self.layers)
            for entry in layer.entries
            if self.counts[n].get(entry.value)
        ]

    def size(self, places: Sequence[Place]) -> int:
        """Voxels with these values."""
        return sum(self.counts[n].get(value, 0) for n, value in places)


def mask_of(region: Region, volume: Any) -> Image:
    """uint8 mask (1 = marked) of a region on the voxel grid of a volume, wherever either of them lies.

    Raises InputError when nothing is marked, or nothing of it inside the volume.
    """
    found = _found(region, volume)
    mask = np.zeros(found.arrays[0].shape, dtype=np.uint8)
    for layer, array in zip(found.layers, found.arrays, strict=True):
        mask |= np.isin(array, [entry.value for entry in layer.entries])
    return Image(mask, world_from_voxel(volume), region.node.GetName())


def labels_of(region: Region, volume: Any) -> tuple[Image, dict[int, Entry]]:
    """int16 labels 1, 2, ... of all segments inside a volume, on its grid, and what each label stands for.

    Where segments overlap, the later one in the list counts, as in Slicer's own label maps
    (`overlap_notes` says so).  The key of a value in a label map is the value as text.
    Raises InputError like mask_of.
    """
    found = _found(region, volume)
    entries = found.entries()
    if region.node.IsA("vtkMRMLSegmentationNode"):
        order = list(region.node.GetSegmentation().GetSegmentIDs())
        entries.sort(key=lambda item: order.index(item[0].key))
    places = {label: [place] for label, (_, place) in enumerate(entries, start=1)}
    later_first = {label: -label for label in places}
    merged = _merged(found.arrays, places, later_first)
    image = Image(merged, world_from_voxel(volume), region.node.GetName())
    return image, {label: entry for label, (entry, _) in enumerate(entries, start=1)}


def matched_labels(
    matching_fixed: Region, matching_moving: Region, fixed: Any, moving: Any
) -> tuple[Image, Image, dict[int, str]]:
    """int16 labels of what exists on both sides, each on the grid of its volume, and the names of the labels.

    Segments match by name, label maps by value, one of each by name or else by value; two single segments
    match whatever they are called.  Where segments overlap, the smaller one counts.
    Raises InputError when a side is empty or the two have nothing in common.
    """
    regions, volumes = (matching_fixed, matching_moving), (fixed, moving)
    sides = [_found(region, volume) for region, volume in zip(regions, volumes, strict=True)]
    pairs = _pairs(regions, sides)
    if not pairs:
        raise InputError(
            f"'{matching_fixed.node.GetName()}' and '{matching_moving.node.GetName()}' have no segment in "
            "common inside the two volumes: give the segments of the same structure the same name "
            "(label maps: the same value)."
        )
    names = {label: name for label, (name, *_) in enumerate(pairs, start=1)}
    places = [{label: pair[1 + n] for label, pair in enumerate(pairs, start=1)} for n in (0, 1)]
    sizes = {label: sum(sides[n].size(places[n][label]) for n in (0, 1)) for label in names}
    one, other = (  # sizes of both sides together: the same structure wins in both images
        Image(_merged(side.arrays, where, sizes), world_from_voxel(volume), region.node.GetName())
        for side, where, volume, region in zip(sides, places, volumes, regions, strict=True)
    )
    return one, other, names


def overlap_notes(region: Region, volume: Any, *, by_order: bool = False) -> list[str]:
    """A sentence when segments of a region overlap, so that the user knows which of them counts there.

    by_order: the later one in the list, as in `labels_of`, and not the smaller one as in `matched_labels`.
    """
    found = _found(region, volume)
    if len(found.arrays) < 2:
        return []
    twice = sum((array != 0).astype(np.uint8) for array in found.arrays) > 1
    names = [
        f"'{entry.name}'" for entry, (n, value) in found.entries() if (found.arrays[n][twice] == value).any()
    ]
    if not names:
        return []
    text = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
    which = "one further down in the list" if by_order else "smaller one"
    return [f"Segments of '{region.node.GetName()}' overlap ({text}); where they do, the {which} counts."]


def _found(region: Region, volume: Any) -> Found:
    """A region on the grid of a volume; InputError when it marks nothing there."""
    grid, world_from_grid = grid_of(volume), parent_matrix(volume)
    layers = layers_of(region, grid, world_from_grid)
    if not any(np.isin(layer.labels, [entry.value for entry in layer.entries]).any() for layer in layers):
        raise InputError(f"{region_text(region)} is empty: mark at least one voxel, or choose another.")
    arrays = resample(layers, grid, np.linalg.inv(parent_matrix(region.node)) @ world_from_grid)
    found = Found(layers, arrays, [counts_of(array) for array in arrays])
    if not found.entries():
        raise InputError(
            f"{region_text(region)} does not touch the volume '{volume.GetName()}': choose one that was "
            "drawn on it, or put both under the same transform."
        )
    return found


def region_text(region: Region) -> str:
    """How a sentence names a region whose segments are there."""
    name, keys = region.node.GetName(), region.keys
    if len(keys) > 1:
        return f"What is chosen of '{name}'"
    if not region.node.IsA("vtkMRMLSegmentationNode"):
        return f"Label {keys[0]} of '{name}'" if keys else f"The label map '{name}'"
    if not keys:
        return f"The segmentation '{name}'"
    segment = region.node.GetSegmentation().GetSegment(keys[0])
    return f"The segment '{segment.GetName()}' of '{name}'"


def _merged(
    arrays: Sequence[Array], places: Mapping[int, Sequence[Place]], first: Mapping[int, int]
) -> NDArray[np.int16]:
    """One label image; where layers overlap, the label that comes first by these numbers.

    Sizes put the smaller structure first, which the larger one would hide.
    """
    rank = np.zeros(len(places) + 1, dtype=np.int32)
    rank[sorted(places, key=lambda label: (first[label], label))] = np.arange(len(places))
    out = np.zeros(arrays[0].shape, dtype=np.int16)
    for n, array in enumerate(arrays):
        numbers = {value: label for label, where in places.items() for m, value in where if m == n}
        if numbers:
            new = _renumbered(array, numbers)
            better = (new > 0) & ((out == 0) | (rank[new] < rank[out]))
            out[better] = new[better]
    return out


def _renumbered(array: Array, numbers: Mapping[int, int]) -> NDArray[np.int16]:
    """The labels of values, 0 for all other values."""
    values = np.array(sorted(numbers))
    labels = np.array([numbers[value] for value in values.tolist()], dtype=np.int16)
    index = np.searchsorted(values, array).clip(max=len(values) - 1)
    return np.where(values[index] == array, labels[index], np.int16(0))


def _pairs(regions: Sequence[Region], sides: Sequence[Found]) -> list[tuple[str, list[Place], list[Place]]]:
    """Name and places on both sides of everything that exists on both."""
    entries = [side.entries() for side in sides]
    if all(region.segment_id for region in regions):
        return [(entries[0][0][0].name, [entries[0][0][1]], [entries[1][0][1]])]
    maps = [region.node.IsA("vtkMRMLLabelMapVolumeNode") for region in regions]
    if all(maps):
        return _common(entries)
    return _common(entries, by_name=True) or (_common(entries) if any(maps) else [])


def _common(
    entries: Sequence[Sequence[tuple[Entry, Place]]], by_name: bool = False
) -> list[tuple[str, list[Place], list[Place]]]:
    """Pairs by name (without regard to case and outer blanks) or by value."""
    sides: list[dict[Any, list[Place]]] = []
    names: dict[Any, str] = {}
    for side in entries:
        places: dict[Any, list[Place]] = defaultdict(list)
        for entry, place in side:
            key = entry.name.strip().casefold() if by_name else entry.value
            places[key].append(place)
            names.setdefault(key, entry.name)
        sides.append(places)
    return [(names[key], places, sides[1][key]) for key, places in sides[0].items() if key in sides[1]]
