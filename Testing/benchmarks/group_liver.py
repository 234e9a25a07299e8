"""Breathing livers registered as groups, and pair by pair, judged by landmarks.

    python Testing/benchmarks/group_liver.py --data DATA -o OUT [--threads 1] [--only NAME]

Two persons, three breathing states each (DATA/ptvreg_ethliver); one header states a wrong slice distance, the
others' is taken.  TRE, mm: over the three pairs of states, each from the first to the second of them, all
landmarks.  CPU seconds: from images to measured transforms in memory, those of all pairs together where
images are registered pair by pair.  Writes liver.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from DiffeoRegLib.groupwise import register_group
from DiffeoRegLib.pipeline import register
from DiffeoRegLib.report.group import group_landmark_scores, similarity_of_group
from DiffeoRegLib.report.scores import fold_scores
from DiffeoRegLib.settings import Settings
from DiffeoRegLib.space.grid import Matrix
from DiffeoRegLib.space.transform import AffineTransform, Transform
from DiffeoRegLib.volumes.files import read_points, read_volume
from DiffeoRegLib.volumes.volume import Volume

STATES = {
    "dataset18": ("exhMaster", "cyc_1_10", "cyc_3_10"),
    "dataset23": ("exhMaster", "cyc_1_4", "cyc_5_4"),
}
SETTINGS = Settings(preset="abdomen", init="identity", device="cpu", threads=1)
Found = dict[tuple[int, int], Transform]


def series(data: Path, person: str) -> tuple[list[Volume], list[Matrix]]:
    """The three states on one grid, and their landmarks, RAS mm."""
    folder, images, points = data / "ptvreg_ethliver" / person, list[Volume](), list[Matrix]()
    for state in STATES[person]:
        stem = "exhMaster_unmasked" if state == "exhMaster" else state
        images.append(read_volume(folder / f"{stem}.force_direction.mha", name=state))
        files = [folder / f"{state}LM{kind}.vtk" for kind in ("liver", "outside")]
        points.append(np.concatenate([read_points(file) for file in files]))
    return [Volume(image.data, images[0].grid, image.name) for image in images], points


def pairwise(images: Sequence[Volume]) -> tuple[Found, list[Transform]]:
    """`svf` for every pair."""
    found: Found = {}
    for i, j in itertools.combinations(range(len(images)), 2):
        found[i, j] = register(images[i], images[j], SETTINGS).transform
    return found, list(found.values())


def as_group(
    fixed: int | None, **changes: Any
) -> Callable[[Sequence[Volume]], tuple[Found, list[Transform]]]:
    """All at once."""

    def run(images: Sequence[Volume]) -> tuple[Found, list[Transform]]:
        result = register_group(
            images, SETTINGS.with_changes(**changes), fixed_index=fixed, with_uncertainty=False
        )
        pairs = itertools.combinations(range(len(images)), 2)
        return {(i, j): result.between(i, j) for i, j in pairs}, list(result.transforms)

    return run


METHODS: dict[str, Callable[[Sequence[Volume]], tuple[Found, list[Transform]]]] = {
    "group to the middle": as_group(None),
    "group to exhalation": as_group(0),
    "svf pairwise": pairwise,
    "group to the middle, nmi": as_group(None, similarity="nmi"),
    "group to the middle, fast": as_group(None, effort="fast"),
}


def judged(name: str, images: Sequence[Volume], points: Sequence[Matrix]) -> dict[str, Any]:
    """One method on one person."""
    wall, began = time.perf_counter(), time.process_time()
    found, maps = METHODS[name](images)
    seconds = time.process_time() - began
    wall = time.perf_counter() - wall
    errors = {
        pair: np.linalg.norm(way.map_points(points[pair[0]]) - points[pair[1]], axis=1)
        for pair, way in found.items()
    }
    every = np.concatenate(list(errors.values()))
    return {
        "method": name,
        "tre_mm": float(every.mean()),
        "sd_mm": float(every.std()),
        "largest_mm": float(every.max()),
        "pairs_mm": {f"{i}-{j}": float(one.mean()) for (i, j), one in errors.items()},
        "cpu_seconds": seconds,
        "seconds": wall,
        "folded_percent": max(float(fold_scores(way, images[0].grid)["folded_percent"] or 0) for way in maps),
        "similarity": similarity_of_group(images, maps, images[0].grid)["after"]
        if name != "svf pairwise"
        else None,
    }


def main() -> None:
    """Both persons, all methods."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", default="", help="methods whose name begins like this")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.output.mkdir(parents=True, exist_ok=True)
    table: dict[str, list[dict[str, Any]]] = {}
    for person in STATES:
        images, points = series(arguments.data, person)
        identity = [AffineTransform(np.eye(4))] * len(images)
        start = group_landmark_scores(points, identity, identity)["before"]
        print(f"{person}: before {start['mean']:.2f} mm, largest {start['max']:.1f}", flush=True)
        table[person] = [{"method": "none", "tre_mm": start["mean"], "largest_mm": start["max"]}]
        for name in METHODS:
            if not name.startswith(arguments.only):
                continue
            one = judged(name, images, points)
            table[person].append(one)
            pairs = ", ".join(f"{value:.2f}" for value in one["pairs_mm"].values())
            print(
                f"  {name:26} TRE {one['tre_mm']:.2f} ({one['sd_mm']:.2f}, largest {one['largest_mm']:.1f}; "
                f"{pairs}) mm, {one['cpu_seconds']:.1f} CPU s, folds {one['folded_percent']:.4f} %, "
                f"{one['similarity']}", flush=True,
            )  # fmt: skip
            (arguments.output / "liver.json").write_text(json.dumps(table, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
