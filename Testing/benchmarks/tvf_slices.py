"""The 2D study of TransMorph-TVF: single step, TVF and TVF with LDDMM, trained alike on brain slices.

    diffeoreg train transmorph-slices --data SLICES -o build/slices/transmorph
    diffeoreg train tvf-slices --data SLICES -o build/slices/tvf
    diffeoreg train tvf-lddmm-slices --data SLICES -o build/slices/tvf-lddmm
    PYTHONPATH=. python Testing/benchmarks/tvf_slices.py --data SLICES --runs build/slices
        [--out build/tvf_slices.json] [--figure Resources/docs/tvf-slices.png --figure-pair 0]

An open stand-in for the faces of the paper (RaFD, 2D), whose figures stand below the table.  Measured on
all ordered pairs of the slices that the runs held out; the weights are those of the last step, so that
nothing was chosen by these pairs.  Every picture is prepared as for training: on the grid of the first slice,
values in [0, 1].  `none` leaves the moving picture where it is, `affine` is the initial alignment of a
registration.

SSIM: of the whole picture, black surroundings and all; `SSIM, brain`: its mean over the voxels where the
fixed picture is not black.  FSIM: of grey values, by its published definition (`Testing/image_quality.py`);
which program the paper used is not said.
folded %: cells of the voxel grid with a corner determinant that is not above 0; J <= 0 %: voxels where the
determinant by central differences is not.  Backward: the fixed picture read through the inverse, against the
moving one.  The inverse is found voxel by voxel from the map (`flows/inversion.py`); where a map folds there
is none, which `inverse error` shows: the length of phi(phi^-1(x)) - x, voxels, mean and largest.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from DiffeoRegLib.errors import InputError
from DiffeoRegLib.flows.inversion import inversion_residual, invert
from DiffeoRegLib.methods.affine import initial_alignment
from DiffeoRegLib.networks.weights import read_network
from DiffeoRegLib.plain import as_plain
from DiffeoRegLib.settings import Settings
from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.space.jacobian import folded_percent, jacobian_determinant, sd_log_jacobian
from DiffeoRegLib.space.sample import array_from_tensor, warp
from DiffeoRegLib.training.config import TrainingConfig, config_from
from DiffeoRegLib.training.datasets import training_data
from DiffeoRegLib.training.run_folder import CONFIG, LAST
from DiffeoRegLib.volumes.intensity import resample_affine
from DiffeoRegLib.volumes.volume import Volume
from Testing.image_quality import SSIM_RADIUS, fsim, ssim_map

Row = dict[str, Any]
RUNS = {
    "transmorph": "TransMorph, single step",
    "tvf": "TransMorph-TVF",
    "tvf-lddmm": "TransMorph-TVF, LDDMM",
}
"""Folders of the runs, and what their networks are called."""
NAMES = {"none": "none", "affine": "affine", **RUNS}
COLUMNS = {
    "ssim": ("SSIM", 3),
    "ssim_brain": ("SSIM, brain", 3),
    "fsim": ("FSIM", 3),
    "folded_percent": ("folded %", 3),
    "central_percent": ("J <= 0 %", 3),
    "sd_log_jacobian": ("SDlogJ", 3),
    "backward_ssim": ("backward SSIM", 3),
    "backward_fsim": ("backward FSIM", 3),
    "inverse_mean_vox": ("inverse error, mean", 4),
    "inverse_max_vox": ("largest", 3),
    "seconds": ("seconds", 3),
}
"""Heading and decimals."""
PAPER = """\
RaFD, 2D faces, as published (SSIM / FSIM / J <= 0 %):
VM-2 .858 / .669 / .008; VM-diff .805 / .613 / < .001; CycleMorph .875 / .687 / .001;
TransMorph .899 / .716 / .002; TransMorph-TVF, LDDMM .829 / .620 / < .001;
TransMorph-TVF .910 / .734 / < .001"""
ALIKE = ("data", "steps", "batch", "accumulation", "seed", "symmetric", "optimiser", "precision")
BLACK = 0.02


@dataclass(frozen=True, eq=False)
class Pair:
    """Two pictures (1, 1, H, W) on one grid."""

    name: str
    fixed: Tensor
    moving: Tensor
    grid: Grid


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a method makes of a pair: pictures read both ways, maps (1, 2, H, W) in voxels; None: has none."""

    moved: Tensor
    backward: Tensor | None
    u_vox: Tensor | None
    inverse_vox: Tensor | None
    seconds: float


def configs(runs: Path, data: Path) -> dict[str, TrainingConfig]:
    """The settings of the runs there are, with the data where they lie now.

    Raises InputError for no run, or runs that were not trained alike.
    """
    found: dict[str, TrainingConfig] = {}
    for name in RUNS:
        path = runs / name / CONFIG
        if path.is_file():
            config = config_from(json.loads(path.read_text(encoding="utf-8")))
            here = replace(config.data, source=str(data), validation=str(data))
            found[name] = replace(config, data=here)
    if not found:
        raise InputError(f"'{runs}' holds no run: train {', '.join(RUNS)} first.")
    plain = [as_plain(config) for config in found.values()]
    for key in ALIKE:
        if any(one[key] != plain[0][key] for one in plain):
            raise InputError(f"The runs in '{runs}' were not trained alike: they differ in {key}.")
    return found


