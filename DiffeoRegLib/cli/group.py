"""`diffeoreg group`: read, register all images at once, write everything or nothing."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from DiffeoRegLib import groupwise
from DiffeoRegLib.catalog import card
from DiffeoRegLib.cli.console import Console
from DiffeoRegLib.cli.group_arguments import SIMILARITIES
from DiffeoRegLib.device import set_threads
from DiffeoRegLib.errors import InputError, SettingsError
from DiffeoRegLib.group_outputs import Carried, check_group_folder, write_group
from DiffeoRegLib.methods.base import PLAN_PHASE, Progress
from DiffeoRegLib.networks.weights import check_weights
from DiffeoRegLib.report.group import group_summary
from DiffeoRegLib.settings import Settings
from DiffeoRegLib.space.grid import Matrix
from DiffeoRegLib.volumes.files import read_points, read_volume
from DiffeoRegLib.volumes.series_files import read_series
from DiffeoRegLib.volumes.volume import Volume

READING_ENDS, WRITING_STARTS = 0.02, 0.95  # shares of the whole progress


def group(arguments: argparse.Namespace, console: Console) -> None:
    """The whole command."""
    settings = group_settings(arguments)
    folder = Path(arguments.output)
    check_group_folder(folder, overwrite=arguments.overwrite)
    set_threads(settings.threads)
    started = time.perf_counter()
    console.progress("reading", 0.0, "reading the images")
    images = read_images(arguments.images)
    masks = _as_many(arguments.masks, images, "--masks")
    landmarks = read_landmarks(arguments.landmarks, images)
    carried = read_carried(arguments, images)
    reading_seconds = time.perf_counter() - started

    said = list[str]()

    def progress(step: Progress) -> None:
        fraction = READING_ENDS + (WRITING_STARTS - READING_ENDS) * step.fraction
        if step.phase == PLAN_PHASE:
            said.append(step.message)
            console.log(step.message)
        else:
            console.progress(step.phase, fraction, step.message)

    result = groupwise.register_group(
        images, settings, fixed_index=arguments.fixed_index,
        masks=None if masks is None else [read_volume(file, labels=True) for file in masks],
        landmarks=landmarks, leave_out=arguments.leave_out, with_uncertainty=not arguments.no_uncertainty,
        progress=progress,
    )  # fmt: skip
    for note in result.report["notes"]:
        if note not in said:
            console.log(note)
    console.progress("writing", WRITING_STARTS, "writing the results")
    result.report["seconds"] = {"reading": reading_seconds, **result.report["seconds"]}
    written, report = write_group(
        folder, result, images, carried=carried, form=arguments.format, overwrite=arguments.overwrite,
        html=not arguments.no_html,
    )  # fmt: skip
    console.progress("writing", 1.0, "done")
    files = {name: str(path) for name, path in written.items()}
    text = f"{group_summary(report)}\n\nWritten to {folder}: {len(files)} files, see transforms.csv"
    console.result(text, {"command": "group", "files": files, "report": report})


def group_settings(arguments: argparse.Namespace) -> Settings:
    """Settings of the flags; raises SettingsError and UnknownNameError before anything is read."""
    names = (
        "method", "weights", "preset", "effort", "init", "iterations", "regularity", "working_spacing_mm",
        "interpolation", "seed", "device", "threads", "memory_limit_gb",
    )  # fmt: skip
    chosen = None if arguments.similarity is None else SIMILARITIES[arguments.similarity]
    settings = Settings(
        similarity=chosen, levels_mm=arguments.levels, accepted_licences=tuple(arguments.accept_licence),
        **{name: getattr(arguments, name) for name in names},
    )  # fmt: skip
    check_weights(card(settings.method), settings)
    return settings


def read_images(paths: list[str]) -> list[Volume]:
    """A volume per file, or those of one series."""
    if len(paths) == 1:
        return read_series(paths[0])
    return [read_volume(path) for path in paths]


def read_landmarks(paths: list[str] | None, images: list[Volume]) -> list[Matrix] | None:
    """Points (n, 3), RAS mm, of every image; raises InputError for files that do not match."""
    if (files := _as_many(paths, images, "--landmarks")) is None:
        return None
    points = [read_points(file, grid=image.grid) for file, image in zip(files, images, strict=True)]
    for file, one in zip(files, points, strict=True):
        if len(one) != len(points[0]) or len(one) == 0:
            raise InputError(
                f"The landmark files must list the same points: '{files[0]}' has {len(points[0])}, "
                f"'{file}' has {len(one)}."
            )
    return points


def read_carried(arguments: argparse.Namespace, images: list[Volume]) -> list[Carried]:
    """What --labels-of and --points-of name; raises SettingsError for an image that is not there."""
    found = []
    for number, path in [*arguments.labels_of, *arguments.points_of]:
        if number >= len(images):
            raise SettingsError(
                f"'{number}:{path}' names image {number}; the {len(images)} images are numbered from 0."
            )
    for number, path in arguments.labels_of:
        labels = read_volume(path, labels=True)
        if labels.grid.dim != images[number].grid.dim:
            raise InputError(f"The labels '{labels.name}' are {labels.grid.dim}D, image {number} is not.")
        found.append(Carried(number, labels=labels))
    found += [
        Carried(number, points_mm=read_points(path, grid=images[number].grid))
        for number, path in arguments.points_of
    ]
    return found


def _as_many(files: list[str] | None, images: list[Volume], flag: str) -> list[str] | None:
    if files is not None and len(files) != len(images):
        raise SettingsError(f"{flag} needs a file for each of the {len(images)} images, not {len(files)}.")
    return files
