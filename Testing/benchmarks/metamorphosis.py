"""Lesions with a known mass effect: how far off the map is under and around them, seen in several ways.

    PYTHONPATH=. python Testing/benchmarks/metamorphosis.py --cases FOLDER/cases/known-3d
        --out build/known.json [--names 1101_1110,...] [--ways none,masked,metamorphosis]
    PYTHONPATH=. python Testing/benchmarks/metamorphosis.py --show build/known.json [more.json ...]

FOLDER is what `lesion_data.py` wrote.  none: `svf` as if both images were healthy; masked: `svf` without the
lesion (cost function masking); metamorphosis.  All take the same marks but for their soft edge, which only
metamorphosis has; masked-wide leaves out the soft edge, too.  A row is written after every run, and rows that
are there are not run again.
Columns: mean length of the error under the lesion, in tissue up to 10 mm from it, and beyond, mm; mean Dice
of the labels outside the lesion, where there are labels; voxels with a negative determinant; CPU seconds.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from DiffeoRegLib.flows.integrate import integrate
from DiffeoRegLib.methods.base import Progress
from DiffeoRegLib.methods.metamorphosis import Metamorphosis, healthy_part
from DiffeoRegLib.methods.svf import StationaryVelocity
from DiffeoRegLib.settings import Settings
from DiffeoRegLib.space.field import change_grid
from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.volumes.pair import Pair
from DiffeoRegLib.volumes.pathology import EDGE_MM, PlacedPathology, softened
from Testing.benchmarks.lesion_data import Case, cases
from Testing.benchmarks.lesion_scores import endpoint_errors, folded_voxels, mean_dice_outside, regions

Row = dict[str, Any]
WAYS = ("none", "masked", "masked-wide", "metamorphosis")


def pair_of(case: Case, edge_mm: float) -> Pair:
    """A case as a prepared pair with its marks."""
    dim = len(case.spacing)
    grid = Grid(tuple(case.fixed.shape[2:]), np.diag([*case.spacing, *[1.0] * (4 - dim)]))
    marks = softened(case.pathology.float(), grid.spacing, edge_mm)
    return Pair(case.fixed, case.moving, grid, np.eye(4), pathology=PlacedPathology(marks, None))


def registered(case: Case, way: str, settings: Settings) -> Tensor:
    """The displacement that a way finds, voxels."""
    pair = pair_of(case, 0.0 if way in ("none", "masked") else EDGE_MM)
    method = Metamorphosis() if way == "metamorphosis" else StationaryVelocity()
    if way == "none":
        pair = dataclasses.replace(pair, pathology=None)
    elif way.startswith("masked"):
        pair = healthy_part(pair)

    def quiet(_: Progress) -> None:
        """Nobody watches."""

    motion = method.refine(method.predict(pair, settings, quiet), pair, settings, quiet)
    flow = integrate(motion.velocity_vox, motion.grid, pair.grid)
    return change_grid(flow.forward_vox, flow.grid, pair.grid)


def measured(case: Case, way: str, settings: Settings) -> Row:
    """One run and its scores."""
    started = time.process_time()
    u_vox = registered(case, way, settings)
    row: Row = {"case": case.name, "way": way, "cpu_seconds": time.process_time() - started}
    row["folded"] = folded_voxels(u_vox)
    if case.truth_vox is not None:
        places = regions(case.pathology, case.organ, case.spacing)
        errors = endpoint_errors(u_vox, case.truth_vox, case.spacing, places)
        row |= {name: error.mean for name, error in errors.items()}
    if case.fixed_labels is not None and case.moving_labels is not None:
        row["dice"] = mean_dice_outside(case.fixed_labels, case.moving_labels, u_vox, case.pathology)
    return row


def table(rows: Sequence[Row]) -> str:
    """Means of every way over the cases that all of them have."""
    ways = [way for way in WAYS if any(row["way"] == way for row in rows)]
    common = set.intersection(*({row["case"] for row in rows if row["way"] == way} for way in ways))
    columns = ("under", "around", "far", "dice", "folded", "cpu_seconds")
    lines = [f"| {len(common)} cases | " + " | ".join(columns) + " |", "|---" * (1 + len(columns)) + "|"]
    for way in ways:
        chosen = [row for row in rows if row["way"] == way and row["case"] in common]
        cells = [[row[column] for row in chosen if column in row] for column in columns]
        text = [f"{np.mean(cell):.3f} +- {np.std(cell):.3f}" if cell else "-" for cell in cells]
        lines.append(f"| {way} | " + " | ".join(text) + " |")
    return "\n".join(lines)


def main() -> int:
    """Run what is missing, print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--names")
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--show", type=Path, nargs="+")
    args = parser.parse_args()
    if args.show:
        for path in args.show:
            print(f"{path.stem}\n{table(json.loads(path.read_text(encoding='utf-8')))}\n")
        return 0
    if args.cases is None or args.out is None:
        parser.error("--cases and --out are needed, or --show")
    rows: list[Row] = json.loads(args.out.read_text(encoding="utf-8")) if args.out.exists() else []
    done = {(row["case"], row["way"]) for row in rows}
    settings = Settings(preset="brain-mr", working_spacing_mm=1.0)
    for case in cases(args.cases):
        if args.names and case.name not in args.names.split(","):
            continue
        for way in args.ways.split(","):
            if (case.name, way) not in done:
                rows.append(measured(case, way, settings))
                args.out.write_text(json.dumps(rows, indent=1), encoding="utf-8")
                print(rows[-1], flush=True)
    print(table(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
