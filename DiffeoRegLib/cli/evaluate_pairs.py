"""`diffeoreg evaluate --pairs`: a method over a table of pairs, measured as a user's own runs would be."""

from __future__ import annotations

import argparse
import csv
import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

from DiffeoRegLib import pipeline
from DiffeoRegLib.catalog import card
from DiffeoRegLib.cells import cell
from DiffeoRegLib.cli.console import Console, table
from DiffeoRegLib.cli.inputs import settings_from
from DiffeoRegLib.device import set_threads
from DiffeoRegLib.errors import (
    Cancelled,
    DeviceError,
    DiffeoRegError,
    InputError,
    LicenceError,
    OutputError,
    OutputExistsError,
    SettingsError,
    WeightsError,
)
from DiffeoRegLib.methods.base import Progress
from DiffeoRegLib.report.measure import json_safe, versions
from DiffeoRegLib.report.memory import reset_peak_memory
from DiffeoRegLib.report.pair_numbers import NUMBERS, Numbers, numbers_of, spread
from DiffeoRegLib.report.scores import cycle_scores
from DiffeoRegLib.settings import Settings
from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.space.transform import Transform
from DiffeoRegLib.training.sources import collection_from
from DiffeoRegLib.training.subjects import Pairing, Subject
from DiffeoRegLib.volumes.files import read_points, read_volume
from DiffeoRegLib.volumes.pair import Correspondence, Masks
from DiffeoRegLib.volumes.pathology import Pathology
from DiffeoRegLib.volumes.volume import Volume
from DiffeoRegLib.whole_file import replace_file

ROWS, SUMMARY = "pairs.csv", "summary.json"
HOPELESS = (SettingsError, LicenceError, WeightsError, DeviceError, OutputError, Cancelled)
"""What would fail for every pair alike, or must not be taken for a failed pair."""


@dataclass(frozen=True)
class Row:
    """One pair: what was measured, Dice per label, or the sentence that says why there is nothing."""

    fixed: str
    moving: str
    numbers: Numbers = field(default_factory=dict)
    labels: Numbers = field(default_factory=dict)
    problem: str = ""


@dataclass(eq=False)
class Kept:
    """Transforms of measured pairs and grids of their images, by name."""

    transforms: dict[tuple[str, str], Transform] = field(default_factory=dict)
    grids: dict[str, Grid] = field(default_factory=dict)

    def add(self, names: tuple[str, str], result: pipeline.Result, grids: tuple[Grid, Grid]) -> None:
        """A pair's transform, and its inverse unless that way was registered itself."""
        self.transforms[names] = result.transform
        self.transforms.setdefault((names[1], names[0]), result.inverse)
        self.grids.update(zip(names, grids, strict=True))

    def cycles(self) -> list[dict[str, Any]]:
        """How far points of an image are from where they started after a way round, for every triangle."""
        found = []
        for names in combinations(sorted(self.grids), 3):
            ways = [(names[i], names[(i + 1) % 3]) for i in range(3)]
            if all(way in self.transforms for way in ways):
                parts = [self.transforms[way] for way in ways]
                scores = cycle_scores(parts, [self.grids[name] for name in names])
                found.append({"images": list(names), **scores})
        return found


def evaluate_pairs(arguments: argparse.Namespace, console: Console) -> None:
    """Register and measure every pair; raises InputError at the end when some of them failed."""
    settings, initial = settings_from(arguments)
    if initial is not None:
        raise SettingsError("With --pairs, --init takes a kind of alignment: one file cannot fit all pairs.")
    if card(settings.method).needs_region_labels:
        raise SettingsError(f"A table of pairs names no regions, which '{settings.method}' needs.")
    if arguments.output is None:
        raise SettingsError("--pairs needs a folder for its results: -o OUT.")
    folder = Path(arguments.output)
    _check_folder(folder, overwrite=arguments.overwrite)
    collection = collection_from(arguments.pairs)
    pairs = (*collection.pairs, *collection.validation_pairs)
    if not pairs:
        raise InputError(f"'{arguments.pairs}' names no pairs: it needs the columns fixed and moving.")
    ill = any(one.pathology is not None for pair in pairs for one in pair)
    if ill and not card(settings.method).needs_pathology_mask:
        raise InputError(
            f"'{arguments.pairs}' has the column fixed_pathology, of which '{settings.method}' makes no use."
        )
    set_threads(settings.threads)
    kept = Kept() if arguments.cycles else None
    rows: list[Row] = []
    for number, pair in enumerate(pairs):
        rows.append(_row(pair, settings, kept, console, number, len(pairs)))
        if rows[-1].problem:
            console.log(f"{rows[-1].fixed}, {rows[-1].moving} failed: {rows[-1].problem}")
        replace_file(folder / ROWS, as_csv(rows).encode())
    cycles = [] if kept is None else kept.cycles()
    summary = json_safe(summarise(rows, cycles, settings))
    replace_file(folder / SUMMARY, (json.dumps(summary, indent=1, ensure_ascii=False) + "\n").encode())
    files = {name: str(folder / name) for name in (ROWS, SUMMARY)}
    console.result(_text(summary, folder), {"command": "evaluate", "files": files, "summary": summary})
    failed = [row for row in rows if row.problem]
    if failed:
        first = failed[0]
        raise InputError(
            f"{len(failed)} of {len(rows)} pairs failed, first {first.fixed} with {first.moving}: "
            f"{first.problem}"
        )


