"""Inverse, cycle and folds of a SITReg network on a real pair, at random points: run by hand.

    PYTHONPATH=. python Testing/benchmarks/sitreg_exactness.py WEIGHTS FIXED MOVING [--points 1000000]

Exact values (mode complete-exact, inverses solved at every point, float64): largest error of f21(f12(x)) - x,
non-positive determinants in both directions.  For the sampled maps of the standard mode: mean and largest
inverse error and folded corners.  Cycle: f12 of (A, B) against f12 of (B, A), which are each other's inverse.
The images are prepared as in training.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from coarse_to_fine import prepared_pair  # noqa: E402

from DiffeoRegLib.networks.sitreg import SITReg  # noqa: E402
from DiffeoRegLib.networks.weights import read_network  # noqa: E402
from DiffeoRegLib.space.field import compose  # noqa: E402
from DiffeoRegLib.space.jacobian import folded_percent  # noqa: E402


@torch.no_grad()
def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("weights", type=Path)
    parser.add_argument("fixed", type=Path)
    parser.add_argument("moving", type=Path)
    parser.add_argument("--points", type=int, default=1_000_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--shape", type=int, nargs="+", default=(80, 96, 80))
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    network, description = read_network(given.weights)
    assert isinstance(network, SITReg)
    spacing_mm = description["config"]["data"]["spacing_mm"]
    moving, fixed = prepared_pair(given.fixed, given.moving, given.shape, spacing_mm)
    network.double()
    exact = network(moving.double(), fixed.double(), mode="complete-exact")
    generator = torch.Generator().manual_seed(0)
    box = torch.tensor(fixed.shape[2:], dtype=torch.float64) - 1
    points = torch.rand(given.points, fixed.dim() - 2, generator=generator, dtype=torch.float64) * box
    start = time.perf_counter()
    there, first = exact.points_and_determinants(points, "12")
    back, _ = exact.points_and_determinants(there, "21")
    _, second = exact.points_and_determinants(points, "21")
    print(
        f"exact, {given.points} points, {time.perf_counter() - start:.0f} s: largest f21(f12(x)) - x "
        f"{float((back - points).abs().max()):.2g} voxels; determinants not positive "
        f"{int((first <= 0).sum())} and {int((second <= 0).sum())}, smallest {float(first.min()):.3g} and "
        f"{float(second.min()):.3g}"
    )
    network.float()
    maps, swapped = network(moving, fixed), network(fixed, moving)
    for name, there_vox, back_vox in (("inverse", maps.u12, maps.u21), ("cycle", maps.u12, swapped.u12)):
        error = compose(back_vox, there_vox).abs()
        print(f"{name} error of sampled maps, voxels: mean {float(error.mean()):.4f}, "
              f"largest {float(error.max()):.3f}")  # fmt: skip
    print(
        f"folded corners of sampled maps: {folded_percent(maps.u12):g} and {folded_percent(maps.u21):g} %; "
        f"exchange to the last bit: {torch.equal(maps.u12, swapped.u21)}"
    )


if __name__ == "__main__":
    main()
