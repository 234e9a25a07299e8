"""The synthetic study of the RDMM paper: overlap of objects, motion of the stiff surroundings; run by hand.

    PYTHONPATH=. python Testing/benchmarks/rdmm_synthetic.py [--pairs 40] [--methods vsvf lddmm ...]
        [--iterations 40 40 20] [--moves all|inside-out|inside] [--records FILE.jsonl]
        [--figure FILE.png --figure-pair 0]

Pictures of 200 x 200 (`Testing/planar_objects.py`), no affine registration before: all motion is that of the
method.  vsvf, lddmm and rdmm take the kernels of the paper's optimised study, rdmm-regions those of its
predefined one: the foreground object of the moving image is soft, the rest rigid-like.  lddmm-soft takes the
soft kernels everywhere, lddmm-wide those of the paper's studies of brains and knees.
Dice is that of every object as a whole (holes of the foreground filled), its class that of the moving image.
`displaced`: mean length of phi(x) - x, voxels, and `stretched`: mean Frobenius norm of its derivative, over
the moving image outside and inside the foreground.  Seconds are of the process, one thread.
`--records` keeps every run as a line of JSON; runs that are in the file already are not done again, and the
tables are made of all its lines.  `--moves inside` leaves everything still but what the foreground holds: all
displacement outside is spill then.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from DiffeoRegLib.flows.exponential import exp
from DiffeoRegLib.methods.base import Method, Motion, Progress
from DiffeoRegLib.methods.geodesic import Geodesic
from DiffeoRegLib.methods.lddmm import LDDMM
from DiffeoRegLib.methods.map_grid import Kernels
from DiffeoRegLib.methods.options import Options
from DiffeoRegLib.methods.rdmm import RDMM
from DiffeoRegLib.methods.vector_momentum import VectorMomentumVelocity
from DiffeoRegLib.metrics import mean_dice
from DiffeoRegLib.settings import Settings
from DiffeoRegLib.space.field import change_grid, folded_percent
from DiffeoRegLib.space.sample import array_from_tensor, warp
from DiffeoRegLib.stiffness import REGIONAL_SIGMAS, REST, STIFFNESS
from DiffeoRegLib.volumes.regions import PlacedRegions
from Testing.planar_objects import KINDS, MOVES, ROLES, Picture, covered, picture

KERNELS = Kernels((0.02, 0.04, 0.06, 0.08), (0.1, 0.3, 0.3, 0.3), 0.05)
REGIONAL = Kernels(REGIONAL_SIGMAS, STIFFNESS[REST], 0.05)
SOFT = Kernels(REGIONAL_SIGMAS[:3], STIFFNESS["soft"][:3])
WIDE = Kernels((0.05, 0.1, 0.15, 0.2, 0.25), (1, 2, 3, 4, 5))
METHODS: dict[str, Callable[[], Method]] = {
    "vsvf": lambda: VectorMomentumVelocity(Options(kernels=KERNELS)),
    "lddmm": lambda: LDDMM(Options(kernels=KERNELS)),
    "rdmm-regions": lambda: RDMM(Options(kernels=REGIONAL)),
    "rdmm": lambda: RDMM(Options(kernels=KERNELS)),
    "lddmm-soft": lambda: LDDMM(Options(kernels=SOFT)),
    "lddmm-wide": lambda: LDDMM(Options(kernels=WIDE)),
}
USUAL = ("vsvf", "lddmm", "rdmm-regions", "rdmm")
MEASURES = {
    "displaced_outside": ("displaced outside", 3),
    "displaced_inside": ("displaced inside", 3),
    "stretched_outside": ("stretched outside", 4),
    "folded_percent": ("folded %", 2),
    "seconds": ("seconds", 1),
}
"""Heading and decimals of what is not Dice."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """Displacements of phi^-1 and phi on the image grid, voxels, and how they were found."""

    inverse_vox: Tensor
    forward_vox: Tensor
    geodesic: Geodesic | None
    seconds: float
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Record:
    """What one run gave.  dice: (role, kind, value) of every object."""

    pair: int
    moves: str
    method: str
    dice: tuple[tuple[str, str, float], ...]
    displaced_outside: float
    displaced_inside: float
    stretched_outside: float
    folded_percent: float
    seconds: float


def quiet(_: Progress) -> None:
    """No progress."""


def run(name: str, case: Picture, settings: Settings) -> Outcome:
    """One method on one picture; `none` does not move anything."""
    pair = case.pair()
    if name == "none":
        rest = torch.zeros(1, 2, *case.shape)
        return Outcome(rest, rest, None, 0.0, ())
    if name == "rdmm-regions":
        pair = replace(pair, regions=PlacedRegions(case.soft(), {1: "soft"}))
    method, begin = METHODS[name](), time.process_time()
    motion = method.refine(method.predict(pair, settings, quiet), pair, settings, quiet)
    inverse, forward = maps(motion, case)
    geodesic = motion.geodesics[0] if motion.geodesics else None
    return Outcome(inverse, forward, geodesic, time.process_time() - begin, tuple(motion.notes))


def maps(motion: Motion, case: Picture) -> tuple[Tensor, Tensor]:
    """Displacements of phi^-1 and phi, (1, 2, *shape), as the method left them."""
    grid = case.pair().grid
    if motion.geodesics:
        return motion.geodesics[0].maps(grid)
    both = [exp(motion.velocity_vox, "auto", first_step=2, time=t) for t in (1.0, -1.0)]
    inverse, forward = (change_grid(u, motion.grid, grid) for u in both)
    return inverse, forward


def dice(case: Picture, inverse_vox: Tensor) -> tuple[tuple[str, str, float], ...]:
    """Role, kind in the moving image and Dice of every object."""
    found = []
    for fixed, moving in zip(case.fixed, case.moving, strict=True):
        moved = warp(covered(moving, case.shape), inverse_vox) > 0.5
        there = covered(fixed, case.shape) > 0.5
        first, second = (array_from_tensor(mask[0, 0].int()) for mask in (there, moved))
        found.append((moving.role, moving.kind, mean_dice(first, second, [1])))
    return tuple(found)


def stretch(u_vox: Tensor) -> Tensor:
    """Frobenius norm of the derivative of a displacement (1, 2, *shape); (*shape)."""
    slopes = [torch.gradient(u_vox[0, part], dim=axis)[0] for part in (0, 1) for axis in (0, 1)]
    return torch.stack(slopes).square().sum(0).sqrt()


def measured(index: int, moves: str, name: str, case: Picture, outcome: Outcome) -> Record:
    """All numbers of one run."""
    outside, forward = case.soft()[0, 0] == 0, outcome.forward_vox
    lengths = forward.square().sum(1).sqrt()[0]
    return Record(
        index, moves, name, dice(case, outcome.inverse_vox),
        displaced_outside=float(lengths[outside].mean()), displaced_inside=float(lengths[~outside].mean()),
        stretched_outside=float(stretch(forward)[outside].mean()),
        folded_percent=folded_percent(outcome.inverse_vox), seconds=outcome.seconds,
    )  # fmt: skip


def read_records(path: Path) -> list[Record]:
    """All lines of a file that may not exist yet; a last line that was cut off is left out."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    fields = [json.loads(line) for line in lines]
    return [Record(**{**one, "dice": tuple((r, k, v) for r, k, v in one["dice"])}) for one in fields]


