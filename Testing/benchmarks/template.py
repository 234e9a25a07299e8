"""A template of a folder's images, in two orders, and ANTs' template of the same images: by hand.

    PYTHONPATH=. python Testing/benchmarks/template.py ours --images DIR --labels DIR -o OUT --count 30 \
        --flags "--init affine --preset brain-mr --effort fast" [--other-order]
    PYTHONPATH=. PEERS/python Testing/benchmarks/template.py ants --images DIR --labels DIR -o OUT --count 8

DIR: images and label maps with the same sorted order of names (one label map per image).  `ours` runs the
command and, with --other-order, runs it again with the images shuffled and compares: grey values of the
templates, and points carried to every image, mm.  `ants` (needs antspyx) builds ANTs' template, registers
every image to it once more (its builder keeps no transforms), and measures the overlap of the labels there.
Printed and kept in OUT/ours.json and OUT/ants.json.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from DiffeoRegLib.metrics import dice_over_pairs
from DiffeoRegLib.report.template import gradient_per_mm
from DiffeoRegLib.volumes.files import read_volume
from DiffeoRegLib.volumes.transform_files import read_transform

POINTS = 2000


def files_of(folder: Path, pattern: str, count: int) -> list[Path]:
    """The first files, by name."""
    found = sorted(folder.glob(pattern))[:count]
    if len(found) < 2:
        raise SystemExit(f"{folder} has no two files {pattern}.")
    return found


def run_ours(images: list[Path], labels: list[Path], folder: Path, flags: list[str]) -> dict[str, Any]:
    """The command, as a user starts it; its report, seconds of the processor and peak memory."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    words = ["-m", "DiffeoRegLib", "template", *map(str, images), "-o", str(folder), "--overwrite", "--quiet"]
    subprocess.run([sys.executable, *words, "--labels", *map(str, labels), *flags], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    template = read_volume(folder / "template.nii.gz")
    return {
        "stages": report["stages"],
        "off_centre_mm": report["off_centre_mm"],
        "gradient of the template": gradient_per_mm(template),
        "cpu seconds": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "seconds": time.perf_counter() - started,
        "peak MB": after.ru_maxrss / 1024,
    }


def compared(first: Path, second: Path, order: list[int]) -> dict[str, float]:
    """Largest differences of two templates; order[k]: number in `first` of image k of `second`."""
    one, other = (read_volume(folder / "template.nii.gz") for folder in (first, second))
    grid = one.grid
    index = np.random.default_rng(0).uniform(0, np.array(grid.shape) - 1, (POINTS, grid.dim))
    points = grid.world_from_index(index)
    gaps = [0.0]
    for here, there in enumerate(order):
        ways = [
            read_transform(folder / f"template_to_{number:03d}.h5").map_points(points)
            for folder, number in ((first, there), (second, here))
        ]
        gaps.append(float(np.linalg.norm(ways[0] - ways[1], axis=1).max()))
    return {
        "largest difference of the templates (0..1)": float((one.data - other.data).abs().max()),
        "largest difference of the maps, mm": max(gaps),
    }


def ours(arguments: argparse.Namespace, images: list[Path], labels: list[Path]) -> dict[str, Any]:
    """One run, or two in different orders."""
    out, flags = arguments.out, arguments.flags.split()
    found = {"given order": run_ours(images, labels, out / "given", flags)}
    if arguments.other_order:
        order = list(range(len(images)))
        random.Random(1).shuffle(order)
        again = [images[k] for k in order], [labels[k] for k in order]
        found["shuffled"] = run_ours(*again, out / "shuffled", flags)
        found["between them"] = compared(out / "given", out / "shuffled", order)
    return found


def with_ants(arguments: argparse.Namespace, images: list[Path], labels: list[Path]) -> dict[str, Any]:
    """ANTs' builder, then one SyN of every image to what it built."""
    import ants

    volumes = [ants.image_read(str(path)) for path in images]
    scaled = [ants.iMath(volume, "Normalize") for volume in volumes]
    before, started = time.process_time(), time.perf_counter()
    template = ants.build_template(image_list=scaled, iterations=arguments.iterations)
    built = time.perf_counter() - started
    maps = []
    for volume, path in zip(scaled, labels, strict=True):
        way = ants.registration(template, volume, type_of_transform="SyN")
        moved = ants.apply_transforms(
            template, ants.image_read(str(path)), way["fwdtransforms"], interpolator="nearestNeighbor"
        )
        maps.append(moved.numpy().round().astype(np.int32))
    ants.image_write(template, str(arguments.out / "ants.nii.gz"))
    return {
        "iterations": arguments.iterations,
        "dice": dice_over_pairs(maps),
        "gradient of the template": gradient_per_mm(read_volume(arguments.out / "ants.nii.gz")),
        "cpu seconds": time.process_time() - before,
        "seconds of the builder": built,
        "seconds": time.perf_counter() - started,
    }


def main() -> None:
    """One way of building."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("way", choices=("ours", "ants"))
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--labels", type=Path, required=True)
    parser.add_argument("--image-pattern", default="*.nii.gz")
    parser.add_argument("--label-pattern", default="*.nii.gz")
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--flags", default="--init affine --preset brain-mr --effort fast", help="of ours")
    parser.add_argument("--other-order", action="store_true")
    parser.add_argument("--iterations", type=int, default=3, help="of ANTs")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    images = files_of(arguments.images, arguments.image_pattern, arguments.count)
    labels = files_of(arguments.labels, arguments.label_pattern, arguments.count)
    found = (
        ours(arguments, images, labels) if arguments.way == "ours" else with_ants(arguments, images, labels)
    )
    text = json.dumps(found, indent=1)
    (arguments.out / f"{arguments.way}.json").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
