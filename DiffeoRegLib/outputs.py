"""The results of a registration as files: all of them appear, or none.

Everything is written into a temporary folder on the same file system and moved into place at the end.
"""

from __future__ import annotations

import json
import secrets
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from DiffeoRegLib.errors import OutputError, OutputExistsError
from DiffeoRegLib.geodesic_files import SavedGeodesics, write_geodesics
from DiffeoRegLib.methods.appearance import APPEARANCE, Appearance
from DiffeoRegLib.report.measure import json_safe
from DiffeoRegLib.report.page import html_page
from DiffeoRegLib.report.pictures import Scene, draw
from DiffeoRegLib.report.scores import grid_points
from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.space.storage import storage_bytes, storage_grid
from DiffeoRegLib.space.transform import CompositeTransform, DisplacementTransform, Transform, displacement_on
from DiffeoRegLib.velocity_files import SavedVelocities, write_velocities
from DiffeoRegLib.volumes.files import write_volume
from DiffeoRegLib.volumes.pair import Correspondence
from DiffeoRegLib.volumes.transform_files import read_transform, write_transform
from DiffeoRegLib.volumes.volume import Volume
from DiffeoRegLib.whole_file import make_private

NAMES = {
    "transform": "transform.h5",
    "inverse": "inverse.h5",
    "moved": "moved.nii.gz",
    "moved_seg": "moved_seg.nii.gz",
    "geodesic": "geodesic.safetensors",
    "velocities": "velocities.safetensors",
    "sigma_moving": "sigma_moving.nii.gz",
    "sigma_fixed": "sigma_fixed.nii.gz",
    "deformed": "deformed.nii.gz",
    "change": "change.nii.gz",
    "metamorphic": "metamorphic.nii.gz",
    "healthy": "healthy.nii.gz",
    "report": "report.json",
    "page": "report.html",
}
STORED_TOLERANCE_MM = 0.05  # the field is stored to 0.01 mm; single precision and the border add a little
MEGABYTE = 2**20


class Registered(Protocol):
    """What a registration gives; pipeline.Result is one."""

    @property
    def transform(self) -> Transform:
        """Fixed points to moving points."""

    @property
    def inverse(self) -> Transform:
        """Moving points to fixed points."""

    @property
    def moved(self) -> Volume:
        """The moving image on the fixed grid."""

    @property
    def moved_labels(self) -> Volume | None:
        """The moving label map on the fixed grid."""

    @property
    def initial(self) -> Transform:
        """The alignment the deformation started from."""

    @property
    def sigma(self) -> tuple[Volume, Volume] | None:
        """The width of the regulariser on the moving and on the fixed grid, mm."""

    @property
    def appearance(self) -> Appearance | None:
        """What a pathology changes besides the motion."""

    @property
    def report(self) -> dict[str, Any]:
        """The numbers, see report/measure.py."""


@dataclass(frozen=True, eq=False)
class Written:
    """Paths by kind (keys of NAMES), and the report as it was written."""

    files: dict[str, Path]
    report: dict[str, Any]


