"""Groups of hippocampi that a GroupMorph never saw: the network, the search, and the search from the network.

    python Testing/benchmarks/group_hippocampus.py --data DATA/msd_hippocampus -o OUT [--groups 10]

The groups are those the network was validated on (`Training/groupmorph-hippocampus.yaml`): five images each
of persons held out of the training, to their middle.  All methods start from the same affine maps to the mean
of the group.  Dice: both labels of all pairs of images, carried by nearest neighbour into the common space on
the grid of the run's view.  CPU seconds: one thread, after the affine alignment.  One file per group and
method under OUT/rows, those there are kept; writes OUT/hippocampus.md.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from DiffeoRegLib import groupwise
from DiffeoRegLib.methods.group_start import aligned_to_the_mean
from DiffeoRegLib.metrics import mean_dice
from DiffeoRegLib.settings import Settings
from DiffeoRegLib.space.grid import Grid, Matrix
from DiffeoRegLib.space.sample import array_from_tensor
from DiffeoRegLib.space.transform import AffineTransform, Transform
from DiffeoRegLib.training.config import read_config
from DiffeoRegLib.training.start import shipped_configs
from DiffeoRegLib.volumes.files import read_volume
from DiffeoRegLib.volumes.group import canonical_order, common_field_of_view
from DiffeoRegLib.volumes.resample import warp_labels
from DiffeoRegLib.volumes.volume import Volume

CONFIG = "groupmorph-hippocampus"
METHODS: dict[str, dict[str, Any] | None] = {
    "affine": None,
    "search, nmi": {"method": "svf", "similarity": "nmi"},
    "search, lncc": {"method": "svf", "similarity": "lncc"},
    "network": {"effort": "fast"},
    "network, search, nmi": {"similarity": "nmi"},
    "network, search, lncc": {"similarity": "lncc"},
}
"""What differs from the usual settings; None: nothing is deformed."""


def groups_of(count: int, size: int) -> list[list[str]]:
    """Names of held-out images, by a draw of their own."""
    names = list(read_config(shipped_configs()[CONFIG]).data.options["held_out"])
    return [random.Random(f"hippocampus {k}").sample(names, size) for k in range(count)]


def overlap(labels: Sequence[Volume], ways: Sequence[Transform], view: Grid) -> float:
    """Mean Dice over the pairs of label maps, carried to one grid."""
    carried = [array_from_tensor(warp_labels(a, b, view).data) for a, b in zip(labels, ways, strict=True)]
    return float(np.mean([mean_dice(a, b) for a, b in itertools.combinations(carried, 2)]))


@dataclass(frozen=True, eq=False)
class Case:
    """One group: images, their labels, and where the affine alignment reads them, in the engine's order."""

    images: list[Volume]
    labels: list[Volume]
    matrices: list[Matrix]
    view: Grid

    @classmethod
    def of(cls, images: list[Volume], labels: list[Volume]) -> Case:
        """Aligned once, for all methods."""
        ordered = [images[k] for k in canonical_order(images)]
        view, _ = common_field_of_view(ordered, None)
        settings = Settings(init="affine", device="cpu")
        return cls(
            images, labels, aligned_to_the_mean(ordered, view, None, settings, [], lambda step: None), view
        )

    def judged(self, settings: Settings | None) -> dict[str, Any]:
        """Overlap, folds and CPU seconds of a method; None = the affine maps alone."""
        began, folds = time.process_time(), 0.0
        if settings is None:
            order = canonical_order(self.images)
            ways = [AffineTransform(self.matrices[order.index(k)]) for k in range(len(order))]
            return {"dice": overlap(self.labels, ways, self.view), "seconds": 0.0, "folded_percent": folds}
        with mock.patch.object(groupwise, "aligned_to_the_mean", return_value=self.matrices):
            result = groupwise.register_group(self.images, settings, with_uncertainty=False)
        seconds = time.process_time() - began
        folds = float(np.mean([one["folded_percent"] for one in result.report["folds"]]))
        dice = overlap(self.labels, result.transforms, result.view)
        return {"dice": dice, "seconds": seconds, "folded_percent": folds}


def table(rows: dict[str, list[dict[str, Any]]]) -> str:
    """Markdown; Dice against the affine start group by group."""
    lines = ["| method | groups | Dice | least | better than affine | folds % | CPU s |", "|---" * 7 + "|"]
    start = {row["group"]: row["dice"] for row in rows.get("affine", [])}
    for name, held in rows.items():
        dice = [row["dice"] for row in held]
        better = sum(row["dice"] > start.get(row["group"], np.inf) for row in held)
        cells = [
            len(held), f"{np.mean(dice):.4f}", f"{min(dice):.4f}", f"{better} of {len(held)}",
            f"{np.mean([row['folded_percent'] for row in held]):.4f}",
            f"{np.mean([row['seconds'] for row in held]):.1f}",
        ]  # fmt: skip
        lines.append(f"| {name} | {' | '.join(str(cell) for cell in cells)} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """All rows that are not there yet."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with images/ and labels/")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--method", default="groupmorph-hippocampus", help="name of the shipped network")
    parser.add_argument("--weights", help="a file of weights in its place, with --method groupmorph")
    parser.add_argument("--groups", type=int, default=10)
    parser.add_argument("--size", type=int, default=5, help="images in a group")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folder, data = arguments.output / "rows", arguments.data
    folder.mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in METHODS}
    usual = {"method": arguments.method, "weights": arguments.weights, "init": "affine", "device": "cpu"}
    for number, names in enumerate(groups_of(arguments.groups, arguments.size)):
        case: Case | None = None
        for name, changes in METHODS.items():
            file = folder / f"{number:02d}-{name.replace(', ', '-')}.json"
            if not file.exists():
                chosen = None if changes is None else {**usual, **changes}
                if chosen is not None and chosen["method"] == "svf":
                    chosen["weights"] = None
                case = case or Case.of(
                    [read_volume(data / "images" / f"{one}.nii.gz") for one in names],
                    [read_volume(data / "labels" / f"{one}.nii.gz", labels=True) for one in names],
                )
                row = case.judged(None if chosen is None else Settings(**chosen))
                row |= {"group": number, "names": names, "method": name}
                file.write_text(json.dumps(row), encoding="utf-8")
                print(json.dumps(row), flush=True)
            rows[name].append(json.loads(file.read_text(encoding="utf-8")))
        (arguments.output / "hippocampus.md").write_text(table(rows), encoding="utf-8")
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
