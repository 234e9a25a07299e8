"""`diffeoreg template`: read, build, write everything or nothing."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from DiffeoRegLib.catalog import card
from DiffeoRegLib.cli.console import Console, table
from DiffeoRegLib.cli.group import read_images
from DiffeoRegLib.device import set_threads
from DiffeoRegLib.errors import OutputError, OutputExistsError
from DiffeoRegLib.methods.base import PLAN_PHASE, Progress
from DiffeoRegLib.networks.weights import check_weights
from DiffeoRegLib.outputs import staging, stored_form, undisturbed
from DiffeoRegLib.report.measure import json_safe
from DiffeoRegLib.report.pictures import read
from DiffeoRegLib.report.planes import planes
from DiffeoRegLib.report.png import grey, png_bytes
from DiffeoRegLib.settings import Settings
from DiffeoRegLib.template import TemplateResult, build_template
from DiffeoRegLib.volumes.files import read_volume, write_volume
from DiffeoRegLib.volumes.transform_files import write_transform
from DiffeoRegLib.volumes.volume import Volume

VOLUMES = {"template": "template.nii.gz", "mean": "mean.nii.gz", "deviation": "deviation.nii.gz"}
LABELS, PICTURE, REPORT = "labels.nii.gz", "template.png", "report.json"
NUMBERED = ("template_to_*.h5", "*_to_template.h5")
COLUMNS = {"deviation": "deviation", "gradient_per_mm": "gradient", "dice": "Dice", "change": "change"}
SAME_NAME = (
    "method", "weights", "preset", "effort", "similarity", "init", "iterations", "regularity",
    "working_spacing_mm", "interpolation", "device", "threads", "memory_limit_gb",
)  # fmt: skip
WRITING_STARTS = 0.97


def template(arguments: argparse.Namespace, console: Console) -> None:
    """The whole command."""
    settings = Settings(
        levels_mm=arguments.levels, accepted_licences=tuple(arguments.accept_licence),
        **{name: getattr(arguments, name) for name in SAME_NAME},
    )  # fmt: skip
    check_weights(card(settings.method), settings)
    folder = Path(arguments.output)
    check_folder(folder, overwrite=arguments.overwrite)
    set_threads(settings.threads)
    console.progress("reading", 0.0, "reading the images")
    images = read_images(arguments.images)
    paths = arguments.labels
    labels = None if paths is None else [read_volume(path, labels=True) for path in paths]

    planned = list[str]()

    def progress(step: Progress) -> None:
        if step.phase == PLAN_PHASE:
            if not planned:  # that of all images together; of the pairs there are many
                console.log(step.message)
            planned.append(step.message)
        else:
            console.progress(step.phase, WRITING_STARTS * step.fraction, step.message)

    result = build_template(
        images, settings, labels=labels, rounds=arguments.rounds, sharpening=arguments.sharpening,
        leave_out=arguments.leave_out, progress=progress,
    )  # fmt: skip
    for note in result.report["notes"]:
        if not any(said.endswith(note) for said in planned[:1]):
            console.log(note)
    console.progress("writing", WRITING_STARTS, "writing the results")
    names = write_template(folder, result, images, overwrite=arguments.overwrite)
    console.progress("writing", 1.0, "done")
    report = json_safe(result.report)
    text = f"{_text(report)}\n\nWritten to {folder}: {', '.join(VOLUMES.values())}, {PICTURE} and transforms"
    files = {name.split(".")[0]: str(folder / name) for name in names}
    console.result(text, {"command": "template", "files": files, "report": report})


def check_folder(folder: Path, *, overwrite: bool) -> None:
    """Fail before the work, not after it; raises OutputExistsError and OutputError."""
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"'{folder}' is a file; -o needs a folder.")
    present = _present(folder)
    if present and not overwrite:
        raise OutputExistsError(
            f"'{folder}' already holds {present[0].name}. Choose another folder, or allow overwriting "
            "(--overwrite)."
        )
    with staging(folder):
        pass  # a temporary folder could be made and removed: the place is writable


def write_template(
    folder: Path, result: TemplateResult, images: Sequence[Volume], *, overwrite: bool = False
) -> list[str]:
    """Write volumes, both ways of every image, picture and report; all or nothing.

    images: as given to `build_template`.  Returns the names of the files.
    Raises OutputExistsError and OutputError; no partial file is left in any case.
    """
    check_folder(folder, overwrite=overwrite)
    view = result.template.grid
    with staging(folder) as stage:
        for kind, name in VOLUMES.items():
            write_volume(getattr(result, kind), stage / name)
        if result.labels is not None:
            write_volume(result.labels, stage / LABELS)
        for number, there, back in zip(result.kept, result.transforms, result.inverses, strict=True):
            write_transform(
                stored_form(there), stage / f"template_to_{number:03d}.h5", displacement_grid=view
            )
            grid = images[number].grid
            write_transform(stored_form(back), stage / f"{number:03d}_to_template.h5", displacement_grid=grid)
        (stage / PICTURE).write_bytes(picture((result.before, result.mean, result.template)))
        text = json.dumps(json_safe(result.report), indent=1, allow_nan=False, ensure_ascii=False) + "\n"
        (stage / REPORT).write_text(text, encoding="utf-8")
        names = sorted(path.name for path in stage.iterdir())
        with undisturbed():
            folder.mkdir(parents=True, exist_ok=True)
            for old in _present(folder):
                old.unlink()
            for name in names:
                (stage / name).replace(folder / name)
    return names


def picture(volumes: Sequence[Volume]) -> bytes:
    """A row of planes through the middle for each volume of intensities 0..1, as PNG."""
    cuts = planes(volumes[0].grid, volumes[0].grid.center_mm)
    height = max(len(cut.points_mm) for cut in cuts)

    def row(volume: Volume) -> NDArray[np.uint8]:
        shown = [grey(read(volume, cut.points_mm)) for cut in cuts]
        return np.hstack([np.pad(one, ((0, height - len(one)), (0, 0))) for one in shown])

    return png_bytes(np.vstack([row(volume) for volume in volumes]))


def _present(folder: Path) -> list[Path]:
    """Results of an earlier run."""
    known = [folder / name for name in (*VOLUMES.values(), LABELS, PICTURE, REPORT)]
    return [path for path in known if path.exists()] + sorted(
        path for pattern in NUMBERED for path in folder.glob(pattern)
    )


def _text(report: Mapping[str, Any]) -> str:
    """The stages for people."""
    shown = [name for name in COLUMNS if any(stage[name] is not None for stage in report["stages"])]
    lines = [
        [stage["stage"], *("-" if stage[name] is None else f"{stage[name]:.4f}" for name in shown)]
        for stage in report["stages"]
    ]
    found = table(["", *(COLUMNS[name] for name in shown)], lines)
    return f"{found}\n\nMean of all maps: the identity within {report['off_centre_mm']:.2g} mm"
