"""TransMorph, TransMorph-TVF and its LDDMM form, trained alike, on brains none has seen; and other steps.

    python Testing/benchmarks/tvf_brains.py --data DATA_FOLDER --out build/tvf_brains.json \\
        --network tm=tm/last.safetensors --network tvf=tvf/last.safetensors \\
        --network lddmm=lddmm/last.safetensors
    python Testing/benchmarks/tvf_brains.py --show build/tvf_brains.json --figure tvf-steps.png

The pairs are those of `brain_pairs.csv` of two people who were held out in every one of the trainings, on the
grid of the training (2 mm, affinely aligned: `start` is that alignment alone).  Maps are as the networks make
them: nothing unfolds them, nothing is closed at the border.

Dice and HD95 are means over all labels, nearest neighbour.  folded: cells with a corner determinant of 0 or
less. SDlogJ: spread of the log-Jacobian, and in the form of Learn2Reg.  The inverse is found voxel by voxel;
its error is |forward(inverse(x)) - x| where inverse(x) lies on the grid.  Seconds of the network are of one
forward pass to the full map.

With `steps`, the velocities of a network trained with N steps are followed in S others (`in_steps`), with the
heads as they were trained; `following s` is the time that takes, without the network, `inverse s` that of the
inverse, and `per-step` the inverse composed of the steps' own in place of the pointwise one.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch
from torch import Tensor, nn

from DiffeoRegLib.flows.inversion import invert
from DiffeoRegLib.flows.time_varying import (
    INVERSE_TOLERANCE_VOX,
    full_resolution,
    in_steps,
    integrate_steps,
    inverse_of_steps,
)
from DiffeoRegLib.metrics import (
    deformation_summary,
    dice_per_label,
    hd95_mm,
    inverse_consistency_of_fields_mm,
)
from DiffeoRegLib.networks.tvf import TransMorphTVF
from DiffeoRegLib.networks.weights import read_network
from DiffeoRegLib.plain import build
from DiffeoRegLib.space.sample import array_from_tensor, warp
from DiffeoRegLib.training.config import DataConfig
from DiffeoRegLib.training.datasets import ImageOptions, data_options
from DiffeoRegLib.training.sources import collection_from
from DiffeoRegLib.training.store import Preparation, Store
from DiffeoRegLib.training.subjects import Subject
from Testing.benchmarks.tvf_figure import draw

Row = dict[str, Any]
STEPS = (1, 2, 4, 8, 16)
COLUMNS = (
    ("dice", "Dice", "{:.4f}"),
    ("hd95_mm", "HD95 mm", "{:.3f}"),
    ("folded_percent", "folded %", "{:.5f}"),
    ("sd_log_jacobian", "SDlogJ", "{:.4f}"),
    ("sd_log_jacobian_learn2reg", "Learn2Reg's", "{:.4f}"),
    ("inverse_mean_mm", "inverse error mm", "{:.4f}"),
    ("inverse_max_mm", "largest", "{:.2f}"),
    ("per_step_mean_mm", "per-step", "{:.4f}"),
    ("per_step_max_mm", "largest", "{:.2f}"),
    ("network_seconds", "network s", "{:.2f}"),
    ("following_seconds", "following s", "{:.3f}"),
    ("inverse_seconds", "inverse s", "{:.2f}"),
)


@dataclass(frozen=True, eq=False)
class Pair:
    """Two held-out people on the grid of the training; images and labels (1, 1, *shape)."""

    name: str
    fixed: Tensor
    moving: Tensor
    fixed_labels: Tensor
    moving_labels: Tensor
    spacing: tuple[float, ...]


def data_of(description: Mapping[str, Any]) -> tuple[DataConfig, ImageOptions]:
    """The data section that weights were trained with."""
    config = build(DataConfig, description["config"]["data"], "data")
    options = data_options(config)
    assert isinstance(options, ImageOptions)
    return config, options


def pairs_of(data: Path, sections: Sequence[tuple[DataConfig, ImageOptions]], cache: Path) -> Iterator[Pair]:
    """The listed pairs of people whom all networks held out, prepared as for the first network."""
    config, options = sections[0]
    people = set.intersection(*[set(section[1].held_out) for section in sections])
    with (data / "brain_pairs.csv").open(encoding="utf-8", newline="") as file:
        listed = list(csv.DictReader(line for line in file if not line.startswith("#")))
    folder = (data / listed[0]["fixed"]).parent
    known: dict[str, Subject] = {
        one.name: one
        for one in collection_from(folder, images=options.images, labels=options.labels).subjects
    }
    reference = next(iter(known.values())).image
    spacing = config.spacing_mm or (1.0,) * len(options.shape)
    store = Store(Preparation(options.shape, spacing, reference, options.alignment), cache, in_memory=4)
    ends = {str(one.image.resolve()): name for name, one in known.items()}
    for row in listed:
        names = [ends[str((data / row[side]).resolve())] for side in ("fixed", "moving")]
        if set(names) <= people:
            fixed, moving = (store.load(known[name]) for name in names)
            yield Pair(
                "_".join(names), fixed["image"][None], moving["image"][None],
                fixed["labels"][None], moving["labels"][None], tuple(spacing),
            )  # fmt: skip


def scores(pair: Pair, u_vox: Tensor, *, surfaces: bool = True) -> Row:
    """Overlap and smoothness of a map, and the distance of surfaces, which takes longest."""
    moved = warp(pair.moving_labels.float(), u_vox, mode="nearest", outside="zeros").round()
    first, second = (array_from_tensor(x)[0, 0].astype(np.int64) for x in (pair.fixed_labels, moved))
    found = {"dice": float(np.mean(list(dice_per_label(first, second).values())))}
    if surfaces:
        far = hd95_mm(first, second, pair.spacing).values()
        found["hd95_mm"] = float(np.mean([value for value in far if np.isfinite(value)]))
    return {**found, **deformation_summary(u_vox)}


def inverse_error(pair: Pair, u_vox: Tensor, inverse_vox: Tensor, name: str) -> Row:
    """How far the map of the inverse's end is from its beginning."""
    found = inverse_consistency_of_fields_mm(inverse_vox, u_vox, pair.spacing)
    return {f"{name}_mean_mm": found.mean, f"{name}_max_mm": found.maximum}


