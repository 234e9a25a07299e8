"""Registrations kept as velocities that change in time: a small file, from which the transform is made again.

A file is safetensors, see sealed_files.py.  On the machine that made it, with the same version, time 1 gives
the transform of the run bit for bit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from DiffeoRegLib import __version__
from DiffeoRegLib.errors import DiffeoRegError, FileFormatError, SettingsError
from DiffeoRegLib.flows.time_varying import Order
from DiffeoRegLib.methods.finish import to_patient
from DiffeoRegLib.methods.start import linear_matrix
from DiffeoRegLib.methods.stepping import followed
from DiffeoRegLib.pipeline import Result
from DiffeoRegLib.plain import as_plain, build
from DiffeoRegLib.sealed_files import (
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
    rows_of,
    write_sealed,
)
from DiffeoRegLib.space.grid import Grid, Matrix
from DiffeoRegLib.space.sample import array_from_tensor, tensor_from_array
from DiffeoRegLib.space.transform import AffineTransform, Transform

FORMAT = "diffeoreg-velocities-1"
KEY = "velocities"
MOST_FIELDS = 1024


@dataclass(frozen=True, eq=False)
class SavedVelocities:
    """All it takes to follow the motion of a run again.

    velocity_vox: (T, d, *grid.shape), float32 on the CPU, voxels of `grid` per unit time, each for 1/T.
    order, steps: how they are followed, see `methods.stepping.followed`.  working: the grid the map is read
    on.  cover: the fixed image's grid, over which it is continued.  moving_from_fixed: the initial alignment,
    RAS mm 4x4.  taper_mm: as in Settings.
    """

    velocity_vox: Tensor
    grid: Grid
    order: Order
    steps: int
    working: Grid
    cover: Grid
    moving_from_fixed: Matrix
    taper_mm: float | None = None

    def with_steps(self, steps: int) -> SavedVelocities:
        """The same velocities in other steps; raises SettingsError for a number out of range."""
        check_steps(steps)
        return dataclasses.replace(self, steps=steps)


@dataclass(frozen=True)
class _Description:
    """What a file says beside its arrays."""

    format: str
    version: str
    grid: Place
    fields: int
    order: Order
    steps: int
    working: Place
    cover: Place
    moving_from_fixed: tuple[tuple[float, ...], ...]
    taper_mm: float | None


def pack(saved: SavedVelocities) -> tuple[Arrays, dict[str, Any]]:
    """Arrays (1, d, *grid.shape) by name, float32, and a description that JSON can hold.

    `unpack` undoes it exactly.  Raises SettingsError for velocities of another type.
    """
    if saved.velocity_vox.dtype != torch.float32:
        raise SettingsError(f"Velocities are kept in float32, not in {saved.velocity_vox.dtype}.")
    fields = torch.split(saved.velocity_vox.detach().cpu().contiguous(), 1)
    names = _names(len(fields))
    arrays = {name: array_from_tensor(one).copy() for name, one in zip(names, fields, strict=True)}
    content = _Description(
        format=FORMAT,
        version=__version__,
        grid=Place.of(saved.grid),
        fields=len(fields),
        order=saved.order,
        steps=saved.steps,
        working=Place.of(saved.working),
        cover=Place.of(saved.cover),
        moving_from_fixed=rows_of(saved.moving_from_fixed),
        taper_mm=saved.taper_mm,
    )
    return arrays, as_plain(content)


def unpack(
    arrays: Mapping[str, NDArray[Any]], description: Mapping[str, Any], source: str = "the velocities"
) -> SavedVelocities:
    """What `pack` was given; every value is looked at.

    source: what messages call it.
    Raises FileFormatError for another format, a value that is missing, of a wrong type or size, or not
    finite, and for arrays that do not belong to it.
    """
    require_format(description, FORMAT, source)
    try:
        content = build(_Description, description, "the description")
        _check(content)
        grid, names = content.grid.grid(), _names(content.fields)
        if set(arrays) != set(names):
            raise FileFormatError(f"it holds the arrays {sorted(arrays)}, not {names}.")
        shape = (1, grid.dim, *grid.shape)
        fields = [tensor_from_array(float_array(arrays[name], name, shape), torch.float32) for name in names]
        return SavedVelocities(
            torch.cat(fields),
            grid,
            content.order,
            content.steps,
            content.working.grid(),
            content.cover.grid(),
            AffineTransform(matrix_of(content.moving_from_fixed)).moving_from_fixed,
            content.taper_mm,
        )
    except (DiffeoRegError, OverflowError) as error:
        raise FileFormatError(f"'{source}' holds no usable velocities: {error}") from error


def write_velocities(path: str | Path, saved: SavedVelocities, *, overwrite: bool = False) -> None:
    """Write a .safetensors file; it appears complete or not at all; raises like `write_sealed`."""
    write_sealed(Path(path), KEY, "velocities", *pack(saved), overwrite=overwrite)


def read_velocities(path: str | Path) -> SavedVelocities:
    """What `write_velocities` wrote.

    Raises FileFormatError for a file that is missing, damaged, altered, of another kind or another version,
    and where the package safetensors is missing.
    """
    arrays, description = read_sealed(Path(path), KEY, "velocities", "a path of velocities")
    return unpack(arrays, description, str(path))


def saved_velocities(result: Result, cover: Grid, taper_mm: float | None = None) -> SavedVelocities | None:
    """What to keep of a run; None unless its velocities are followed step by step, from a linear start.

    cover: the grid of the run's fixed image.  taper_mm: of its settings.
    """
    matrix, motion = linear_matrix(result.initial), result.motion
    if motion is None or motion.stepping is None or result.working is None or matrix is None:
        return None
    return SavedVelocities(
        motion.velocity_vox.detach().cpu().float(),
        motion.grid,
        motion.stepping,
        int(result.report["steps"]),
        result.working,
        cover,
        matrix,
        taper_mm,
    )


def retrace(
    saved: SavedVelocities, time: float = 1.0, *, notes: list[str] | None = None
) -> tuple[Transform, Transform]:
    """The transform at a time, fixed to moving points, RAS mm, and its inverse.

    T_t = A^t after phi_t: the identity at 0, the transform of the run at 1, bit for bit on the machine that
    made it.  notes: receives sentences for the user.
    Raises SettingsError for a time outside [0, 1], or steps that the order does not allow.
    """
    check_time(time, "A path")
    matrix, whole = linear_at(saved.moving_from_fixed, time)
    flow = followed(
        saved.velocity_vox, saved.grid, saved.order, saved.steps, saved.working, saved.cover, saved.taper_mm,
        time,
    )  # fmt: skip
    if notes is not None:
        notes += [*flow.notes, *([] if whole is None else [whole])]
    return to_patient(flow, AffineTransform(matrix))


def _names(fields: int) -> list[str]:
    return [f"velocity.{number}" for number in range(1, fields + 1)]


def _check(content: _Description) -> None:
    """Raises SettingsError for numbers that no run has; matrices are checked where they are used."""
    if not 1 <= content.fields <= MOST_FIELDS:
        raise SettingsError(f"it holds {content.fields} velocity fields.")
    check_steps(content.steps)
    check_taper(content.taper_mm)
    check_places([content.grid, content.working, content.cover])
