"""`diffeoreg shoot`: the transform of a run from its geodesic or its velocities, at any times."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from DiffeoRegLib.cli.console import Console
from DiffeoRegLib.cli.inputs import check_target
from DiffeoRegLib.errors import OutputError, SettingsError
from DiffeoRegLib.geodesic_files import SavedGeodesics, read_geodesics, reshoot
from DiffeoRegLib.methods.geodesic import Geodesic
from DiffeoRegLib.outputs import staging, stored_form, undisturbed
from DiffeoRegLib.sealed_files import check_time, keys_of, linear_at
from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.space.transform import Transform
from DiffeoRegLib.velocity_files import KEY as VELOCITIES
from DiffeoRegLib.velocity_files import SavedVelocities, read_velocities, retrace
from DiffeoRegLib.volumes.file_guard import stem_of, suffix_of
from DiffeoRegLib.volumes.transform_files import WRITTEN_FIELDS, write_transform

KINDS = ("transform", "inverse")
READ = 0.02  # share of the whole progress
Saved = SavedGeodesics | SavedVelocities


def shoot(arguments: argparse.Namespace, console: Console) -> None:
    """Read, follow, write every file or none."""
    times = (arguments.time,) if arguments.times is None else arguments.times
    if not arguments.each_step:
        targets = _targets(arguments, times)
    console.progress("reading", 0.0, "reading what the run kept")
    saved = _read(Path(arguments.kept))
    if arguments.steps is not None:
        saved = saved.with_steps(arguments.steps)
    if arguments.each_step:
        times = _after_each_step(saved)
        targets = _targets(arguments, times)
    said: list[str] = []
    with ExitStack() as stack:
        stages = {parent: stack.enter_context(staging(parent)) for parent in _parents(targets)}
        for number, (time, files) in enumerate(zip(times, targets, strict=True)):
            fraction = READ + (1 - READ) * number / len(times)
            console.progress("shoot", fraction, f"following the motion to time {time:g}")
            notes: list[str] = []
            forms = _forms(saved, time, notes)
            said += [note for note in notes if note not in said]
            for transform, grid, file in zip(forms, _grids(saved, time), files, strict=False):
                _write(transform, stages[file.parent] / file.name, grid)
        with undisturbed():
            for file in (file for files in targets for file in files):
                (stages[file.parent] / file.name).replace(file)
    for note in said:
        console.log(note)
    console.progress("shoot", 1.0, "done")
    console.result(*_result(times, targets, saved))


def _read(path: Path) -> Saved:
    """What the file says it holds; raises FileFormatError."""
    return read_velocities(path) if VELOCITIES in keys_of(path) else read_geodesics(path)


def _forms(saved: Saved, time: float, notes: list[str]) -> tuple[Transform, Transform]:
    """The transform at a time, and its inverse."""
    if isinstance(saved, SavedVelocities):
        return retrace(saved, time, notes=notes)
    return reshoot(saved, time, notes=notes)


def _after_each_step(saved: Saved) -> tuple[float, ...]:
    """From 0 to 1; raises SettingsError for geodesics, whose steps are of the integrator alone."""
    if not isinstance(saved, SavedVelocities):
        raise SettingsError("--each-step is for velocities; of a geodesic take --times.")
    return tuple(number / saved.steps for number in range(saved.steps + 1))


def _targets(arguments: argparse.Namespace, times: Sequence[float]) -> list[tuple[Path, ...]]:
    """The files of every time, transform first; raises InputError and OutputError before any is written."""
    for time in times:
        check_time(time, "This way")
    if len(set(times)) < len(times):
        raise SettingsError(f"--times names a time twice: {', '.join(f'{time:g}' for time in times)}.")
    given = [arguments.output, arguments.inverse_output]
    names = [Path(name) for name in given if name is not None]
    for name in names:
        if suffix_of(name) not in WRITTEN_FIELDS:
            raise OutputError(
                f"'{name.name}': this transform is written as {', '.join(WRITTEN_FIELDS)}; give such a name."
            )
    if arguments.times is not None or arguments.each_step:
        targets = [tuple(_numbered(name, number) for name in names) for number in range(len(times))]
    else:
        targets = [tuple(names)]
    every = [file for files in targets for file in files]
    if len({file.resolve() for file in every}) < len(every):
        raise SettingsError("The transform and its inverse need names of their own.")
    for file in every:
        check_target(file, overwrite=arguments.overwrite)
    return targets


def _numbered(name: Path, number: int) -> Path:
    return name.with_name(f"{stem_of(name)}_{number:03d}{suffix_of(name)}")


def _parents(targets: list[tuple[Path, ...]]) -> list[Path]:
    return sorted({file.parent for files in targets for file in files})


def _grids(saved: Saved, time: float) -> tuple[Grid, Grid]:
    """Where a transform and its inverse are sampled for a file of one field.

    The inverse is at home under the fixed image: on its grid, carried by the linear part.
    """
    matrix, _ = linear_at(saved.moving_from_fixed, time)
    return saved.cover, Grid(saved.cover.shape, matrix @ saved.cover.world_from_voxel)


def _write(transform: Transform, path: Path, grid: Grid) -> None:
    """A .h5 file as `register` writes it; any other at all voxels of the grid."""
    whole = transform if suffix_of(path) not in (".h5", ".hdf5") else stored_form(transform)
    write_transform(whole, path, displacement_grid=grid)


def _result(
    times: Sequence[float], targets: list[tuple[Path, ...]], saved: Saved
) -> tuple[str, dict[str, Any]]:
    """What people read and what programs read."""
    files: dict[str, str] = {}
    for number, paths in enumerate(targets):
        tail = "" if len(targets) == 1 else f"_{number:03d}"
        files |= {f"{kind}{tail}": str(path) for kind, path in zip(KINDS, paths, strict=False)}
    lines = [
        f"time {time:<5g} {', '.join(str(path) for path in paths)}"
        for time, paths in zip(times, targets, strict=True)
    ]
    if isinstance(saved, SavedVelocities):
        steps = [saved.steps]
        how = [f"{saved.steps} of {len(saved.velocity_vox)} velocities, order '{saved.order}'"]
    else:
        steps, how = [link.steps for link in saved.geodesics], [*map(_stepping, saved.geodesics)]
    text = "\n".join([f"Steps in time: {'; '.join(how)}. Written:", *lines])
    return text, {"command": "shoot", "files": files, "times": list(times), "steps": steps}


def _stepping(link: Geodesic) -> str:
    """How time is stepped along a geodesic, in words; an adaptive scheme chooses all steps but the first."""
    if link.plan.scheme.error_weights:
        return f"{link.integrator}, the first of length 1/{link.steps}"
    return f"{link.steps} of {link.integrator}"