@torch.no_grad()
def of_network(pair: Pair, name: str, network: nn.Module) -> Row:
    """One network as it was trained."""
    began = time.perf_counter()
    u_vox: Tensor = network(pair.moving, pair.fixed).u12
    made = time.perf_counter()
    inverse_vox = invert(u_vox, "mixed", INVERSE_TOLERANCE_VOX)
    seconds = {"network_seconds": made - began, "inverse_seconds": time.perf_counter() - made}
    row = {"pair": pair.name, "name": name, **scores(pair, u_vox), **seconds}
    return row | inverse_error(pair, u_vox, inverse_vox, "inverse")


@torch.no_grad()
def of_steps(pair: Pair, name: str, network: TransMorphTVF) -> Iterator[Row]:
    """The velocities of one network, followed in other numbers of steps."""
    maps = network(pair.moving, pair.fixed)
    for count in STEPS:
        began = time.perf_counter()
        parts = in_steps(maps.velocities_vox, count)
        u_vox = full_resolution(integrate_steps(parts, maps.order), maps.shape, maps.order)
        made = time.perf_counter()
        inverse_vox = invert(u_vox, "mixed", INVERSE_TOLERANCE_VOX)
        ended = time.perf_counter()
        composed = full_resolution(inverse_of_steps(parts, "per-step", maps.order), maps.shape, maps.order)
        yield {
            "pair": pair.name, "name": name, "steps": count, **scores(pair, u_vox, surfaces=False),
            **inverse_error(pair, u_vox, inverse_vox, "inverse"),
            **inverse_error(pair, u_vox, composed, "per_step"),
            "following_seconds": made - began, "inverse_seconds": ended - made,
        }  # fmt: skip


def means(rows: Sequence[Row]) -> list[Row]:
    """A row per network, and per number of steps, with means over the pairs."""
    found: dict[tuple[str, int | None], list[Row]] = {}
    for row in rows:
        found.setdefault((row["name"], row.get("steps")), []).append(row)
    return [
        {
            "name": name,
            "steps": steps,
            "pairs": len(some),
            **{key: float(np.mean([r[key] for r in some])) for key, *_ in COLUMNS if key in some[0]},
            **{f"{key}_sd": float(np.std([r[key] for r in some])) for key in ("dice", "folded_percent")},
        }
        for (name, steps), some in found.items()
    ]


def table(rows: Sequence[Row]) -> str:
    """Both tables, markdown."""
    parts = []
    for some in ([r for r in rows if r["steps"] is None], [r for r in rows if r["steps"] is not None]):
        shown = [c for c in COLUMNS if any(c[0] in row for row in some)]
        lines = ["| network | steps | pairs | " + " | ".join(heading for _, heading, _ in shown) + " |"]
        lines.append("|---" * (3 + len(shown)) + "|")
        for row in some:
            cells = [pattern.format(row[key]) if key in row else "-" for key, _, pattern in shown]
            lines.append(f"| {row['name']} | {row['steps'] or '-'} | {row['pairs']} | {' | '.join(cells)} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def measured(args: argparse.Namespace) -> list[Row]:
    """All rows of all pairs."""
    named = [one.split("=", 1) for one in args.network]
    found = {name: read_network(Path(path), precision=args.precision) for name, path in named}
    sections = [data_of(description) for _, description in found.values()]
    rows: list[Row] = []
    for pair in pairs_of(args.data.resolve(), sections, args.cache):
        still = torch.zeros(1, len(pair.spacing), *pair.fixed.shape[2:])
        rows.append({"pair": pair.name, "name": "start", **scores(pair, still)})
        for name, (network, _) in found.items():
            rows.append(of_network(pair, name, network))
            print(json.dumps(rows[-1]), flush=True)
            if isinstance(network, TransMorphTVF):
                rows.extend(of_steps(pair, name, network))
        args.out.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return rows


def main() -> int:
    """Measure, or show what was measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder with brain_pairs.csv and the images")
    parser.add_argument("--network", action="append", default=[], metavar="NAME=FILE", help="trained weights")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cache", type=Path, default=Path("build/tvf_brains"), help="prepared images")
    parser.add_argument("--out", type=Path, default=Path("build/tvf_brains.json"))
    parser.add_argument("--show", type=Path, help="no runs: the tables of a results file")
    parser.add_argument("--figure", type=Path, help="draw the steps, PNG")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.show is None and (args.data is None or not args.network):
        parser.error("--data and --network are needed (or --show).")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    rows = measured(args) if args.show is None else json.loads(args.show.read_text(encoding="utf-8"))
    found = means(rows)
    print(table(found))
    if args.figure is not None:
        draw(args.figure, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
