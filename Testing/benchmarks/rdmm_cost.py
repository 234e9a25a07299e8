"""Seconds, memory and profile of the methods with kernels on one pair of 160 x 192 x 160 voxels: run by hand.

    PYTHONPATH=. python Testing/benchmarks/rdmm_cost.py --threads 2 [--methods lddmm,rdmm] [--device cuda]
    PYTHONPATH=. python Testing/benchmarks/rdmm_cost.py --fixed A.nii.gz --moving B.nii.gz

From images in memory, aligned, to the momentum (what the method does) and from there to the finished map and
its inverse; no affine, reading or writing. One process per method: the peak memory is that method's alone,
interpreter and libraries included. Without images a synthetic one: a textured body, moved by a smooth random
motion of up to 8 mm. The profile says how the seconds of the search divide; its parts are timed by a clock
around them, which costs next to nothing on a CPU. On a GPU every part waits for the device, so parts are only
timed with `--profile`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from functools import wraps
from typing import Any

LIMITS = {"vsvf": 60, "lddmm": 120, "rdmm": 240}
"""Seconds on two cores that were asked for."""
PARTS = (
    ("kernels (v = K m)", "DiffeoRegLib.flows.momentum.MomentumMetric", "sources"),
    ("kernels (v = K m)", "DiffeoRegLib.flows.regional.RegionalMetric", "sources"),
    ("differences", "DiffeoRegLib.flows.momentum.MomentumMetric", "rate"),
    ("differences", "DiffeoRegLib.flows.regional.RegionalMetric", "rate"),
    ("adjoint", "DiffeoRegLib.flows.momentum.MomentumMetric", "adjoint"),
    ("adjoint", "DiffeoRegLib.flows.regional.RegionalMetric", "adjoint"),
    (
        "similarity and its gradient",
        "DiffeoRegLib.methods.blockwise.BlockwiseCorrelation",
        "value_and_gradient",
    ),
    ("preconditioner", "DiffeoRegLib.methods.map_grid.SpectralPreconditioner", "__call__"),
)


class Clock:
    """Seconds per part; a part within another counts for itself alone."""

    def __init__(self, wait: Callable[[], None]) -> None:
        self.seconds: dict[str, float] = {}
        self.calls: dict[str, int] = {}
        self._wait, self._stack = wait, list[float]()

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, timed."""

        @wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._wait()
            began = time.perf_counter()
            self._stack.append(0.0)
            result = function(*args, **kwargs)
            self._wait()
            taken = time.perf_counter() - began
            inner = self._stack.pop()
            if self._stack:
                self._stack[-1] += taken
            self.seconds[name] = self.seconds.get(name, 0.0) + taken - inner
            self.calls[name] = self.calls.get(name, 0) + 1
            return result

        return timed

    def install(self) -> None:
        """Time all PARTS."""
        from importlib import import_module

        for name, place, method in PARTS:
            module, owner = place.rsplit(".", 1)
            kind = getattr(import_module(module), owner)
            setattr(kind, method, self.around(name, getattr(kind, method)))


def images(given: argparse.Namespace) -> Any:
    """The pair on its working grid."""
    import numpy as np
    import torch

    from DiffeoRegLib.settings import Settings
    from DiffeoRegLib.space.grid import Grid
    from DiffeoRegLib.space.sample import warp
    from DiffeoRegLib.volumes.files import read_volume
    from DiffeoRegLib.volumes.pair import Pair
    from DiffeoRegLib.volumes.prepare import prepare

    if given.fixed:
        from DiffeoRegLib.methods.affine import initial_alignment

        fixed, moving = read_volume(given.fixed), read_volume(given.moving)
        settings = Settings(preset=given.preset)
        return prepare(fixed, moving, None, None, settings, initial_alignment(fixed, moving, settings))
    from DiffeoRegLib.space.filters import gaussian_smooth

    torch.manual_seed(0)
    shape = tuple(given.shape)
    axes = [torch.linspace(-1, 1, n) for n in shape]
    radius = sum(a.square() for a in torch.meshgrid(*axes, indexing="ij")).sqrt()
    body = torch.sigmoid((0.8 - radius) * 60)[None, None]
    texture = sum(_unit(gaussian_smooth(torch.randn(1, 1, *shape), s)) for s in (2.0, 4.0, 8.0))
    moving = body * (0.5 + 0.15 * texture).clamp(0.05, 1)
    u = torch.cat([_unit(gaussian_smooth(torch.randn(1, 1, *shape), 12.0)) for _ in shape], 1)
    fixed = warp(moving, u * (8.0 / float(u.abs().max())))
    return Pair(fixed, moving, Grid(shape, np.eye(4)), np.eye(4))