def check_output_folder(folder: Path, *, overwrite: bool = False) -> None:
    """Fail before the work, not after it, when results could not be written to a folder.

    Raises OutputExistsError for results that are there already (unless `overwrite`), OutputError for a
    folder that cannot be written to.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"'{folder}' is a file; -o needs a folder.")
    present = [name for name in NAMES.values() if (folder / name).exists()]
    if present and not overwrite:
        raise OutputExistsError(
            f"'{folder}' already holds {', '.join(present)}. "
            "Choose another folder, or allow overwriting (--overwrite)."
        )
    with staging(folder):
        pass  # a temporary folder could be made and removed: the place is writable


def write_results(
    folder: Path,
    result: Registered,
    *,
    fixed: Volume,
    moving: Volume,
    moved_labels: Volume | None = None,
    evaluation: Correspondence | None = None,
    geodesic: SavedGeodesics | None = None,
    velocities: SavedVelocities | None = None,
    overwrite: bool = False,
    html: bool = True,
    check: bool = True,
) -> Written:
    """Write transform, inverse, moved image, the report, and what else there is; all or nothing.

    That is moved labels, the geodesic or the velocities of the run, the width of its regulariser, and the
    change of appearance.
    check: read both transforms back and compare them.  Older results of the same names are replaced, and
    those this run has no counterpart for are removed, when `overwrite` is set.
    Raises OutputExistsError and OutputError; no partial file is left in any case.
    """
    check_output_folder(folder, overwrite=overwrite)
    started = time.perf_counter()
    transforms = {"transform": stored_form(result.transform), "inverse": stored_form(result.inverse)}
    with staging(folder) as stage:
        look = () if result.appearance is None else result.appearance.volumes
        volumes = [result.moved, moved_labels, *(result.sigma or ()), *look]
        _check_space(stage, [*transforms.values()], volumes)
        for kind, transform in transforms.items():
            write_transform(transform, stage / NAMES[kind], displacement_grid=fixed.grid)
        write_volume(result.moved, stage / NAMES["moved"])
        if moved_labels is not None:
            write_volume(moved_labels, stage / NAMES["moved_seg"])
        if geodesic is not None:
            write_geodesics(stage / NAMES["geodesic"], geodesic)
        if velocities is not None:
            write_velocities(stage / NAMES["velocities"], velocities)
        for kind, sigma in zip(("sigma_moving", "sigma_fixed"), result.sigma or (), strict=False):
            write_volume(sigma, stage / NAMES[kind])
        for kind, volume in zip(APPEARANCE, look, strict=False):
            write_volume(volume, stage / NAMES[kind])
        report = dict(result.report)
        report["transform"] = _stored_facts(stage, transforms, result, fixed, moving, check)
        for kind in ("geodesic", "velocities"):
            if (stage / NAMES[kind]).exists():
                report["transform"][f"{kind}_mb"] = (stage / NAMES[kind]).stat().st_size / MEGABYTE
        scene = _scene(result, fixed, moving, evaluation)
        gallery = draw(scene) if html else None
        report["seconds"] = {**report.get("seconds", {}), "writing": time.perf_counter() - started}
        report = dict(json_safe(report))
        (stage / NAMES["report"]).write_text(
            json.dumps(report, indent=1, allow_nan=False, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        if gallery is not None:
            (stage / NAMES["page"]).write_text(html_page(report, gallery), encoding="utf-8")
        kinds = [kind for kind, name in NAMES.items() if (stage / name).exists()]
        _move_into_place(stage, folder)
    return Written({kind: folder / NAMES[kind] for kind in kinds}, report)


def stored_form(transform: Transform) -> Transform:
    """The transform with every field on the coarsest grid that holds it within 0.01 mm."""
    if isinstance(transform, CompositeTransform):
        return CompositeTransform([stored_form(part) for part in transform.parts])
    if not isinstance(transform, DisplacementTransform):
        return transform
    grid = storage_grid(transform, transform.grid)
    if grid.shape == transform.grid.shape:
        return transform
    return DisplacementTransform(grid, displacement_on(transform, grid, extend=True))


def _scene(result: Registered, fixed: Volume, moving: Volume, evaluation: Correspondence | None) -> Scene:
    both = evaluation is not None and evaluation.fixed_labels is not None
    return Scene(
        fixed=fixed,
        moving=moving,
        transform=result.transform,
        initial=result.initial,
        fixed_labels=evaluation.fixed_labels if evaluation and both else None,
        moving_labels=evaluation.moving_labels if evaluation and both else None,
    )


def _stored_facts(
    stage: Path,
    transforms: dict[str, Transform],
    result: Registered,
    fixed: Volume,
    moving: Volume,
    check: bool,
) -> dict[str, Any]:
    """Size and precision of the written transforms; raises OutputError if they are not the computed ones."""
    facts: dict[str, Any] = {}
    for kind, exact, grid in (
        ("transform", result.transform, fixed.grid),
        ("inverse", result.inverse, moving.grid),
    ):
        path = stage / NAMES[kind]
        facts[f"{kind}_mb"] = path.stat().st_size / MEGABYTE
        fields = _fields(transforms[kind])
        if fields:
            facts[f"{kind}_grid"] = list(fields[0].grid.shape[::-1])
            facts[f"{kind}_spacing_mm"] = list(fields[0].grid.spacing[::-1])
        facts[f"{kind}_stored_error_mm"] = _stored_error_mm(path, exact, grid) if check else None
    return facts


def _stored_error_mm(path: Path, exact: Transform, grid: Grid) -> float:
    """95th percentile of the distance between the written transform and the computed one."""
    points = grid_points(grid, most=20_000)
    error = np.linalg.norm(read_transform(path).map_points(points) - exact.map_points(points), axis=1)
    high = float(np.percentile(error, 95))
    if not high <= STORED_TOLERANCE_MM:
        raise OutputError(
            f"'{path.name}' was read back and differs from the computed transform by {high:.2g} mm; "
            "nothing was kept. The disk may be faulty; please report this if it happens again."
        )
    return high


def _fields(transform: Transform) -> list[DisplacementTransform]:
    if isinstance(transform, CompositeTransform):
        return [field for part in transform.parts for field in _fields(part)]
    return [transform] if isinstance(transform, DisplacementTransform) else []


def _check_space(stage: Path, transforms: list[Transform], volumes: list[Volume | None]) -> None:
    """Raises OutputError when the disk is too full for the transforms and half-compressed images."""
    needed = sum(storage_bytes(field.grid) for transform in transforms for field in _fields(transform))
    needed += sum(2 * volume.grid.voxel_count for volume in volumes if volume is not None)
    free = shutil.disk_usage(stage).free
    if free < needed:
        raise OutputError(
            f"The results need about {needed / MEGABYTE:.0f} MB, but only {free / MEGABYTE:.0f} MB are free. "
            "Free some space or choose another folder."
        )


@contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """A temporary folder inside `folder`, or beside where it will be; removed whatever happens.

    Nobody else may look into it; what is moved out of it gets the permissions that are usual there.
    """
    home = folder
    while not home.is_dir():
        if home.exists() or home == home.parent:
            raise OutputError(f"'{home}' is not a folder, so nothing can be written to '{folder}'.")
        home = home.parent
    private = home / f".diffeoreg-{secrets.token_hex(4)}"
    stage = private / "results"
    try:
        make_private(private)
        stage.mkdir()
        yield stage
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(
            f"Results could not be written to '{folder}': {reason}. Free some space or choose another folder."
        ) from error
    finally:
        shutil.rmtree(private, ignore_errors=True)


def _move_into_place(stage: Path, folder: Path) -> None:
    """Make the finished files visible, and drop older results this run has none of."""
    with undisturbed():
        if not folder.exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            stage.rename(folder)
            return
        for name in NAMES.values():
            if (stage / name).exists():
                (stage / name).replace(folder / name)
            else:
                (folder / name).unlink(missing_ok=True)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Hold back Ctrl-C and a polite kill for the instant in which files change places."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {name: signal.signal(name, signal.SIG_IGN) for name in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
