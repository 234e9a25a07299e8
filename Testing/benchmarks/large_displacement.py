"""The large-displacement start alone: landmark error, folds, seconds and memory on the lung and liver pairs.

    python Testing/benchmarks/large_displacement.py --data DATA_FOLDER --init INIT_FOLDER [--masks]
    python Testing/benchmarks/large_displacement.py --data DATA_FOLDER --identity --stages 8:50,6:12,4:8
    python Testing/benchmarks/large_displacement.py --size 208x192x192 --spacing 1.75

Pairs and initial alignments are those of peers.py (peer_data.py describes them). The error of a landmark is
the distance between the mapped fixed point and its partner in the moving image, mm; none guides anything.
`--identity` leaves the initial alignment out: the search then has the whole motion to find.
`--size` times a synthetic pair of that many voxels instead. On a shared machine CPU seconds are the fair
figure.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

import peer_data  # noqa: E402
import peer_pair  # noqa: E402

from DiffeoRegLib.flows.exponential import exp  # noqa: E402
from DiffeoRegLib.methods.base import Pair, Progress  # noqa: E402
from DiffeoRegLib.methods.discrete import Stage, Start, default_stages, search  # noqa: E402
from DiffeoRegLib.report.memory import peak_memory_mb  # noqa: E402
from DiffeoRegLib.settings import Settings  # noqa: E402
from DiffeoRegLib.space.field import folded_percent, sd_log_jacobian  # noqa: E402
from DiffeoRegLib.space.filters import gaussian_smooth  # noqa: E402
from DiffeoRegLib.space.grid import Grid  # noqa: E402
from DiffeoRegLib.space.sample import array_from_tensor, sample, tensor_from_array, warp  # noqa: E402
from DiffeoRegLib.space.transform import AffineTransform  # noqa: E402
from DiffeoRegLib.volumes.files import read_volume  # noqa: E402
from DiffeoRegLib.volumes.prepare import Masks, prepare  # noqa: E402
from DiffeoRegLib.volumes.transform_files import read_transform  # noqa: E402

Points = NDArray[np.float64]
PRESETS = {"lung": "lung-ct", "liver": "abdomen", "abdomen": "abdomen"}
RAS_FROM_LPS = np.array([-1.0, -1.0, 1.0])


@dataclass(frozen=True)
class Problem:
    """A prepared pair and its landmarks, RAS mm; equal rows correspond."""

    name: str
    pair: Pair
    fixed_points_mm: Points
    moving_points_mm: Points


def problems(options: argparse.Namespace) -> Iterator[Problem]:
    """Every pair with landmarks of the chosen sets."""
    for group in options.set.split(","):
        for entry in peer_data.SETS[group](options.data, options.cache):
            if (
                entry.fixed_points_mm is None
                or entry.moving_points_mm is None
                or options.only not in entry.name
            ):
                continue
            settings = Settings(preset=PRESETS[group], working_spacing_mm=options.spacing)
            marked = [entry.fixed_mask, entry.moving_mask] if options.masks else [None, None]
            masks = Masks(*(None if path is None else read_volume(path, labels=True) for path in marked))
            start = np.eye(4)
            if not options.identity:
                start = affine_of(peer_pair.start_of(entry, options.init))
            pair = prepare(read_volume(entry.fixed), read_volume(entry.moving), masks, None, settings, start)
            points = [p * RAS_FROM_LPS for p in (entry.fixed_points_mm, entry.moving_points_mm)]
            yield Problem(entry.name, pair, *points)


def affine_of(path: Path) -> Points:
    """RAS mm 4x4 of a linear transform file."""
    transform = read_transform(path)
    if not isinstance(transform, AffineTransform):
        raise TypeError(f"{path} is not linear.")
    return transform.moving_from_fixed


def landmark_errors_mm(problem: Problem, start: Start | None) -> Points:
    """Distance of every mapped fixed landmark from its partner, mm; None = the initial alignment alone."""
    points = problem.fixed_points_mm
    if start is not None:
        grid = start.motion.grid
        index = grid.index_from_world(points)
        u_vox = exp(start.motion.velocity_vox, "auto")
        moved = sample(u_vox, tensor_from_array(index.T[None], u_vox.dtype))
        points = grid.world_from_index(index + array_from_tensor(moved)[0].T)
    affine = problem.pair.moving_from_grid
    errors: Points = np.linalg.norm(
        points @ affine[:3, :3].T + affine[:3, 3] - problem.moving_points_mm, axis=1
    )
    return errors


def synthetic(size: str, spacing_mm: float) -> Pair:
    """A smooth random image and the same carried by a bump of 30 mm, for timing."""
    shape = tuple(int(n) for n in size.split("x"))
    image = gaussian_smooth(torch.rand((1, 1, *shape), generator=torch.Generator().manual_seed(0)), 2.0)
    image = (image - image.min()) / (image.max() - image.min())
    bump = torch.zeros(1, len(shape), *shape)
    bump[:, 0, *(slice(n // 3, n - n // 3) for n in shape)] = 30.0 / spacing_mm
    matrix = np.diag([*[spacing_mm] * len(shape), *[1.0] * (4 - len(shape))])
    return Pair(warp(image, gaussian_smooth(bump, 12.0)), image, Grid(shape, matrix), np.eye(4))


def searched(pair: Pair, stages: tuple[Stage, ...]) -> tuple[Start, str]:
    """The start and its costs in words."""
    wall, cpu = time.perf_counter(), time.process_time()
    start = search(pair, stages, quiet)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak_mb = peak_memory_mb()
    u_vox = exp(start.motion.velocity_vox, "auto")
    folds = max(folded_percent(u_vox), folded_percent(exp(-start.motion.velocity_vox, "auto")))
    return start, (
        f"{folds:.4f} | {sd_log_jacobian(u_vox):.3f} | "
        f"{start.residual_mean_mm:.3f} / {start.residual_max_mm:.2f} | "
        f"{start.largest_mm:.1f} | {cpu:.1f} | {wall:.1f} | {peak_mb:.0f} |"
    )


def quiet(_: Progress) -> None:
    """A report nobody reads."""


def stages_from(options: argparse.Namespace) -> tuple[Stage, ...]:
    """`GRID:RADIUS,...` in mm, or the default."""
    if options.stages is None:
        return default_stages()
    pairs = (word.split(":") for word in options.stages.split(","))
    extra = {} if options.stiffness is None else {"stiffness": options.stiffness}
    return tuple(Stage(float(grid), float(radius), **extra) for grid, radius in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path)
    parser.add_argument(
        "--init", type=Path, default=Path("benchmark-init"), help="initial transforms, made when absent"
    )
    parser.add_argument("--cache", type=Path, default=Path("benchmark-cache"))
    parser.add_argument("--set", default="lung,liver")
    parser.add_argument("--only", default="", help="part of a pair's name")
    parser.add_argument("--masks", action="store_true")
    parser.add_argument("--identity", action="store_true")
    parser.add_argument("--stages", help="GRID:RADIUS,... in mm")
    parser.add_argument("--stiffness", type=float)
    parser.add_argument("--spacing", type=float, help="working spacing, mm")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--size", help="time a synthetic pair of AxBxC voxels")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    numbers = "folded % | SDlogJ | residual mean / max mm | largest mm | CPU s | wall s | peak MB |"
    if options.size:
        print(f"| voxels | {numbers}\n|---|" + "---|" * 7)
        _, words = searched(synthetic(options.size, options.spacing or 1.75), stages_from(options))
        print(f"| {options.size} | {words}")
        return
    if options.data is None:
        parser.error("--data or --size is needed")
    print(f"| pair | voxels | TRE before | TRE mean | median | 95 % | max | {numbers}\n|---|" + "---|" * 13)
    for problem in problems(options):
        start, words = searched(problem.pair, stages_from(options))
        before, after = (landmark_errors_mm(problem, s) for s in (None, start))
        figures = (before.mean(), after.mean(), np.median(after), np.percentile(after, 95), after.max())
        size = "x".join(str(n) for n in problem.pair.grid.shape)
        print(f"| {problem.name} | {size} | {' | '.join(f'{v:.2f}' for v in figures)} | {words}", flush=True)


if __name__ == "__main__":
    main()
