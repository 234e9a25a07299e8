"""What the files of kept motions have in common: arrays, and a description of them, under one check sum.

A file is safetensors with the description as JSON in its header.  Nothing in it can run.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from DiffeoRegLib.errors import DiffeoRegError, FileFormatError, OutputError, SettingsError
from DiffeoRegLib.space.grid import Grid, Matrix
from DiffeoRegLib.space.powers import affine_power

SUFFIX = ".safetensors"
MOST_STEPS = 10_000
MOST_VOXELS = 1 << 31
WHOLE = (
    "The linear part of this transform has no gradual form (it mirrors or turns by half a circle), "
    "so it is applied whole at every time."
)
Arrays = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Place:
    """A Grid as JSON holds it."""

    shape: tuple[int, ...]
    world_from_voxel: tuple[tuple[float, ...], ...]

    @classmethod
    def of(cls, grid: Grid) -> Place:
        """The place of a grid."""
        return cls(grid.shape, rows_of(grid.world_from_voxel))

    def grid(self) -> Grid:
        """The grid again; raises SettingsError for a matrix that is none."""
        return Grid(self.shape, matrix_of(self.world_from_voxel))


def require_format(description: Mapping[str, Any], wanted: str, source: str) -> None:
    """Raises FileFormatError for a description of another format or version."""
    if description.get("format") != wanted:
        raise FileFormatError(
            f"'{source}' has the format '{description.get('format')}'; this version of DiffeoReg reads "
            f"'{wanted}'."
        )


def rows_of(matrix: Matrix) -> tuple[tuple[float, ...], ...]:
    """A matrix as JSON holds it."""
    return tuple(tuple(row) for row in np.asarray(matrix).tolist())


def matrix_of(rows: tuple[tuple[float, ...], ...]) -> Matrix:
    """Rows of equal length as float64; raises SettingsError unless they are 4 x 4 finite numbers."""
    if [len(row) for row in rows] != [4] * 4:
        raise SettingsError(f"a matrix in it is not 4 x 4: {rows}.")
    return np.array(rows, dtype=np.float64)


def check_places(places: Sequence[Place]) -> None:
    """Raises SettingsError for grids of different dimension, or of more voxels than can be."""
    if len({len(place.shape) for place in places}) > 1:
        raise SettingsError("its grids differ in their number of axes.")
    if max(math.prod(place.shape) for place in places) > MOST_VOXELS:
        raise SettingsError(f"it has a grid of more than {MOST_VOXELS} voxels.")


def check_taper(taper_mm: float | None) -> None:
    """Raises SettingsError for a taper that is negative or not finite."""
    if taper_mm is not None and not 0 <= taper_mm < math.inf:
        raise SettingsError(f"its taper is {taper_mm} mm.")


def float_array(array: NDArray[Any], name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """An array of a file; raises FileFormatError unless it is float32, of this shape and finite."""
    if array.dtype != np.float32:
        raise FileFormatError(f"'{name}' is {array.dtype}, not float32.")
    if array.shape != shape:
        raise FileFormatError(f"'{name}' is {array.shape}, not {shape}.")
    if not np.isfinite(array).all():
        raise FileFormatError(f"'{name}' holds values that are not finite.")
    return array


def check_time(time: float, what: str = "A geodesic") -> None:
    """Raises SettingsError for a time outside [0, 1]; what: runs from 0 to 1."""
    if not 0 <= time <= 1:
        raise SettingsError(f"{what} runs from time 0 to time 1; there is no time {time:g} on it.")


def check_steps(steps: int) -> None:
    """Raises SettingsError for a number of steps that nothing is followed in."""
    if not (isinstance(steps, int) and 1 <= steps <= MOST_STEPS):
        raise SettingsError(f"Time steps are a whole number from 1 to {MOST_STEPS}, not {steps!r}.")


def linear_at(moving_from_fixed: Matrix, time: float) -> tuple[Matrix, str | None]:
    """The linear part of a transform at a time, RAS mm, and a sentence where it has no gradual form."""
    part = affine_power(moving_from_fixed, time)
    return (moving_from_fixed, WHOLE) if part is None else (part, None)


def require_safetensors(kind: type[DiffeoRegError]) -> None:
    """Raises an error of this kind where the package that files of motions need is missing."""
    try:
        # Not at the top: in Slicer methods run, and motions stay in memory, without this package.
        import safetensors  # noqa: F401
    except ImportError as error:
        raise kind(
            "Files of geodesics and velocities need the package safetensors, which is not installed: install "
            "it in Slicer's module (Setup), or with pip install safetensors."
        ) from error


def sealed(arrays: Mapping[str, NDArray[Any]], description: Mapping[str, Any]) -> str:
    """JSON of a description and of the SHA-256 over it and names, types, shapes and bytes of the arrays."""
    total = hashlib.sha256(json.dumps(description, sort_keys=True).encode("utf-8"))
    for name in sorted(arrays):
        value = np.ascontiguousarray(arrays[name])
        total.update(f"\n{name} {value.dtype.str} {value.shape}\n".encode())
        total.update(value.tobytes())
    return json.dumps({"description": description, "sha256": total.hexdigest()}, sort_keys=True)


def write_sealed(
    path: Path, key: str, what: str, arrays: Mapping[str, NDArray[Any]], description: Mapping[str, Any], *,
    overwrite: bool = False,
) -> None:  # fmt: skip
    """Write a .safetensors file; it appears complete or not at all.

    key: of the description in the header.  what: the content, in the plural.
    Raises OutputExistsError for an existing file unless `overwrite`, OutputError for another suffix, a place
    that cannot be written to, and where the package safetensors is missing.
    """
    # Here, not above: the worker packs motions without the packages that files need.
    from DiffeoRegLib.volumes.file_guard import suffix_of, writing

    if suffix_of(path) != SUFFIX:
        raise OutputError(f"'{path.name}': {what} are written as {SUFFIX} files.")
    require_safetensors(OutputError)
    from safetensors.numpy import save

    content = save(dict(arrays), metadata={key: sealed(arrays, description)})
    with writing(path, overwrite=overwrite, needed_bytes=len(content)) as partial:
        partial.write_bytes(content)


def read_sealed(path: Path, key: str, what: str, one: str) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Arrays and description that `write_sealed` wrote; one: what the content is, `a geodesic`.

    Raises FileFormatError for a file that is missing, damaged, altered or of another kind, and where the
    package safetensors is missing.
    """
    require_safetensors(FileFormatError)
    from safetensors import SafetensorError
    from safetensors.numpy import load

    from DiffeoRegLib.volumes.file_guard import reading

    with reading(path, one):
        content = path.read_bytes()
        try:
            arrays = load(content)
            header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        except SafetensorError as error:
            raise FileFormatError(
                f"'{path}' is damaged, cut short or no file of {what} ({error}). Use an intact copy."
            ) from error
        seal = json.loads((header.get("__metadata__") or {}).get(key, "null"))
        description = seal.get("description") if isinstance(seal, dict) else None
        if not isinstance(description, dict):
            raise FileFormatError(f"'{path}' holds {one.replace('a ', 'no ', 1)} that DiffeoReg wrote.")
        if json.loads(sealed(arrays, description)) != seal:
            raise FileFormatError(f"'{path}' was altered after it was written. Use an intact copy.")
    return arrays, description


def keys_of(path: Path) -> set[str]:
    """Under which keys a file describes what it holds; none for a file that is missing or no safetensors."""
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size)) if size <= path.stat().st_size else None
    except (OSError, ValueError):
        return set()
    notes = header.get("__metadata__") if isinstance(header, dict) else None
    return set(notes) if isinstance(notes, dict) else set()
