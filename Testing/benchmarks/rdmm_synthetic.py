"""The synthetic study of the RDMM paper: overlap of objects, motion of the stiff surroundings; run by hand.

    python Testing/benchmarks/rdmm_synthetic.py [--pairs 40] [--methods vsvf lddmm rdmm-regions rdmm-joint]
                                                [--iterations 60 60 30] [--still] [--figure FILE.png]

Pictures of 200 x 200 (`Testing/planar_objects.py`), no affine registration before.  Dice of every object as a
whole (holes of the foreground filled), by role and by kind.  `outside`: mean displacement phi(x) - x, voxels,
of the moving image outside the soft region, which is the foreground 1.2 times as large.  Process seconds.
`--still`: the objects outside do not move, so that all displacement there is spill.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from DiffeoRegLib.flows.exponential import exp
from DiffeoRegLib.methods.base import Progress
from DiffeoRegLib.methods.descent import Options
from DiffeoRegLib.methods.geodesic import Geodesic
from DiffeoRegLib.methods.lddmm import LDDMM
from DiffeoRegLib.methods.map_grid import Kernels
from DiffeoRegLib.methods.rdmm import RDMM, Regions
from DiffeoRegLib.methods.vector_momentum import VectorMomentumVelocity
from DiffeoRegLib.metrics import mean_dice
from DiffeoRegLib.settings import Settings
from DiffeoRegLib.space.field import change_grid, folded_percent
from DiffeoRegLib.space.sample import array_from_tensor, warp
from Testing.planar_objects import KINDS, ROLES, Picture, covered, picture

METHODS = ("vsvf", "lddmm", "rdmm-regions", "rdmm-joint")
KERNELS = Kernels((0.02, 0.04, 0.06, 0.08), (0.1, 0.3, 0.3, 0.3), 0.05)
"""Of the paper's optimised study."""
INSIDE = ("foreground", "inside")


@dataclass(frozen=True, eq=False)
class Outcome:
    """Displacements of phi^-1 and phi on the image grid, voxels, and how they were found."""

    inverse_vox: Tensor
    forward_vox: Tensor
    geodesic: Geodesic | None
    seconds: float
    notes: tuple[str, ...]


def quiet(_: Progress) -> None:
    """No progress."""


def run(name: str, case: Picture, settings: Settings) -> Outcome:
    """One method on one picture."""
    pair, options = case.pair(), Options(kernels=KERNELS)
    begin = time.process_time()
    if name == "vsvf":
        stationary = VectorMomentumVelocity(options)
        motion = stationary.refine(stationary.predict(pair, settings, quiet), pair, settings, quiet)
        both = [exp(motion.velocity_vox, "auto", first_step=2, time=t) for t in (1.0, -1.0)]
        inverse, forward = (change_grid(u, motion.grid, pair.grid) for u in both)
        return Outcome(inverse, forward, None, time.process_time() - begin, motion.notes)
    if name == "lddmm":
        method: LDDMM | RDMM = LDDMM(options)
    elif name == "rdmm-joint":
        method = RDMM(options)
    else:
        method = RDMM(regions=Regions(case.soft(), {1: "soft"}))
    geodesic = method.refine(method.predict(pair, settings, quiet), pair, settings, quiet)
    inverse, forward = geodesic.maps(pair.grid)
    return Outcome(inverse, forward, geodesic, time.process_time() - begin, geodesic.notes)


def dice(case: Picture, inverse_vox: Tensor) -> list[tuple[str, str, float]]:
    """Role, kind and Dice of every object."""
    found = []
    for fixed, moving in zip(case.fixed, case.moving, strict=True):
        moved = warp(covered(moving, case.shape), inverse_vox) > 0.5
        there = covered(fixed, case.shape) > 0.5
        found.append((fixed.role, fixed.kind, mean_dice(there[0, 0].int(), moved[0, 0].int(), [1])))
    return found


