"""Registrations kept as the start of their geodesics: a small file, from which the transform is shot again.

A file is safetensors: momenta (and pre-weights) as they were found, and everything else as JSON.  Nothing in
it can run.  On the machine that made it, with the same version, time 1 gives the transform of the run bit for
bit.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from numpy.typing import NDArray

from DiffeoRegLib import __version__
from DiffeoRegLib.errors import DiffeoRegError, FileFormatError, SettingsError
from DiffeoRegLib.flows.momentum import MomentumMetric
from DiffeoRegLib.flows.regional import RegionalMetric
from DiffeoRegLib.methods.finish import to_patient
from DiffeoRegLib.methods.geodesic import Geodesic, finished
from DiffeoRegLib.methods.map_grid import MapGrid
from DiffeoRegLib.methods.start import linear_matrix
from DiffeoRegLib.pipeline import Result
from DiffeoRegLib.plain import as_plain, build
from DiffeoRegLib.sealed_files import (
    MOST_STEPS,
    Arrays,
    Place,
    check_places,
    check_steps,
    check_taper,
    check_time,
    float_array,
    linear_at,
    matrix_of,
    read_sealed,
    require_format,
    require_safetensors,
    rows_of,
    sealed,
    write_sealed,
)
from DiffeoRegLib.space.grid import Grid, Matrix
from DiffeoRegLib.space.sample import array_from_tensor, tensor_from_array
from DiffeoRegLib.space.transform import AffineTransform, Transform

__all__ = [
    "FORMAT",
    "KEY",
    "MOST_STEPS",
    "SavedGeodesics",
    "check_time",
    "matrix_at",
    "pack",
    "read_geodesics",
    "require_safetensors",
    "reshoot",
    "saved_geodesics",
    "sealed",
    "unpack",
    "write_geodesics",
]

FORMAT = "diffeoreg-geodesic-1"
KEY = "geodesic"


@dataclass(frozen=True, eq=False)
class SavedGeodesics:
    """All it takes to shoot the transform of a run again.

    geodesics: on the CPU, in the order of `methods.geodesic.chain`.  working: the grid their maps were put
    together on.  cover: the fixed image's grid, over which the map is continued.  moving_from_fixed: the
    initial alignment, RAS mm 4x4.  taper_mm: as in Settings.
    """

    geodesics: tuple[Geodesic, ...]
    working: Grid
    cover: Grid
    moving_from_fixed: Matrix
    taper_mm: float | None = None

    def with_steps(self, steps: int) -> SavedGeodesics:
        """The same, shot in other numbers of steps; raises SettingsError for one out of range."""
        check_steps(steps)
        links = tuple(dataclasses.replace(link, steps=steps) for link in self.geodesics)
        return dataclasses.replace(self, geodesics=links)


@dataclass(frozen=True)
class _Link:
    """A Geodesic without its tensors.  weights: of one kernel for all places; None with pre-weights."""

    grid: Place
    unit_mm: tuple[float, ...]
    sigmas: tuple[float, ...]
    preweight_sigma: float
    weights: tuple[float, ...] | None
    order: int
    walls: bool
    form: Literal["separable", "fourier"]
    steps: int
    integrator: Literal["rk4", "dopri5"]


@dataclass(frozen=True)
class _Description:
    """What a file says beside its arrays; lengths in mm or in the unit of the link."""

    format: str
    version: str
    working: Place
    cover: Place
    moving_from_fixed: tuple[tuple[float, ...], ...]
    taper_mm: float | None
    links: tuple[_Link, ...]


def pack(saved: SavedGeodesics) -> tuple[Arrays, dict[str, Any]]:
    """Arrays by name, float32, and a description that JSON can hold; `unpack` undoes it exactly."""
    arrays: Arrays = {}
    for number, link in enumerate(saved.geodesics):
        for name, tensor in zip(_names(number, link.metric), link.tensors, strict=True):
            if tensor.dtype != torch.float32:
                raise SettingsError(f"Geodesics are kept in float32, not in {tensor.dtype}.")
            arrays[name] = array_from_tensor(tensor.detach().cpu().contiguous()).copy()
    content = _Description(
        format=FORMAT,
        version=__version__,
        working=Place.of(saved.working),
        cover=Place.of(saved.cover),
        moving_from_fixed=rows_of(saved.moving_from_fixed),
        taper_mm=saved.taper_mm,
        links=tuple(_link_of(link) for link in saved.geodesics),
    )
    return arrays, as_plain(content)


def unpack(
    arrays: Mapping[str, NDArray[Any]], description: Mapping[str, Any], source: str = "the geodesic"
) -> SavedGeodesics:
    """What `pack` was given; every value is looked at.

    source: what messages call it.
    Raises FileFormatError for another format, a value that is missing, of a wrong type or size, or not
    finite, and for arrays that do not belong to it.
    """
    require_format(description, FORMAT, source)
    try:
        content = build(_Description, description, "the description")
        _check(content)
        expected = [name for number, link in enumerate(content.links) for name in _link_names(number, link)]
        if set(arrays) != set(expected):
            raise FileFormatError(f"it holds the arrays {sorted(arrays)}, not {sorted(expected)}.")
        links = tuple(_geodesic(number, link, arrays) for number, link in enumerate(content.links))
        return SavedGeodesics(
            links,
            content.working.grid(),
            content.cover.grid(),
            AffineTransform(matrix_of(content.moving_from_fixed)).moving_from_fixed,
            content.taper_mm,
        )
    except (DiffeoRegError, OverflowError) as error:
        raise FileFormatError(f"'{source}' holds no usable geodesic: {error}") from error


def write_geodesics(path: str | Path, saved: SavedGeodesics, *, overwrite: bool = False) -> None:
    """Write a .safetensors file; it appears complete or not at all.

    Raises OutputExistsError for an existing one unless `overwrite`, OutputError for another suffix, a place
    that cannot be written to, and where the package safetensors is missing.
    """
    write_sealed(Path(path), KEY, "geodesics", *pack(saved), overwrite=overwrite)


def read_geodesics(path: str | Path) -> SavedGeodesics:
    """What `write_geodesics` wrote.

    Raises FileFormatError for a file that is missing, damaged, altered, of another kind or another version,
    and where the package safetensors is missing.
    """
    arrays, description = read_sealed(Path(path), KEY, "geodesics", "a geodesic")
    return unpack(arrays, description, str(path))


def saved_geodesics(result: Result, cover: Grid, taper_mm: float | None = None) -> SavedGeodesics | None:
    """What to keep of a run; None without a geodesic, and after a start from a non-linear transform.

    cover: the grid of the run's fixed image.  taper_mm: of its settings.
    """
    matrix = linear_matrix(result.initial)
    if result.motion is None or not result.motion.geodesics or result.working is None or matrix is None:
        return None
    links = tuple(link.to("cpu") for link in result.motion.geodesics)
    return SavedGeodesics(links, result.working, cover, matrix, taper_mm)


def reshoot(
    saved: SavedGeodesics,
    time: float = 1.0,
    steps: int | None = None,
    *,
    notes: list[str] | None = None,
) -> tuple[Transform, Transform]:
    """The transform at a time, fixed to moving points, RAS mm, and its inverse.

    T_t = A^t after phi_t^-1: the identity at 0, the transform of the run at 1, bit for bit on the machine
    that made it.  steps: of every geodesic; None = as in the run.  notes: receives sentences for the user.
    Raises SettingsError for a time outside [0, 1] or an impossible number of steps, ShootingDiverged for
    too few.
    """
    check_time(time)
    saved = saved if steps is None else saved.with_steps(steps)
    matrix, whole = matrix_at(saved, time)
    flow = finished(saved.geodesics, saved.working, saved.cover, saved.taper_mm, time)
    if notes is not None:
        notes += [*flow.notes, *([] if whole is None else [whole])]
    return to_patient(flow, AffineTransform(matrix))


def matrix_at(saved: SavedGeodesics, time: float) -> tuple[Matrix, str | None]:
    """The linear part of the transform at a time, RAS mm, and a sentence where it has no gradual form."""
    return linear_at(saved.moving_from_fixed, time)


def _names(number: int, metric: MomentumMetric | RegionalMetric) -> tuple[str, ...]:
    names = ("momentum", "preweights") if isinstance(metric, RegionalMetric) else ("momentum",)
    return tuple(f"{number}.{name}" for name in names)


def _link_names(number: int, link: _Link) -> tuple[str, ...]:
    names = ("momentum", "preweights") if link.weights is None else ("momentum",)
    return tuple(f"{number}.{name}" for name in names)


def _link_of(link: Geodesic) -> _Link:
    metric, place = link.metric, link.place
    return _Link(
        grid=Place.of(place.grid),
        unit_mm=tuple(place.unit_mm),
        sigmas=tuple(metric.kernels.sigmas),
        preweight_sigma=place.preweight_sigma,
        weights=tuple(metric.weights) if isinstance(metric, MomentumMetric) else None,
        order=metric.stencil.order,
        walls=metric.walls,
        form=cast(Any, metric.kernels.form),
        steps=link.steps,
        integrator=cast(Any, link.integrator),
    )


def _check(content: _Description) -> None:
    """Raises SettingsError for numbers that no run has; matrices are checked where they are used."""
    if not content.links:
        raise SettingsError("it names no geodesic.")
    check_taper(content.taper_mm)
    check_places([content.working, content.cover, *(link.grid for link in content.links)])
    for link in content.links:
        lengths = (*link.unit_mm, *link.sigmas, link.preweight_sigma)
        if not all(0 < length < math.inf for length in lengths) or len(link.unit_mm) != len(link.grid.shape):
            raise SettingsError(f"its lengths are {lengths}.")
        if not 1 <= link.steps <= MOST_STEPS:
            raise SettingsError(f"its geodesic takes {link.steps} steps.")


def _geodesic(number: int, link: _Link, arrays: Mapping[str, NDArray[Any]]) -> Geodesic:
    place = MapGrid(link.grid.grid(), link.unit_mm, link.sigmas, link.preweight_sigma)
    shape, channels = place.grid.shape, (place.grid.dim, len(link.sigmas))
    tensors = tuple(
        tensor_from_array(float_array(arrays[name], name, (1, count, *shape)), torch.float32)
        for name, count in zip(_link_names(number, link), channels, strict=False)
    )
    common: dict[str, Any] = {"order": link.order, "walls": link.walls, "form": link.form}
    metric: MomentumMetric | RegionalMetric
    if link.weights is None:
        metric = RegionalMetric(shape, place.spacing, link.sigmas, link.preweight_sigma, **common)
    else:
        metric = MomentumMetric(shape, place.spacing, link.sigmas, link.weights, **common)
        metric.weights = link.weights  # as they were: brought to sum 1 once more they may differ in a bit
    return Geodesic(metric, place, tensors, link.steps, link.integrator)
