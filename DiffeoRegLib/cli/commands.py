"""What every command does, from parsed flags to files."""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

from DiffeoRegLib import catalog, pipeline
from DiffeoRegLib.cli.batch import batch
from DiffeoRegLib.cli.catalogue import method_lines
from DiffeoRegLib.cli.console import Console
from DiffeoRegLib.cli.evaluate import evaluate
from DiffeoRegLib.cli.evaluate_pairs import evaluate_pairs
from DiffeoRegLib.cli.group import group
from DiffeoRegLib.cli.import_weights import import_weights
from DiffeoRegLib.cli.inputs import (
    check_flags,
    check_target,
    guidance_and_evaluation,
    read_masks,
    read_pathology,
    read_regions,
    read_segmentation,
    settings_from,
)
from DiffeoRegLib.cli.shoot import shoot
from DiffeoRegLib.cli.template import template
from DiffeoRegLib.cli.train import train
from DiffeoRegLib.device import choose_device, memory_bytes, set_threads
from DiffeoRegLib.errors import (
    FileFormatError,
    OutputError,
    SettingsError,
    UnknownNameError,
)
from DiffeoRegLib.geodesic_files import require_safetensors, saved_geodesics
from DiffeoRegLib.main_memory import main_memory_bytes
from DiffeoRegLib.methods.base import Progress
from DiffeoRegLib.methods.memory import require_memory
from DiffeoRegLib.outputs import check_output_folder, write_results
from DiffeoRegLib.report.text import summary
from DiffeoRegLib.settings import INTERPOLATIONS, PRESETS, Settings
from DiffeoRegLib.space.sample import Mode
from DiffeoRegLib.space.transform import Transform
from DiffeoRegLib.velocity_files import saved_velocities
from DiffeoRegLib.volumes.files import read_points, read_volume, write_points, write_volume
from DiffeoRegLib.volumes.resample import warp_labels, warp_volume
from DiffeoRegLib.volumes.sizes import voxels_in
from DiffeoRegLib.volumes.transform_files import read_transform
from DiffeoRegLib.volumes.volume import Volume

POINT_FILES = (".fcsv", ".csv", ".tsv", ".txt", ".json", ".pts", ".vtk")
READING_ENDS, WRITING_STARTS = 0.02, 0.95  # shares of the whole progress
NOT_KEPT = "The {} not written: the run started from a non-linear transform, which the file does not hold."
MODES: dict[str, Mode] = {"linear": "linear", "cubic": "cubic"}


def register(arguments: argparse.Namespace, console: Console) -> None:
    """`diffeoreg register`: read, register, write everything or nothing."""
    settings, initial_file = settings_from(arguments)
    check_flags(arguments)
    if catalog.card(settings.method).geodesic or arguments.keep_path:
        require_safetensors(OutputError)
    folder = Path(arguments.output)
    check_output_folder(folder, overwrite=arguments.overwrite)
    set_threads(settings.threads)
    started = time.perf_counter()
    console.progress("reading", 0.0, "reading the images")
    _require_memory(arguments, settings)
    fixed, moving = read_volume(arguments.fixed), read_volume(arguments.moving)
    masks, segmentation = read_masks(arguments), read_segmentation(arguments, moving)
    guidance, evaluation = guidance_and_evaluation(arguments, fixed.grid, moving.grid)
    regions, pathology = read_regions(arguments), read_pathology(arguments)
    initial = read_transform(initial_file) if initial_file else None
    reading_seconds = time.perf_counter() - started
    planned = list[str]()

    def progress(step: Progress) -> None:
        fraction = READING_ENDS + (WRITING_STARTS - READING_ENDS) * step.fraction
        if step.phase == pipeline.PLAN_PHASE:
            planned.append(step.message)
            console.log(step.message)
        else:
            console.progress(step.phase, fraction, step.message)

    result = pipeline.register(
        fixed, moving, settings,
        initial=initial, masks=masks, guidance=guidance, evaluation=evaluation, regions=regions,
        pathology=pathology, progress=progress,
    )  # fmt: skip
    geodesic = saved_geodesics(result, fixed.grid, settings.taper_mm)
    if geodesic is None and result.motion is not None and result.motion.geodesics:
        result.report["notes"] = [*result.report.get("notes", []), NOT_KEPT.format("geodesic is")]
    velocities = None
    if arguments.keep_path:
        velocities = saved_velocities(result, fixed.grid, settings.taper_mm)
        if velocities is None:
            result.report["notes"] = [*result.report.get("notes", []), NOT_KEPT.format("velocities are")]
    for note in result.report.get("notes", []):
        if not any(note in said for said in planned):
            console.log(note)
    console.progress("writing", WRITING_STARTS, "writing the results")
    result.report["seconds"] = {"reading": reading_seconds, **result.report.get("seconds", {})}
    moved_labels = None
    if segmentation is not None:
        moved_labels = warp_labels(segmentation, result.transform, fixed.grid, smooth=arguments.smooth_labels)
    written = write_results(
        folder, result, fixed=fixed, moving=moving, moved_labels=moved_labels, evaluation=evaluation,
        geodesic=geodesic, velocities=velocities, overwrite=arguments.overwrite,
        html=not arguments.no_html, check=not arguments.no_check,
    )  # fmt: skip
    console.progress("writing", 1.0, "done")
    files = {name: str(path) for name, path in written.files.items()}
    names = ", ".join(path.name for path in written.files.values())
    text = f"{summary(written.report)}\n\nWritten to {folder}: {names}"
    console.result(text, {"command": "register", "files": files, "report": written.report})


