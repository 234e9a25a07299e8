"""Series for training: frames of 4D files or of lists of files, each series on its first frame's grid."""

from __future__ import annotations

import csv
import random
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from DiffeoRegLib.errors import InputError
from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.space.sample import tensor_from_array
from DiffeoRegLib.volumes.checks import check_image
from DiffeoRegLib.volumes.file_guard import reading
from DiffeoRegLib.volumes.files import read_points
from DiffeoRegLib.volumes.frames import read_frames
from DiffeoRegLib.volumes.intensity import finite, intensity_window, normalise, resample_affine

COLUMNS = ("series", "image", "points", "person")


@dataclass(frozen=True)
class Series:
    """Frames that belong together, in order: image files, and landmark files or None for each.

    A file may be 4D; it has then no landmarks.  person: series of one never stand on both sides of a split.
    """

    name: str
    images: tuple[Path, ...]
    points: tuple[Path | None, ...]
    person: str


def series_from(source: Path) -> tuple[Series, ...]:
    """The series of a table (CSV) with the columns series, image and, if wanted, points and person.

    A row is a frame, or a whole 4D file; the rows of a series stand in its order.  File names are relative to
    the table.
    Raises InputError for a table that is not usable, naming the row, and for files that do not exist.
    """
    if not source.is_file():
        raise InputError(f"There is no table of series '{source}': give a CSV with {', '.join(COLUMNS)}.")
    with reading(source, "a table"), source.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file, restval=""))
    columns = set(rows[0]) if rows else set()
    if not {"series", "image"} <= columns or columns - set(COLUMNS):
        raise InputError(f"A table of series has the columns {', '.join(COLUMNS)}; '{source}' has not.")
    found: OrderedDict[str, list[tuple[Path, Path | None]]] = OrderedDict()
    persons: dict[str, str] = {}
    for number, row in enumerate(rows, 1):
        name, image, points = (str(row.get(key) or "").strip() for key in COLUMNS[:3])
        if not name or not image:
            raise InputError(f"Row {number} of '{source}' has no series or no image.")
        files = source.parent / image, source.parent / points if points else None
        for path in files:
            if path is not None and not path.exists():
                raise InputError(f"Row {number} of '{source}' names '{path}', which does not exist.")
        found.setdefault(name, []).append(files)
        persons[name] = str(row.get("person") or "").strip() or persons.get(name, name)
    return tuple(
        Series(name, tuple(a for a, _ in held), tuple(b for _, b in held), persons[name])
        for name, held in found.items()
    )


def divided(
    series: Sequence[Series], held_out: Sequence[str], share: float, seed: int
) -> tuple[list[Series], list[Series]]:
    """Series to train and to validate on: those of the named series or persons, or of a share of the persons.

    Raises InputError for unknown names and where nothing would be left to train on.
    """
    persons = list(dict.fromkeys(one.person for one in series))
    by_name = {one.name: one.person for one in series} | {name: name for name in persons}
    unknown = [name for name in held_out if name not in by_name]
    if unknown:
        raise InputError(f"held_out names '{unknown[0]}', which is no series and no person of the table.")
    chosen = {by_name[name] for name in held_out}
    if not held_out and share > 0:
        random.Random(f"split {seed}").shuffle(persons)
        chosen = set(persons[: max(1, round(share * len(persons)))])
    training = [one for one in series if one.person not in chosen]
    if not training:
        raise InputError("No series is left to train on: hold out fewer.")
    return training, [one for one in series if one.person in chosen]


class SeriesStore:
    """Series read and normalised when asked for; the last ones are kept in memory.

    spacing: mm per tensor axis of the first frame.  window: intensities that become 0 and 1, None = robust
    per frame, whose contrast may differ.  in_memory: how many series are kept.
    """

    def __init__(
        self,
        series: Sequence[Series],
        spacing: tuple[float, ...],
        *,
        window: tuple[float, float] | None = None,
        in_memory: int = 1,
    ) -> None:
        self.series, self.spacing, self.window = tuple(series), spacing, window
        self.in_memory = max(1, in_memory)
        self._kept: OrderedDict[int, dict[str, Any]] = OrderedDict()

    def __len__(self) -> int:
        return len(self.series)

    def group(self, index: int, count: int, draw: random.Random) -> dict[str, Any]:
        """See `groups.Members`; raises InputError, naming the series, for one that cannot be used."""
        whole = self._load(index)
        total = len(whole["images"])
        chosen = sorted(draw.sample(range(total), min(count, total)))
        item: dict[str, Any] = {
            "images": whole["images"][chosen],
            "names": tuple(whole["names"][k] for k in chosen),
            "times": tuple(k / (total - 1) for k in chosen),
        }
        if whole["points"]:
            item["points"] = tuple(whole["points"][k] for k in chosen)
        return item

    def _load(self, index: int) -> dict[str, Any]:
        if index in self._kept:
            self._kept.move_to_end(index)
        else:
            one = self.series[index]
            try:
                self._kept[index] = _prepared(one, self.spacing, self.window)
            except InputError as error:
                raise InputError(f"Series '{one.name}': {error}") from error
            if len(self._kept) > self.in_memory:
                self._kept.popitem(last=False)
        return self._kept[index]


def _prepared(series: Series, spacing: Sequence[float], window: tuple[float, float] | None) -> dict[str, Any]:
    """Images (K, 1, *shape), names, and landmarks in voxels where all frames have them."""
    grid: Grid | None = None
    images: list[Tensor] = []
    names: list[str] = []
    points: list[Tensor] = []
    for path, landmarks in zip(series.images, series.points, strict=True):
        frames = read_frames(path)
        for frame in frames:
            check_image(frame, "series'")
            frame = finite(frame)
            if grid is None:
                grid = grid_at(frame.grid, spacing)
            read = resample_affine(frame, grid)
            images.append(normalise(read, window or intensity_window(frame)))
            names.append(frame.name)
        if landmarks is not None and grid is not None and len(frames) == 1:
            index = grid.index_from_world(read_points(landmarks, grid=frames[0].grid))
            points.append(tensor_from_array(np.asarray(index), torch.float32))
    if len(images) < 2:
        raise InputError(f"'{series.images[0]}' has one frame; a group needs two or more.")
    whole = points if len(points) == len(images) and len({len(p) for p in points}) == 1 else []
    return {"images": torch.cat(images), "names": names, "points": whole}


def grid_at(grid: Grid, spacing: Sequence[float]) -> Grid:
    """The field of view of a grid with another voxel size, its outer faces where they were."""
    if len(spacing) != grid.dim:
        raise InputError(f"data.spacing_mm has {len(spacing)} numbers, the images have {grid.dim} axes.")
    steps = [s / old for s, old in zip(spacing, grid.spacing, strict=True)]
    shape = tuple(max(1, round(n / step)) for n, step in zip(grid.shape, steps, strict=True))
    matrix = grid.world_from_voxel.copy()
    matrix[:3, : grid.dim] *= steps
    # Voxel 0 is centred half a new voxel behind the face, which lies half an old one before old voxel 0.
    start = [(step - 1) / 2 for step in steps]
    matrix[:3, 3] += grid.world_from_voxel[:3, : grid.dim] @ start
    return Grid(shape, matrix)
