"""Registrations kept as the start of their geodesics: a small file, from which the transform is shot again.

A file is safetensors: momenta (and pre-weights) as they were found, and everything else as JSON.  Nothing in
it can run.  On the machine that made it, with the same version, time 1 gives the transform of the run bit for
bit.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray

from DiffeoRegLib import __version__
from DiffeoRegLib.errors import DiffeoRegError, FileFormatError, OutputError, SettingsError
from DiffeoRegLib.flows.momentum import MomentumMetric
from DiffeoRegLib.flows.regional import RegionalMetric
from DiffeoRegLib.methods.finish import to_patient
from DiffeoRegLib.methods.geodesic import Geodesic, finished
from DiffeoRegLib.methods.map_grid import MapGrid
from DiffeoRegLib.methods.start import linear_matrix
from DiffeoRegLib.pipeline import Result
from DiffeoRegLib.plain import as_plain, build
from DiffeoRegLib.space.grid import Grid, Matrix
from DiffeoRegLib.space.powers import affine_power
from DiffeoRegLib.space.sample import array_from_tensor, tensor_from_array
from DiffeoRegLib.space.transform import AffineTransform, Transform

FORMAT = "diffeoreg-geodesic-1"
SUFFIX = ".safetensors"
KEY = "geodesic"
MOST_STEPS = 10_000
MOST_VOXELS = 1 << 31
WHOLE = (
    "The linear part of this transform has no gradual form (it mirrors or turns by half a circle), "
    "so it is applied whole at every time."
)
Arrays = dict[str, NDArray[np.float32]]


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
        if not (isinstance(steps, int) and 1 <= steps <= MOST_STEPS):
            raise SettingsError(f"Time steps are a whole number from 1 to {MOST_STEPS}, not {steps!r}.")
        links = tuple(dataclasses.replace(link, steps=steps) for link in self.geodesics)
        return dataclasses.replace(self, geodesics=links)


@dataclass(frozen=True)
class _Place:
    """A Grid as JSON holds it."""

    shape: tuple[int, ...]
    world_from_voxel: tuple[tuple[float, ...], ...]

    @classmethod
    def of(cls, grid: Grid) -> _Place:
        return cls(grid.shape, tuple(tuple(row) for row in grid.world_from_voxel.tolist()))

    def grid(self) -> Grid:
        return Grid(self.shape, _matrix(self.world_from_voxel))


@dataclass(frozen=True)
class _Link:
    """A Geodesic without its tensors.  weights: of one kernel for all places; None with pre-weights."""

    grid: _Place
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
    working: _Place
    cover: _Place
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
        working=_Place.of(saved.working),
        cover=_Place.of(saved.cover),
        moving_from_fixed=tuple(tuple(row) for row in np.asarray(saved.moving_from_fixed).tolist()),
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
    if description.get("format") != FORMAT:
        raise FileFormatError(
            f"'{source}' has the format '{description.get('format')}'; this version of DiffeoReg reads "
            f"'{FORMAT}'."
        )
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
            AffineTransform(_matrix(content.moving_from_fixed)).moving_from_fixed,
            content.taper_mm,
        )
    except (DiffeoRegError, OverflowError) as error:
        raise FileFormatError(f"'{source}' holds no usable geodesic: {error}") from error


def write_geodesics(path: str | Path, saved: SavedGeodesics, *, overwrite: bool = False) -> None:
    """Write a .safetensors file; it appears complete or not at all.

    Raises OutputExistsError for an existing one unless `overwrite`, OutputError for another suffix, a place
    that cannot be written to, and where the package safetensors is missing.
    """
    # Here, not above: the worker packs geodesics without the packages that files need.
    from DiffeoRegLib.volumes.file_guard import suffix_of, writing

    path = Path(path)
    if suffix_of(path) != SUFFIX:
        raise OutputError(f"'{path.name}': geodesics are written as {SUFFIX} files.")
    require_safetensors(OutputError)
    from safetensors.numpy import save

    arrays, description = pack(saved)
    content = save(arrays, metadata={KEY: sealed(arrays, description)})
    with writing(path, overwrite=overwrite, needed_bytes=len(content)) as partial:
        partial.write_bytes(content)


def read_geodesics(path: str | Path) -> SavedGeodesics:
    """What `write_geodesics` wrote.

    Raises FileFormatError for a file that is missing, damaged, altered, of another kind or another version,
    and where the package safetensors is missing.
    """
    path = Path(path)
    require_safetensors(FileFormatError)
    from safetensors import SafetensorError
    from safetensors.numpy import load

    from DiffeoRegLib.volumes.file_guard import reading

    with reading(path, "a geodesic"):
        content = path.read_bytes()
        try:
            arrays = load(content)
            header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        except SafetensorError as error:
            raise FileFormatError(
                f"'{path}' is damaged, cut short or no file of geodesics ({error}). Use an intact copy."
            ) from error
        seal = json.loads((header.get("__metadata__") or {}).get(KEY, "null"))
        description = seal.get("description") if isinstance(seal, dict) else None
        if not isinstance(description, dict):
            raise FileFormatError(f"'{path}' holds no geodesic that DiffeoReg wrote.")
        if json.loads(sealed(arrays, description)) != seal:
            raise FileFormatError(f"'{path}' was altered after it was written. Use an intact copy.")
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
    part = affine_power(saved.moving_from_fixed, time)
    return (saved.moving_from_fixed, WHOLE) if part is None else (part, None)


def check_time(time: float) -> None:
    """Raises SettingsError for a time outside [0, 1]."""
    if not 0 <= time <= 1:
        raise SettingsError(f"A geodesic runs from time 0 to time 1; there is no time {time:g} on it.")


def require_safetensors(kind: type[DiffeoRegError]) -> None:
    """Raises an error of this kind where the package that files of geodesics need is missing."""
    try:
        # Not at the top: in Slicer methods run, and geodesics stay in memory, without this package.
        import safetensors  # noqa: F401
    except ImportError as error:
        raise kind(
            "Files of geodesics need the package safetensors, which is not installed: install it in Slicer's "
            "module (Setup), or with pip install safetensors."
        ) from error


def sealed(arrays: Mapping[str, NDArray[Any]], description: Mapping[str, Any]) -> str:
    """JSON of a description and of the SHA-256 over it and names, types, shapes and bytes of the arrays."""
    total = hashlib.sha256(json.dumps(description, sort_keys=True).encode("utf-8"))
    for name in sorted(arrays):
        value = np.ascontiguousarray(arrays[name])
        total.update(f"\n{name} {value.dtype.str} {value.shape}\n".encode())
        total.update(value.tobytes())
    return json.dumps({"description": description, "sha256": total.hexdigest()}, sort_keys=True)


def _names(number: int, metric: MomentumMetric | RegionalMetric) -> tuple[str, ...]:
    names = ("momentum", "preweights") if isinstance(metric, RegionalMetric) else ("momentum",)
    return tuple(f"{number}.{name}" for name in names)


def _link_names(number: int, link: _Link) -> tuple[str, ...]:
    names = ("momentum", "preweights") if link.weights is None else ("momentum",)
    return tuple(f"{number}.{name}" for name in names)


def _link_of(link: Geodesic) -> _Link:
    metric, place = link.metric, link.place
    return _Link(
        grid=_Place.of(place.grid),
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
    if content.taper_mm is not None and not 0 <= content.taper_mm < math.inf:
        raise SettingsError(f"its taper is {content.taper_mm} mm.")
    places = [content.working, content.cover, *(link.grid for link in content.links)]
    if len({len(place.shape) for place in places}) > 1:
        raise SettingsError("its grids differ in their number of axes.")
    if max(math.prod(place.shape) for place in places) > MOST_VOXELS:
        raise SettingsError(f"it has a grid of more than {MOST_VOXELS} voxels.")
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
        tensor_from_array(_array(arrays[name], name, (1, count, *shape)), torch.float32)
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


def _array(array: NDArray[Any], name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    if array.dtype != np.float32:
        raise FileFormatError(f"'{name}' is {array.dtype}, not float32.")
    if array.shape != shape:
        raise FileFormatError(f"'{name}' is {array.shape}, not {shape}.")
    if not np.isfinite(array).all():
        raise FileFormatError(f"'{name}' holds values that are not finite.")
    return array


def _matrix(rows: tuple[tuple[float, ...], ...]) -> Matrix:
    """Rows of equal length as float64; raises SettingsError unless they are 4 x 4 finite numbers."""
    if [len(row) for row in rows] != [4] * 4:
        raise SettingsError(f"a matrix in it is not 4 x 4: {rows}.")
    return np.array(rows, dtype=np.float64)
