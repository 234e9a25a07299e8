"""The results of a registered group as files: all of them appear, or none."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from DiffeoRegLib.cells import cell
from DiffeoRegLib.errors import OutputError, OutputExistsError, SettingsError
from DiffeoRegLib.groupwise import GroupResult
from DiffeoRegLib.outputs import staging, stored_form, undisturbed
from DiffeoRegLib.report.group_page import group_page
from DiffeoRegLib.report.measure import json_safe
from DiffeoRegLib.space.grid import Matrix
from DiffeoRegLib.volumes.files import write_points, write_volume
from DiffeoRegLib.volumes.resample import warp_labels
from DiffeoRegLib.volumes.series_files import write_series
from DiffeoRegLib.volumes.transform_files import write_transform
from DiffeoRegLib.volumes.volume import Volume

ALIGNED, MEAN, DEVIATIONS = "aligned.nii.gz", "mean.nii.gz", "deviation_mm.nii.gz"
REPORT, PAGE, TABLE = "report.json", "report.html", "transforms.csv"
ONCE = (ALIGNED, MEAN, DEVIATIONS, REPORT, PAGE, TABLE)
NUMBERED = ("common_to_*.*", "*_to_common.*", "labels_of_*_on_*.*", "points_of_*_on_*.*")
FORMATS = ("h5", "nii.gz")


@dataclass(frozen=True, eq=False)
class Carried:
    """What belongs to one image (its number as given) and is carried to all others: labels, or points."""

    number: int
    labels: Volume | None = None
    points_mm: Matrix | None = None


def check_group_folder(folder: Path, *, overwrite: bool = False) -> None:
    """Fail before the work, not after it; raises OutputExistsError and OutputError."""
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"'{folder}' is a file; -o needs a folder.")
    present = _present(folder)
    if present and not overwrite:
        names = ", ".join(path.name for path in present[:3]) + (", ..." if len(present) > 3 else "")
        raise OutputExistsError(
            f"'{folder}' already holds {names}. Choose another folder, or allow overwriting (--overwrite)."
        )
    with staging(folder):
        pass  # a temporary folder could be made and removed: the place is writable


def entry_of(result: GroupResult, number: int) -> int:
    """The entry of an image by its number as given; raises SettingsError for one that is not there."""
    if number not in result.kept:
        raise SettingsError(f"Image {number} is not in the group, whose images are {list(result.kept)}.")
    return result.kept.index(number)


def write_group(
    folder: Path,
    result: GroupResult,
    images: Sequence[Volume],
    *,
    carried: Sequence[Carried] = (),
    form: str = "h5",
    overwrite: bool = False,
    html: bool = True,
) -> tuple[dict[str, Path], dict[str, Any]]:
    """Write every transform and its inverse, aligned series, mean, deviations, what is carried, the report.

    images: as given to `register_group`.  form: of the transforms, see FORMATS.
    Returns the paths by name without suffix, and the report as written.
    Raises OutputExistsError and OutputError; no partial file is left in any case.
    """
    check_group_folder(folder, overwrite=overwrite)
    started = time.perf_counter()
    used = [images[number] for number in result.kept]
    with staging(folder) as stage:
        _write_transforms(stage, result, used, form)
        write_series(result.aligned, stage / ALIGNED)
        write_volume(result.mean, stage / MEAN)
        if result.deviations:
            write_series(result.deviations, stage / DEVIATIONS)
        for one in carried:
            _write_carried(stage, result, used, one)
        report = dict(result.report)
        report["seconds"] = {**report["seconds"], "writing": time.perf_counter() - started}
        report = dict(json_safe(report))
        text = json.dumps(report, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
        (stage / REPORT).write_text(text, encoding="utf-8")
        if html:
            page = group_page(report, used, result.aligned, result.deviations)
            (stage / PAGE).write_text(page, encoding="utf-8")
        names = sorted(path.name for path in stage.iterdir())
        _move_into_place(stage, folder, names)
    return {name.split(".")[0]: folder / name for name in names}, report


def _write_transforms(stage: Path, result: GroupResult, images: Sequence[Volume], form: str) -> None:
    """Both ways of every image, and a table of what is what."""
    if form not in FORMATS:
        raise OutputError(f"Transforms of a group are written as {', '.join(FORMATS)}, not as '{form}'.")
    rows = [("number", "name", "common_to_image", "image_to_common")]
    for number, image, there, back in zip(
        result.kept, images, result.transforms, result.inverses, strict=True
    ):
        names = (f"common_to_{number:03d}.{form}", f"{number:03d}_to_common.{form}")
        for name, transform, grid in zip(names, (there, back), (result.view, image.grid), strict=True):
            whole = stored_form(transform) if form == "h5" else transform
            write_transform(whole, stage / name, displacement_grid=grid)
        rows.append((str(number), cell(image.name), *names))
    with (stage / TABLE).open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)


def _write_carried(stage: Path, result: GroupResult, images: Sequence[Volume], one: Carried) -> None:
    """Labels on the grid of every other image; points where they are in every other image."""
    source = entry_of(result, one.number)
    for target, (number, image) in enumerate(zip(result.kept, images, strict=True)):
        if target == source:
            continue
        if one.labels is not None:
            moved = warp_labels(one.labels, result.between(target, source), image.grid)
            write_volume(moved, stage / f"labels_of_{one.number:03d}_on_{number:03d}.nii.gz")
        if one.points_mm is not None:
            points = result.between(source, target).map_points(one.points_mm)
            write_points(points, stage / f"points_of_{one.number:03d}_on_{number:03d}.csv")


def _present(folder: Path) -> list[Path]:
    """Results of an earlier run."""
    if not folder.is_dir():
        return []
    found = [folder / name for name in ONCE if (folder / name).exists()]
    return found + sorted(path for pattern in NUMBERED for path in folder.glob(pattern))


def _move_into_place(stage: Path, folder: Path, names: Sequence[str]) -> None:
    """Make the finished files visible, and drop older results this run has none of."""
    with undisturbed():
        if not folder.exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            stage.rename(folder)
            return
        for name in names:
            (stage / name).replace(folder / name)
        for path in _present(folder):
            if path.name not in names:
                path.unlink()