def _unit(x: Any) -> Any:
    return x / x.std()


def measure(method: str, given: argparse.Namespace) -> dict[str, Any]:
    """One method in this process."""
    import torch

    from DiffeoRegLib.flows.integrate import integrate
    from DiffeoRegLib.methods import METHODS
    from DiffeoRegLib.methods.geodesic import finished
    from DiffeoRegLib.report.memory import peak_memory_mb
    from DiffeoRegLib.settings import Settings

    torch.set_num_threads(given.threads)
    cuda = given.device.startswith("cuda")
    wait = torch.cuda.synchronize if cuda else lambda: None
    clock = Clock(wait)
    if not cuda or given.profile:
        clock.install()
    pair = images(given).to(given.device)
    settings = Settings(method=method, preset=given.preset, effort=given.effort)
    chosen, base = METHODS[method](), peak_memory_mb()
    row: dict[str, Any] = {"method": method, "shape": pair.grid.shape, "base_mb": base}
    for _ in range(2 if cuda else 1):  # the first run on a device also loads its programs
        began, cpu = time.perf_counter(), time.process_time()
        motion = chosen.refine(chosen.predict(pair, settings, lambda _: None), pair, settings, lambda _: None)
        wait()
        row |= {"search": time.perf_counter() - began, "search_cpu": time.process_time() - cpu}
    row |= {"parts": dict(clock.seconds), "calls": dict(clock.calls)}
    began, cpu = time.perf_counter(), time.process_time()
    if motion.geodesics:
        flow = finished(motion.geodesics, pair.grid, pair.grid, None)
    else:
        flow = integrate(motion.velocity_vox.cpu(), motion.grid, pair.grid, "auto", None)
    row |= {"finish": time.perf_counter() - began, "finish_cpu": time.process_time() - cpu}
    row |= {"peak_mb": peak_memory_mb(), "notes": [*motion.notes, *flow.notes]}
    if cuda:
        row["device_mb"] = torch.cuda.max_memory_allocated() / 2**20
    return row


def said(row: dict[str, Any]) -> str:
    """A row as text."""
    limit = LIMITS.get(row["method"])
    asked = "" if limit is None else f" ({limit} s asked for)"
    lines = [
        f"{row['method']} on {row['shape']}: search {row['search']:.1f} s ({row['search_cpu']:.1f} CPU s), "
        f"map and inverse {row['finish']:.1f} s ({row['finish_cpu']:.1f} CPU s), together "
        f"{row['search'] + row['finish']:.1f} s{asked}; peak {row['peak_mb']:.0f} MB "
        f"(base {row['base_mb']:.0f} MB)"
        + (f", {row['device_mb']:.0f} MB on the card" if "device_mb" in row else "")
    ]
    rest = row["search"] - sum(row["parts"].values())
    for name, seconds in [*row["parts"].items(), ("all else", rest)] if row["parts"] else []:
        calls = row["calls"].get(name)
        lines.append(f"    {seconds:6.1f} s  {name}" + (f", {calls} times" if calls else ""))
    return "\n".join(lines + [f"    {note}" for note in row["notes"]])


def main() -> None:
    """Print one block per method; every method in its own process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--shape", type=int, nargs=3, default=(160, 192, 160))
    parser.add_argument("--fixed", help="a real pair instead, aligned by our affine first")
    parser.add_argument("--moving")
    parser.add_argument("--preset", default="brain-mr")
    parser.add_argument("--effort", default="balanced")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--profile", action="store_true", help="parts on a GPU, too")
    parser.add_argument("--methods", default="vsvf,lddmm,rdmm")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.only:
        print(json.dumps(measure(given.only, given)))
        return
    for method in given.methods.split(","):
        command = [sys.executable, __file__, *sys.argv[1:], "--only", method]
        done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
        if done.returncode:
            print(f"{method}: failed: {done.stderr.strip().splitlines()[-1:]}", flush=True)
            continue
        print(said(json.loads(done.stdout.splitlines()[-1])), flush=True)


if __name__ == "__main__":
    main()
