"""The table of MetaRegNet's paper, rebuilt on public images: networks bring a healthy slice onto a patient's.

    diffeoreg train metaregnet-brain-2d --data DATA/train.csv --set data.options.reference=DATA/grid.nii.gz \\
        -o RUNS/metaregnet
    diffeoreg train voxelmorph-cfm-brain-2d ... -o RUNS/vm-cfm
    diffeoreg train voxelmorph-cfm-brain-2d ... --set leave_out_pathology=false -o RUNS/vm-diff
    PYTHONPATH=. python Testing/benchmarks/lesion_networks.py --cases DATA/cases --runs RUNS [--out FILE.json]

DATA: see lesion_data.py.  Every folder in RUNS that holds last.safetensors is a row of every table, `none`
leaves the healthy slice where it is; the weights are those of the last step, so that nothing was chosen by
these cases.  Means and standard deviations over the cases of a set.
SSD: mean squared difference times 10, as in the paper; total: the whole slice, with the change of appearance
where the network predicts one; healthy: outside the lesion.  folded voxels: with a determinant of central
differences that is not above 0, the paper's number; cells: with a corner determinant that is not.
Dice: outside the lesion.  EPE: distance to the true map in mm, under, around (10 mm) and far from the lesion.
ms: seconds of the processor for the network and its map, one thread, times 1000.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from DiffeoRegLib.networks.weights import read_network
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
)

Row = dict[str, float]
SETS = ("known-2d", "other-2d", "real-2d")
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


@torch.no_grad()
def measured(network: nn.Module | None, case: Case) -> Row:
    """The scores of one case; None = no motion."""
    begun = time.process_time()
    if network is None:
        u_vox, change = case.fixed.new_zeros(1, len(case.spacing), *case.fixed.shape[2:]), None
    else:
        maps = network(case.moving, case.fixed)
        u_vox, change = maps.u12.float(), change_of(maps, case.pathology)
    seconds = time.process_time() - begun
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


def table(rows: dict[str, list[Row]]) -> str:
    """Markdown: one line per network, mean and standard deviation of what its cases have."""
    known = [name for name in COLUMNS if any(name in row for own in rows.values() for row in own)]
    lines = ["| network | " + " | ".join(COLUMNS[name][0] for name in known) + " |"]
    lines.append("|---|" + "---|" * len(known))
    for network, own in rows.items():
        entries = [_entry(name, [row[name] for row in own if name in row]) for name in known]
        lines.append(f"| {network} | " + " | ".join(entries) + " |")
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
    parser.add_argument("--out", type=Path, help="all figures of all cases, JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    networks: dict[str, nn.Module | None] = {"none": None}
    for path in sorted(options.runs.glob(f"*/{LAST}")):
        networks[path.parent.name] = read_network(path)[0]
    results = {}
    for name in options.sets:
        held = list(cases(options.cases / name))
        rows = {network: [measured(made, case) for case in held] for network, made in networks.items()}
        results[name] = {
            network: {case.name: row for case, row in zip(held, own, strict=True)}
            for network, own in rows.items()
        }
        print(f"\n{name}, {len(held)} cases\n\n{table(rows)}", flush=True)
    if options.out:
        options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