def spread(values: Sequence[float], digits: int) -> str:
    """Mean and standard deviation."""
    if not values:
        return "-"
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):.{digits}f} ({deviation:.{digits}f})"


def tables(records: Iterable[Record]) -> str:
    """Two Markdown tables, a row per method: Dice over objects, the rest over pairs; mean (deviation)."""
    by_method: dict[str, list[Record]] = {}
    for record in records:
        by_method.setdefault(record.method, []).append(record)
    scores: list[tuple[str, ...]] = [("method", "pairs", "all", *KINDS, *ROLES)]
    numbers: list[tuple[str, ...]] = [("method", *(title for title, _ in MEASURES.values()))]
    for name, rows in by_method.items():
        objects = [entry for row in rows for entry in row.dice]
        groups = [objects, *([o for o in objects if key in o[:2]] for key in (*KINDS, *ROLES))]
        scores.append((name, str(len(rows)), *(spread([o[2] for o in group], 3) for group in groups)))
        means = [spread([getattr(row, key) for row in rows], n) for key, (_, n) in MEASURES.items()]
        numbers.append((name, *means))
    return "\n\n".join(_markdown(rows) for rows in (scores, numbers))


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def claim(records: Iterable[Record]) -> str:
    """Motion outside the soft region against that of LDDMM on the pairs both did, and Dice inside."""
    done = {(record.method, record.pair): record for record in records}
    said = []
    for other in ("lddmm", "lddmm-soft", "lddmm-wide"):
        pairs = [pair for name, pair in done if name == other and ("rdmm-regions", pair) in done]
        if not pairs:
            continue
        both = [[done[name, pair] for pair in pairs] for name in ("rdmm-regions", other)]
        far, bent = (
            [statistics.fmean(getattr(row, key) for row in rows) for rows in both]
            for key in ("displaced_outside", "stretched_outside")
        )
        held = [[d for row in rows for role, _, d in row.dice if role != "outside"] for rows in both]
        overlap = [statistics.fmean(values) for values in held]
        said.append(
            f"rdmm-regions against {other}, {len(pairs)} pairs: outside {far[0]:.3f} against {far[1]:.3f} "
            f"voxels ({far[0] / far[1]:.2f} of it), stretched {bent[0]:.4f} against {bent[1]:.4f} "
            f"({bent[0] / bent[1]:.2f}), Dice inside {overlap[0]:.4f} against {overlap[1]:.4f}"
        )
    return "\n".join(said)


def main() -> None:
    """Run what is not there yet, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--first", type=int, default=0, help="number of the first picture")
    parser.add_argument("--stride", type=int, default=1, help="take every such picture, to share the work")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=USUAL)
    parser.add_argument("--moves", choices=list(MOVES), default="all")
    parser.add_argument("--iterations", type=int, nargs=3, default=(40, 40, 20))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--records", type=Path, help="lines of JSON, read first and added to")
    parser.add_argument("--figure", type=Path, help="picture of one pair; that pair is run anew")
    parser.add_argument("--figure-pair", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    settings = Settings(iterations=tuple(options.iterations))
    records = read_records(options.records) if options.records else []
    records = [record for record in records if record.moves == options.moves]
    there = {(record.method, record.pair) for record in records}
    for index in range(options.first, options.pairs, options.stride):
        case = picture(index, moves=options.moves)
        for name in ("none", *options.methods):
            if (name, index) in there:
                continue
            outcome = run(name, case, settings)
            record = measured(index, options.moves, name, case, outcome)
            records.append(record)
            print(index, name, spread([d for *_, d in record.dice], 4), *outcome.notes, flush=True)
            if options.records:
                with options.records.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(asdict(record)) + "\n")
    if records:
        print(f"\n{tables(records)}\n\n{claim(records)}")
    if options.figure:
        # Matplotlib is an extra that the numbers do not need.
        from Testing.benchmarks.rdmm_figure import draw

        case = picture(options.figure_pair, moves=options.moves)
        draw(options.figure, case, {name: run(name, case, settings) for name in options.methods})


if __name__ == "__main__":
    main()