def _require_memory(arguments: argparse.Namespace, settings: Settings) -> None:
    """Refuses a pair that is too large before it is read; raises MemoryLimitError."""
    voxels = voxels_in(arguments.fixed), voxels_in(arguments.moving)
    free, asked = main_memory_bytes(), settings.memory_limit_gb
    limit = None if free is None else int(pipeline.MEMORY_SHARE * free)
    if asked is not None:
        limit = int(asked * 1e9)
    if voxels[0] is not None and voxels[1] is not None:
        require_memory(voxels[0], voxels[1], limit)


def apply(arguments: argparse.Namespace, console: Console) -> None:
    """`diffeoreg apply`: one volume, label map or point list through a transform."""
    target = Path(arguments.output)
    check_target(target, overwrite=arguments.overwrite)
    if arguments.interpolation not in MODES:
        raise UnknownNameError("interpolation", arguments.interpolation, INTERPOLATIONS)
    if not Path(arguments.moving).exists():
        raise FileFormatError(f"There is no file '{arguments.moving}'. Check the name and the folder.")
    if arguments.moving.lower().endswith(POINT_FILES):
        what = f"{_apply_to_points(arguments, target)} points"
    else:
        if arguments.like is None:
            raise SettingsError("A volume needs --like FIXED, whose grid the result gets.")
        transform = read_transform(arguments.transform)
        moved = _apply_to_volume(arguments, transform.inverse() if arguments.inverse else transform)
        write_volume(moved, target, overwrite=arguments.overwrite)
        what = " x ".join(str(n) for n in moved.grid.shape[::-1]) + " voxels"
    console.result(f"Written to {target}: {what}", {"command": "apply", "files": {"output": str(target)}})


def _apply_to_points(arguments: argparse.Namespace, target: Path) -> int:
    """Points go the other way than images: the transform resamples, its inverse carries moving points."""
    transform = read_transform(arguments.transform)
    carry = transform if arguments.inverse else transform.inverse()
    points = carry.map_points(read_points(arguments.moving))
    write_points(points, target, overwrite=arguments.overwrite)
    return len(points)


def _apply_to_volume(arguments: argparse.Namespace, transform: Transform) -> Volume:
    labels = arguments.labels or arguments.smooth_labels
    moving, like = read_volume(arguments.moving, labels=labels), read_volume(arguments.like)
    if labels:
        return warp_labels(moving, transform, like.grid, smooth=arguments.smooth_labels)
    fill = pipeline.background_of(moving)  # what `register` puts there; 0 would be grey in a CT
    return warp_volume(moving, transform, like.grid, mode=MODES[arguments.interpolation], fill=fill)


def methods(arguments: argparse.Namespace, console: Console) -> None:
    """`diffeoreg methods`: the catalogue and the presets."""
    lines = method_lines(catalog.CARDS.values())
    lines += ["", "presets (--preset)"]
    lines += [
        f"  {name:12}  {preset.use} Similarity: {preset.similarity}." for name, preset in PRESETS.items()
    ]
    data = {
        "methods": [dataclasses.asdict(card) for card in catalog.CARDS.values()],
        "presets": [
            {"name": name, "title": preset.title, "use": preset.use, "similarity": preset.similarity}
            for name, preset in PRESETS.items()
        ],
    }
    console.result("\n".join(lines), {"command": "methods", **data})


def device(arguments: argparse.Namespace, console: Console) -> None:
    """`diffeoreg device`: what would be computed on, and why."""
    choice = choose_device(arguments.device)
    free = memory_bytes(choice.device)
    gigabytes = None if free is None else round(free / 2**30, 1)
    threads = set_threads(None)
    lines = [f"device   {choice.device} ({choice.name})", f"why      {choice.why}"]
    lines += [f"         {note}" for note in choice.notes]
    lines += [
        f"memory   {'unknown' if gigabytes is None else f'{gigabytes} GiB free'}",
        f"threads  {threads}",
    ]
    found = {
        "device": str(choice.device),
        "name": choice.name,
        "why": choice.why,
        "notes": list(choice.notes),
    }
    data = {"command": "device", **found, "memory_free_gib": gigabytes, "threads": threads}
    console.result("\n".join(lines), data)


COMMANDS: dict[str, Callable[[argparse.Namespace, Console], None]] = {
    "register": register,
    "batch": batch,
    "group": group,
    "template": template,
    "apply": apply,
    "shoot": shoot,
    "evaluate": lambda flags, console: (evaluate_pairs if flags.pairs else evaluate)(flags, console),
    "train": train,
    "import-weights": import_weights,
    "methods": methods,
    "device": device,
}
