"""The table of MetaRegNet's paper, rebuilt on public images: a healthy slice is brought onto a patient's.

    diffeoreg train metaregnet-brain-2d --data DATA/train.csv --set data.options.reference=DATA/grid.nii.gz \\
        -o RUNS/metaregnet
    diffeoreg train metaregnet-brain-2d ... --set 'network.sizes={dim: 2}' \\
        --set 'losses=[{name: mse}, {name: appearance}, {name: folds, weight: 0.001}]' -o RUNS/published
    diffeoreg train voxelmorph-cfm-brain-2d ... [--set losses.1.weight=0.0015] -o RUNS/vm-cfm
    diffeoreg train voxelmorph-cfm-brain-2d ... --set leave_out_pathology=false -o RUNS/vm-diff
    diffeoreg train voxelmorph-brain-2d ... -o RUNS/voxelmorph
    PYTHONPATH=. python Testing/benchmarks/lesion_networks.py --cases DATA/cases --runs RUNS [--out FILE.json]
        [--metamorphosis] [--wrong]

DATA: see lesion_data.py.  Every folder in RUNS that holds last.safetensors is a row of every table, `none`
leaves the healthy slice where it is; the weights are those of the last step, so that nothing was chosen by
these cases.  --metamorphosis adds a row of the optimisation of that name, whose change of appearance is the
one that its results show.  --wrong makes other tables: what the ways that need marks do where these are
wrong; see `wrong_marks`.  Scores take the right ones.
Means and standard deviations over the cases of a set.
SSD: mean squared difference times 10, as in the paper; total: the whole slice, with the change of appearance
where there is one; healthy: outside the lesion.  folded voxels: with a determinant of central
differences that is not above 0, the paper's number; cells: with a corner determinant that is not.
Dice: outside the lesion.  EPE: distance to the true map in mm, under, around (10 mm) and far from the lesion.
ms: seconds of the processor for the map, one thread, times 1000; of networks the median of some runs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from DiffeoRegLib.losses.source import smooth_source
from DiffeoRegLib.methods.appearance import CHANGE_RHO_MM2
from DiffeoRegLib.networks.metaregnet import MetaRegNet
from DiffeoRegLib.networks.weights import read_network
from DiffeoRegLib.settings import Settings
from DiffeoRegLib.space.sample import warp
from DiffeoRegLib.training.appearance_terms import change_of
from DiffeoRegLib.training.run_folder import LAST
from Testing.benchmarks.lesion_data import Case, cases
from Testing.benchmarks.lesion_scores import (
    endpoint_errors,
    folded_cell_count,
    folded_voxels,
    mean_dice_outside,
    regions,
    ssd_healthy,
    ssd_total,
    wrong_marks,
)
from Testing.benchmarks.metamorphosis import registered

Row = dict[str, float]
Found = tuple[Tensor, Tensor | None, float]
"""Displacement, change of appearance, seconds."""
Way = Callable[[Case], Found]
SETS = ("known-2d", "other-2d", "real-2d")
METAMORPHOSIS = "metamorphosis"
REPEATS = 5
COLUMNS = {
    "ssd_total": ("SSD total", 10, 3),
    "ssd_healthy": ("SSD healthy", 10, 3),
    "voxels": ("folded voxels", 1, 1),
    "cells": ("folded cells", 1, 1),
    "dice": ("Dice", 1, 3),
    "under": ("EPE under", 1, 2),
    "around": ("around", 1, 2),
    "far": ("far", 1, 2),
    "largest_vox": ("largest motion, voxels", 1, 1),
    "seconds": ("ms", 1000, 0),
}
"""Heading, factor and decimals."""


def unmoved(case: Case) -> Found:
    """The moving image as it is."""
    return case.fixed.new_zeros(1, len(case.spacing), *case.fixed.shape[2:]), None, 0.0


@torch.no_grad()
def by_network(network: nn.Module, case: Case) -> Found:
    """What a network says."""
    seconds = []
    for _ in range(REPEATS):
        begun = time.process_time()
        maps = network(case.moving, case.fixed)
        u_vox = maps.u12.float()
        seconds.append(time.process_time() - begun)
    return u_vox, change_of(maps, case.pathology), statistics.median(seconds)


def by_metamorphosis(case: Case) -> Found:
    """The optimisation; marks that mark nothing are none, as in the method."""
    begun = time.process_time()
    marked = bool(case.pathology.any())
    u_vox = registered(
        case, METAMORPHOSIS if marked else "none", Settings(preset="brain-mr", working_spacing_mm=1.0)
    )
    seconds = time.process_time() - begun
    if not marked:
        return u_vox, None, seconds
    residual = case.fixed - warp(case.moving, u_vox)
    source = smooth_source(residual, case.pathology, case.spacing, CHANGE_RHO_MM2)
    return u_vox, source * case.pathology, seconds


def measured(way: Way, case: Case, marks: Tensor | None = None) -> Row:
    """The scores of one case; marks: what the way is told in place of the truth."""
    u_vox, change, seconds = way(case if marks is None else replace(case, pathology=marks))
    deformed = warp(case.moving, u_vox)
    row = {
        "ssd_total": ssd_total(case.fixed, deformed if change is None else deformed + change),
        "ssd_healthy": ssd_healthy(case.fixed, deformed, case.pathology),
        "voxels": folded_voxels(u_vox),
        "cells": folded_cell_count(u_vox),
        "largest_vox": float(u_vox.abs().max()),
        "seconds": seconds,
    }
    if case.fixed_labels is not None and case.moving_labels is not None:
        row["dice"] = mean_dice_outside(case.fixed_labels, case.moving_labels, u_vox, case.pathology)
    if case.truth_vox is not None:
        masks = regions(case.pathology, case.organ, case.spacing)
        found = endpoint_errors(u_vox, case.truth_vox, case.spacing, masks)
        row |= {name: errors.mean for name, errors in found.items()}
    return row


def with_wrong_marks(ways: dict[str, Way], held: Sequence[Case]) -> dict[str, list[Row]]:
    """Rows of every way and every kind of marks."""
    kinds = wrong_marks(held[0].pathology, held[0].spacing)
    return {
        f"{name}, {kind}": [
            measured(way, case, wrong_marks(case.pathology, case.spacing)[kind]) for case in held
        ]
        for name, way in ways.items()
        for kind in kinds
    }


def table(rows: dict[str, list[Row]]) -> str:
    """Markdown: one line per way, mean and standard deviation of what its cases have."""
    known = [name for name in COLUMNS if any(name in row for own in rows.values() for row in own)]
    lines = ["| | " + " | ".join(COLUMNS[name][0] for name in known) + " |"]
    lines.append("|---|" + "---|" * len(known))
    for way, own in rows.items():
        entries = [_entry(name, [row[name] for row in own if name in row]) for name in known]
        lines.append(f"| {way} | " + " | ".join(entries) + " |")
    return "\n".join(lines)


def _entry(name: str, values: Sequence[float]) -> str:
    if not values:
        return "-"
    _, factor, digits = COLUMNS[name]
    mean, spread = statistics.mean(values) * factor, statistics.pstdev(values) * factor
    return f"{mean:.{digits}f} +- {spread:.{digits}f}"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cases", type=Path, required=True)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", default=SETS)
    parser.add_argument("--metamorphosis", action="store_true", help="the optimisation, too: seconds a case")
    parser.add_argument("--wrong", action="store_true", help="wrong marks in place of the first tables")
    parser.add_argument("--out", type=Path, help="all figures of all cases, JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    ways: dict[str, Way] = {} if options.wrong else {"none": unmoved}
    for path in sorted(options.runs.glob(f"*/{LAST}")):
        network = read_network(path)[0]
        if isinstance(network, MetaRegNet) or not options.wrong:
            ways[path.parent.name] = partial(by_network, network)
    if options.metamorphosis:
        ways[METAMORPHOSIS] = by_metamorphosis
    results = {}
    for name in options.sets:
        held = list(cases(options.cases / name))
        if options.wrong:
            rows = with_wrong_marks(ways, held)
        else:
            rows = {label: [measured(way, case) for case in held] for label, way in ways.items()}
        results[name] = {
            label: {case.name: row for case, row in zip(held, own, strict=True)}
            for label, own in rows.items()
        }
        print(f"\n{name}, {len(held)} cases\n\n{table(rows)}", flush=True)
    if options.out:
        options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