def outside_vox(case: Picture, forward_vox: Tensor) -> float:
    """Mean displacement of what is not soft."""
    lengths = forward_vox.square().sum(1, keepdim=True).sqrt()
    return float(lengths[case.soft() == 0].mean())


def report(name: str, rows: dict[str, list[float]]) -> None:
    """Means over all pairs: roles and kinds over all their objects, the rest over the pairs."""
    parts = [f"{key} {statistics.fmean(values):.4f}" for key, values in rows.items()]
    print(f"{name:13s} " + "  ".join(parts), flush=True)


def measured(case: Picture, outcome: Outcome) -> dict[str, list[float]]:
    """All numbers of one run; lists of different lengths."""
    rows: dict[str, list[float]] = defaultdict(list)
    scores = dice(case, outcome.inverse_vox)
    for key in ("all", *ROLES, *KINDS):
        rows[key] = [s for role, kind, s in scores if key in ("all", role, kind)]
    rows["displaced-outside"].append(outside_vox(case, outcome.forward_vox))
    rows["folded%"].append(folded_percent(outcome.inverse_vox))
    rows["seconds"].append(outcome.seconds)
    return {key: values for key, values in rows.items() if values}


def figure(path: Path, case: Picture, outcomes: dict[str, Outcome]) -> None:
    """Images, maps and the width of the regulariser at both ends of time, a row per method."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pair = case.pair()
    canvas, axes = pyplot.subplots(len(outcomes), 5, figsize=(15, 3 * len(outcomes)), squeeze=False)
    for row, (name, outcome) in zip(axes, outcomes.items(), strict=True):
        moved = warp(pair.moving, outcome.inverse_vox)
        for axis, image, title in zip(
            row, (pair.moving, pair.fixed, moved), ("moving", "fixed", name), strict=False
        ):
            axis.imshow(array_from_tensor(image[0, 0]), cmap="gray", vmin=0, vmax=1)
            axis.set_title(title)
        for part, index in ((outcome.inverse_vox[0], 0), (outcome.inverse_vox[0], 1)):
            lines = torch.arange(case.shape[index]).view(-1, 1) if index == 0 else torch.arange(case.shape[1])
            row[2].contour(array_from_tensor(part[index] + lines), levels=range(0, 200, 10), linewidths=0.5)
        for axis, when in zip(row[3:], (0.0, 1.0), strict=True):
            axis.set_axis_off()
            if outcome.geodesic is not None:
                shown = axis.imshow(array_from_tensor(outcome.geodesic.sigma_mm(when)[0, 0]))
                canvas.colorbar(shown, ax=axis)
                axis.set_title(f"sigma(x), voxels, t = {when:g}")
    canvas.tight_layout()
    canvas.savefig(path, dpi=80)


def main() -> None:
    """Print every pair, then the means."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--first", type=int, default=0, help="number of the first picture")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--iterations", type=int, nargs=3, default=(60, 60, 30))
    parser.add_argument("--still", action="store_true", help="nothing moves outside the foreground")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--figure", type=Path, help="picture of the first pair")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    settings = Settings(iterations=tuple(options.iterations))
    rows: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for index in range(options.first, options.first + options.pairs):
        case, outcomes = picture(index, still=options.still), {}
        still = torch.zeros(1, 2, *case.shape)
        for name in ("none", *options.methods):
            outcome = Outcome(still, still, None, 0.0, ()) if name == "none" else run(name, case, settings)
            outcomes[name] = outcome
            numbers = measured(case, outcome)
            report(f"{index} {name}", numbers)
            print("   ", *outcome.notes)
            for key, values in numbers.items():
                rows[name][key] += values
        if options.figure and index == options.first:
            del outcomes["none"]
            figure(options.figure, case, outcomes)
    print("\nmeans")
    for name, numbers in rows.items():
        report(name, numbers)


if __name__ == "__main__":
    main()
