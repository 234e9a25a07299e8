"""Seconds and memory of TransMorph-TVF networks from two images to the map and its inverse: run by hand.

    PYTHONPATH=. python Testing/benchmarks/tvf_cost.py [--shape 160 192 160] [--threads 2] [--repeats 3]
    PYTHONPATH=. python Testing/benchmarks/tvf_cost.py --sizes base,large --precisions fp32 --grids full
    PYTHONPATH=. python Testing/benchmarks/tvf_cost.py --training --shape 80 96 80 --threads 1

One row per way of running it, each in a process of its own, so that the peak memory is that way's alone
(interpreter and libraries included; `base` says how much those are).
Grids: `full` runs the network on all voxels. `shipped` runs it at half their number per axis and makes the
map there, closed by a ring, as the models that come with the program do on images of 1 mm; `fine` makes that
map on all voxels, as after a refinement.
Untrained heads move nothing, and the inverse of no motion costs nothing: without `--weights` the maps are
made of smooth velocities that add up to about 8 mm, where voxels of the image are 1 mm. The images are noise:
trained weights make maps of it that fold and cost more than those of brains.
On a busy machine measure one thread, by its CPU seconds: two threads wait for one another.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

LIMIT_SECONDS = 15.0
LENGTH_MM, SIGMA_MM = 8.0, 12.0


class Clock:
    """Wall and CPU seconds of the parts of every run."""

    def __init__(self, wait: Any) -> None:
        self.wait = wait
        self.runs: list[dict[str, tuple[float, float]]] = []
        self.begin()

    def begin(self) -> None:
        self.parts: dict[str, tuple[float, float]] = {}
        self.last = (time.perf_counter(), time.process_time())

    def done(self, part: str) -> None:
        self.wait()
        now = (time.perf_counter(), time.process_time())
        self.parts[part] = (now[0] - self.last[0], now[1] - self.last[1])
        self.last = now

    def end(self) -> None:
        self.runs.append(self.parts)
        self.begin()

    def medians(self) -> dict[str, tuple[float, float]]:
        """Of every part over all runs but the first, and of their sum."""
        runs = self.runs[1:] or self.runs
        for run in runs:
            run["all"] = (sum(part[0] for part in run.values()), sum(part[1] for part in run.values()))
        names = list(runs[0])
        return {name: (median(runs, name, 0), median(runs, name, 1)) for name in names}


def median(runs: list[dict[str, tuple[float, float]]], name: str, index: int) -> float:
    """Of one number of one part."""
    return statistics.median(run[name][index] for run in runs)


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """One way in this process."""
    import torch

    from DiffeoRegLib.networks.pyramid import parameter_count
    from DiffeoRegLib.report.memory import peak_memory_mb

    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    size, precision, grid = given.only.split(",")
    network = made(size, precision, given).to(given.device)
    pair = [torch.rand(1, 1, *given.shape, device=given.device) for _ in range(2)]
    clock = Clock(torch.cuda.synchronize if given.device != "cpu" else lambda: None)
    work = training(network, pair, clock) if given.training else inference(network, pair, grid, clock, given)
    base = peak_memory_mb()
    for _ in range(given.repeats + 1):
        clock.begin()
        work()
        clock.end()
    row = {"parts": clock.medians(), "peak_mb": peak_memory_mb(), "base_mb": base}
    if given.device != "cpu":
        row["device_mb"] = torch.cuda.max_memory_allocated() / 2**20
    return row | {"parameters": parameter_count(network)}


def made(size: str, precision: str, given: argparse.Namespace) -> Any:
    """The network of a size by name, or that of a weights file."""
    from DiffeoRegLib.networks.transmorph import sizes_of
    from DiffeoRegLib.networks.tvf import TransMorphTVF, TVFConfig, TVFOptions

    if given.weights:
        from DiffeoRegLib.networks.weights import read_network

        return read_network(given.weights, precision=precision)[0]
    config = TVFConfig(**sizes_of(size), steps=given.steps)
    return TransMorphTVF(config, TVFOptions(precision="float32" if precision == "fp32" else "bfloat16"))


def inference(network: Any, pair: list[Any], grid: str, clock: Clock, given: argparse.Namespace) -> Any:
    """A call that makes the map and its inverse on all voxels."""
    import numpy as np
    import torch

    from DiffeoRegLib.methods.stepping import followed, per_time
    from DiffeoRegLib.networks.tvf import TimeVaryingMaps
    from DiffeoRegLib.space.field import downsample_image
    from DiffeoRegLib.space.grid import Grid

    working = Grid(tuple(given.shape), np.eye(4))
    seen = working if grid == "full" else working.coarsened([2] * 3)
    over = seen if grid == "shipped" else working
    half = seen.coarsened([2] * 3)
    smooth = None if given.weights else synthetic(half, given)
    network.eval()

    def work() -> None:
        with torch.inference_mode():
            images = [downsample_image(image, [2] * 3) for image in pair] if seen is not working else pair
            fields = network(*images).velocities_vox
            clock.done("network")
            fields = fields if smooth is None else smooth
            if seen is not working:
                flow = followed(per_time(fields), half, "paper", len(fields), over, working)
                found = flow.forward_vox, flow.inverse_vox
            else:
                maps = TimeVaryingMaps(tuple(fields), working.shape)
                found = maps.u12, maps.u21
            clock.done("maps")
            assert all(bool(field.isfinite().all()) for field in found)

    return work


def synthetic(grid: Any, given: argparse.Namespace) -> tuple[Any, ...]:
    """Smooth velocities that change from step to step, voxels per step."""
    import torch

    from DiffeoRegLib.space.filters import gaussian_smooth

    spacing = grid.spacing[0]
    ends = [gaussian_smooth(torch.randn(1, 3, *grid.shape), SIGMA_MM / spacing) for _ in range(2)]
    length = LENGTH_MM / spacing / given.steps
    first, last = (end.to(given.device) * (length / float(end.abs().max())) for end in ends)
    shares = torch.linspace(0, 1, given.steps).tolist()
    return tuple((1 - share) * first + share * last for share in shares)


def training(network: Any, pair: list[Any], clock: Clock) -> Any:
    """A call that does forward and backward pass, with a loss that costs next to nothing."""

    def work() -> None:
        network.train().zero_grad(set_to_none=True)
        loss = network(*pair).u12.square().mean()
        clock.done("forward")
        loss.backward()
        clock.done("backward")

    return work


def said(way: str, row: dict[str, Any], given: argparse.Namespace) -> str:
    """A row as text."""
    parts = row["parts"]
    wall, cpu = parts.pop("all")
    split = ", ".join(f"{name} {part[0]:.2f} s ({part[1]:.2f} CPU s)" for name, part in parts.items())
    limit = "" if given.training else f", {LIMIT_SECONDS:g} s asked for"
    card = f", {row['device_mb']:.0f} MB on the card" if "device_mb" in row else ""
    return (
        f"{way}: {wall:.2f} s ({cpu:.2f} CPU s{limit}): {split}; peak {row['peak_mb']:.0f} MB "
        f"(base {row['base_mb']:.0f} MB){card}; {row['parameters']} parameters"
    )


def main() -> None:
    """Print one line per way; every way in its own process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--shape", type=int, nargs=3, default=(160, 192, 160))
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--sizes", default="tiny,small")
    parser.add_argument("--precisions", default="bf16,fp32")
    parser.add_argument("--grids", default="shipped,fine,full")
    parser.add_argument("--weights", type=Path, help="trained ones; then --sizes is only a label")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--training", action="store_true", help="forward and backward pass on all voxels")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.only:
        print(json.dumps(measure(given)))
        return
    grids = ["full"] if given.training else given.grids.split(",")
    for size in given.sizes.split(","):
        for precision in given.precisions.split(","):
            for grid in grids:
                way = f"{size}, {precision}, {grid} grid, {given.threads} threads"
                command = [sys.executable, __file__, *sys.argv[1:], "--only", f"{size},{precision},{grid}"]
                done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
                if done.returncode:
                    print(f"{way}: failed: {done.stderr.strip().splitlines()[-1:]}", flush=True)
                    continue
                print(said(way, json.loads(done.stdout.splitlines()[-1]), given), flush=True)


if __name__ == "__main__":
    main()
