"""Time the joining of half-way maps, and the integration of a velocity, of two versions: run by hand.

    python Testing/benchmarks/join.py [--size 96] [--repeats 3] [--other FOLDER_WITH_ANOTHER_DiffeoRegLib]

Smooth synthetic motion, in which some places fold.  One process per version and repeat, in turn, one thread;
seconds of the processor and the rise of the peak memory, medians, and how far the results lie apart.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).resolve().parents[2]


def once(size: int, target: Path) -> None:
    """Both steps in this process, with whichever library it finds; figures as JSON to standard output."""
    from DiffeoRegLib.flows.exponential import exp
    from DiffeoRegLib.flows.halfway import join
    from DiffeoRegLib.flows.integrate import integrate
    from DiffeoRegLib.report.memory import peak_memory_mb
    from DiffeoRegLib.space.filters import gaussian_smooth
    from DiffeoRegLib.space.grid import Grid

    def noise(sigma: float, peak: float, seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        field = gaussian_smooth(torch.randn(1, 3, *[size] * 3, generator=generator), sigma)
        rim = torch.linspace(0, torch.pi, size).sin().mul(3).clamp(0, 1)
        field = field * rim[:, None, None] * rim[:, None] * rim
        return field * (peak / field.abs().amax())

    grid = Grid((size,) * 3, np.eye(4))
    one, other, velocity = noise(8.0, 5.0, 1), noise(8.0, 1.5, 2), noise(3.0, 5.0, 3)
    spots = torch.zeros(1, 1, *[size] * 3)
    spots[..., size // 3, size // 3, size // 3] = spots[..., size // 2, size // 2, 2 * size // 3] = 1.0
    spots = gaussian_smooth(spots, 2.0)
    velocity = velocity + noise(1.2, 14.0, 4) * (spots / spots.amax())
    halves = exp(one + other, 5), exp(other - one, 5)
    join(velocity[..., :8, :8, :8], (one[..., :8, :8, :8], other[..., :8, :8, :8]), Grid((8,) * 3, np.eye(4)))
    report: dict[str, float | str] = {}
    fields = {}
    for name in ("join", "integrate"):
        before, start = peak_memory_mb(), time.process_time()
        flow = join(velocity, halves, grid) if name == "join" else integrate(velocity, grid, grid)
        report[name] = time.process_time() - start
        if name == "join":
            report["join MB"] = (peak_memory_mb() or 0.0) - (before or 0.0)
        fields[name] = (flow.forward_vox, flow.inverse_vox)
        report[f"{name} notes"] = " ".join(flow.notes)
    torch.save(fields, target)
    print(json.dumps(report))


def run(library: Path, size: int, target: Path) -> dict[str, float | str]:
    """`once` in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(library), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--size", str(size), "--once", str(target)]
    done = subprocess.run(command, env=environment, capture_output=True, check=True, encoding="utf-8")
    figures: dict[str, float | str] = json.loads(done.stdout.splitlines()[-1])
    return figures


def main() -> None:
    """Read the arguments, run every version in turn and print the medians."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=96, help="voxels along each axis")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--other", type=Path, help="folder that holds another version of DiffeoRegLib")
    parser.add_argument("--once", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.once:
        once(options.size, options.once)
        return
    libraries = [HERE] if options.other is None else [HERE, options.other.resolve()]
    found: list[list[dict[str, float | str]]] = [[] for _ in libraries]
    with tempfile.TemporaryDirectory() as folder:
        targets = [Path(folder) / f"{number}.pt" for number in range(len(libraries))]
        for _ in range(options.repeats):
            for library, figures, target in zip(libraries, found, targets, strict=True):
                figures.append(run(library, options.size, target))
        for library, figures in zip(libraries, found, strict=True):
            medians = {
                name: round(statistics.median(float(f[name]) for f in figures), 2)
                for name in figures[0]
                if not name.endswith("notes")
            }
            print(library, medians, figures[0]["join notes"], figures[0]["integrate notes"])
        if len(libraries) > 1:
            ours, others = (torch.load(target, weights_only=True) for target in targets)
            for name in ours:
                pairs = zip(ours[name], others[name], strict=True)
                print(name, "largest difference, voxels:", max(float((a - b).abs().max()) for a, b in pairs))


if __name__ == "__main__":
    main()