def pairs_of(config: TrainingConfig) -> list[Pair]:
    """All ordered pairs of the pictures that were held out."""
    held_out = training_data(config.data).validation
    if held_out is None:
        raise InputError("The runs held nothing out.")
    grid = held_out.store.grid  # type: ignore[attr-defined]
    items = [held_out[index] for index in range(len(held_out))]
    items.sort(key=lambda item: str(item["names"]))
    return [Pair(item["names"], item["fixed"][None], item["moving"][None], grid) for item in items]


@torch.inference_mode()
def run(name: str, network: nn.Module | None, pair: Pair) -> Outcome:
    """One method on one pair; seconds: of the process, one thread, for the map without its inverse."""
    begin = time.process_time()
    if name == "none":
        return Outcome(pair.moving, None, None, None, 0.0)
    if network is None:
        volumes = [Volume(x[0, 0], pair.grid) for x in (pair.fixed, pair.moving)]
        matrix = initial_alignment(*volumes, Settings(init="affine"))
        seconds = time.process_time() - begin
        moved = resample_affine(volumes[1], pair.grid, matrix)
        backward = resample_affine(volumes[0], pair.grid, np.linalg.inv(matrix))
        return Outcome(moved, backward, None, None, seconds)
    u_vox = network(pair.moving, pair.fixed).u12
    seconds = time.process_time() - begin
    inverse_vox = invert(u_vox)
    return Outcome(warp(pair.moving, u_vox), warp(pair.fixed, inverse_vox), u_vox, inverse_vox, seconds)


def measured(name: str, pair: Pair, outcome: Outcome) -> Row:
    """Everything in the table."""
    fixed, moving, moved = (_picture(x) for x in (pair.fixed, pair.moving, outcome.moved))
    likeness = ssim_map(fixed, moved)
    inside = fixed[SSIM_RADIUS:-SSIM_RADIUS, SSIM_RADIUS:-SSIM_RADIUS] > BLACK
    row: Row = {"method": name, "pair": pair.name, "seconds": outcome.seconds}
    row |= {
        "ssim": float(likeness.mean()),
        "ssim_brain": float(likeness[inside].mean()),
        "fsim": fsim(fixed, moved),
    }
    if outcome.backward is not None:
        back = _picture(outcome.backward)
        row |= {"backward_ssim": float(ssim_map(moving, back).mean()), "backward_fsim": fsim(moving, back)}
    if outcome.u_vox is not None and outcome.inverse_vox is not None:
        gap = inversion_residual(outcome.u_vox, outcome.inverse_vox)
        central = jacobian_determinant(outcome.u_vox) <= 0
        row |= {
            "folded_percent": folded_percent(outcome.u_vox),
            "central_percent": 100 * float(central.double().mean()),
            "sd_log_jacobian": sd_log_jacobian(outcome.u_vox),
            "inverse_mean_vox": float(gap.mean()),
            "inverse_max_vox": float(gap.max()),
        }
    return row


def study(runs: Path, data: Path) -> Iterator[tuple[str, Pair, Outcome]]:
    """Every method on every pair."""
    chosen = configs(runs, data)
    pairs = pairs_of(next(iter(chosen.values())))
    networks: dict[str, nn.Module | None] = {"none": None, "affine": None}
    networks |= {name: read_network(runs / name / LAST)[0] for name in chosen}
    for name, network in networks.items():
        for pair in pairs:
            yield name, pair, run(name, network, pair)


def table(rows: Sequence[Row]) -> str:
    """A line per method: mean and standard deviation over the pairs."""
    lines = ["| method | pairs | " + " | ".join(heading for heading, _ in COLUMNS.values()) + " |"]
    lines.append("|---" * (2 + len(COLUMNS)) + "|")
    for name in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == name]
        cells = []
        for key, (_, digits) in COLUMNS.items():
            values = [row[key] for row in own if key in row]
            if values:
                spread = statistics.stdev(values) if len(values) > 1 else 0.0
                cells.append(f"{statistics.fmean(values):.{digits}f} +- {spread:.{digits}f}")
            else:
                cells.append("-")
        lines.append(f"| {NAMES[name]} | {len(own)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _picture(image: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    return array_from_tensor(image[0, 0]).astype(np.float64)


def main() -> int:
    """Measure, print the table, draw the figure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the slices")
    parser.add_argument("--runs", type=Path, required=True, help=f"folder of the runs {', '.join(RUNS)}")
    parser.add_argument("--out", type=Path, help="JSON file for the rows")
    parser.add_argument("--figure", type=Path, help="PNG to draw")
    parser.add_argument("--figure-pair", type=int, default=0, help="number of the pair it shows")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[Row] = []
    shown: dict[str, tuple[Pair, Outcome]] = {}
    for name, pair, outcome in study(args.runs, args.data):
        rows.append(measured(name, pair, outcome))
        own = sum(row["method"] == name for row in rows) - 1
        if name in RUNS and own == args.figure_pair:
            shown[name] = (pair, outcome)
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    if args.figure is not None:
        from Testing.benchmarks.tvf_slices_figure import draw

        draw(args.figure, {RUNS[name]: one for name, one in shown.items()})
    print(table(rows))
    print(PAPER)
    return 0


if __name__ == "__main__":
    sys.exit(main())