def _check_folder(folder: Path, *, overwrite: bool) -> None:
    if (folder / ROWS).exists() and not overwrite:
        raise OutputExistsError(
            f"'{folder / ROWS}' exists already. Choose another folder, or allow overwriting (--overwrite)."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"The folder '{folder}' cannot be made: {error.strerror or error}.") from error


def _row(
    pair: Pairing, settings: Settings, kept: Kept | None, console: Console, number: int, count: int
) -> Row:
    """One pair, measured or with its problem."""
    names = pair[0].name, pair[1].name

    def progress(step: Progress) -> None:
        console.progress(f"pair {number + 1} of {count}", (number + step.fraction) / count, step.message)

    progress(Progress("reading", 0.0, f"{names[0]}, {names[1]}"))
    try:
        return _measured(pair, settings, kept, progress)
    except HOPELESS:
        raise
    except (DiffeoRegError, MemoryError) as error:
        return Row(*names, problem=" ".join(str(error).split()) or type(error).__name__)


def _measured(pair: Pairing, settings: Settings, kept: Kept | None, progress: Any) -> Row:
    fixed, moving = (read_volume(one.image, name=one.name) for one in pair)
    evaluation, masks = _evaluation(pair, (fixed, moving)), _masks(pair)
    reset_peak_memory()
    result = pipeline.register(
        fixed, moving, settings, evaluation=evaluation, masks=masks, pathology=_pathology(pair),
        progress=progress,
    )  # fmt: skip
    names = pair[0].name, pair[1].name
    if kept is not None:
        kept.add(names, result, (fixed.grid, moving.grid))
    numbers, labels = numbers_of(result.report)
    return Row(*names, numbers=numbers, labels=labels)


def _evaluation(pair: Pairing, images: tuple[Volume, Volume]) -> Correspondence | None:
    labels: list[Any] = [None, None]
    points: list[Any] = [None, None]
    if all(one.labels is not None for one in pair):
        labels = [read_volume(one.labels, labels=True) for one in pair if one.labels is not None]
    if all(one.points is not None for one in pair):
        points = [
            read_points(one.points, grid=image.grid)
            for one, image in zip(pair, images, strict=True)
            if one.points is not None
        ]
        if len(points[0]) != len(points[1]):
            raise InputError(
                f"The landmark files of {pair[0].name} ({len(points[0])} points) and {pair[1].name} "
                f"({len(points[1])}) do not list the same points."
            )
    if labels[0] is None and points[0] is None:
        return None
    return Correspondence(*labels, *points)


def _masks(pair: Pairing) -> Masks | None:
    def read(one: Subject) -> Volume | None:
        return None if one.mask is None else read_volume(one.mask, labels=True)

    fixed, moving = map(read, pair)
    return None if fixed is None and moving is None else Masks(fixed=fixed, moving=moving)


def _pathology(pair: Pairing) -> Pathology | None:
    def read(one: Subject) -> Volume | None:
        return None if one.pathology is None else read_volume(one.pathology, labels=True)

    fixed, moving = map(read, pair)
    return None if fixed is None and moving is None else Pathology(fixed, moving)


def summarise(rows: Sequence[Row], cycles: Sequence[Mapping[str, Any]], settings: Settings) -> dict[str, Any]:
    """Means and spread over the pairs that worked, and what was run."""
    done = [row for row in rows if not row.problem]
    names = _label_names(done)
    return {
        "pairs": len(rows),
        "failed": [
            {"fixed": row.fixed, "moving": row.moving, "problem": row.problem} for row in rows if row.problem
        ],
        "numbers": {name: spread(row.numbers.get(name) for row in done) for name in NUMBERS},
        "dice_per_label": {name: spread(row.labels.get(name) for row in done) for name in names},
        "cycle_mm": {**spread(one["mean"] for one in cycles), "triangles": list(cycles)},
        "settings": dataclasses.asdict(settings),
        "versions": versions(),
    }


def as_csv(rows: Sequence[Row]) -> str:
    """The table of pairs; what was not measured stays empty."""
    labels = _label_names(rows)
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["fixed", "moving", *NUMBERS, *(f"dice_{name}" for name in labels), "problem"])
    for row in rows:
        values = [row.numbers.get(name) for name in NUMBERS] + [row.labels.get(name) for name in labels]
        cells = ["" if value is None else f"{value:.6g}" for value in values]
        writer.writerow([cell(row.fixed), cell(row.moving), *cells, cell(row.problem)])
    return text.getvalue()


def _label_names(rows: Sequence[Row]) -> list[str]:
    return sorted({name for row in rows for name in row.labels}, key=int)


def _text(summary: Mapping[str, Any], folder: Path) -> str:
    """Means and spread for people."""
    lines = []
    found = {NUMBERS[name]: values for name, values in summary["numbers"].items()}
    for name, values in {**found, "cycle error (mm)": summary["cycle_mm"]}.items():
        if values["count"]:
            cells = [values[key] for key in ("mean", "sd", "min", "max")]
            lines.append([name, *("-" if cell is None else f"{cell:.4g}" for cell in cells)])
    worked = summary["pairs"] - len(summary["failed"])
    parts = [f"{worked} of {summary['pairs']} pairs, method {summary['settings']['method']}"]
    if lines:
        parts.append(table(["", "mean", "sd", "least", "greatest"], lines))
    return "\n\n".join([*parts, f"Written to {folder}: {ROWS}, {SUMMARY}"])
