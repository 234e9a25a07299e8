"""Seconds and memory of the SITReg network, untrained weights of a published size: run by hand.

    PYTHONPATH=. python Testing/benchmarks/sitreg_cost.py [--shape 160 192 160] [--threads 2] [--repeats 3]
    PYTHONPATH=. python Testing/benchmarks/sitreg_cost.py --training --shape 160 144 192 --repeats 1

One row per way of running it, each in a process of its own, so that the peak memory is that way's alone
(interpreter and libraries included; `base` says how much those are). The size is the paper's main model for
OASIS. `--training` measures a step (both directions, lncc and gradient penalty, backward, Adam) instead.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from typing import Any

SIZES: dict[str, Any] = {"encoder": (8, 40, 40, 40), "heads": (16, 72, 72, 72)}
WAYS: dict[str, tuple[dict[str, Any], str]] = {
    "both directions, bfloat16": ({"precision": "bfloat16"}, "both"),
    "both directions, float32": ({"precision": "float32"}, "both"),
    "one direction, bfloat16": ({"precision": "bfloat16"}, "12"),
    "coarse-sampled atoms, bfloat16": ({"precision": "bfloat16", "samples_per_control": 2}, "both"),
    "fast, bfloat16": ({"precision": "bfloat16", "fast": True}, "both"),
}
TRAINING: dict[str, dict[str, Any]] = {
    "step, float32 as published": {},
    "step, float32, checkpointing": {"checkpointing": True},
    "step, bfloat16, checkpointing": {"checkpointing": True, "precision": "bfloat16"},
    "step, bfloat16, coarse-sampled atoms": {"samples_per_control": 2, "precision": "bfloat16"},
}


def measure(way: str, given: argparse.Namespace) -> dict[str, Any]:
    """One way in this process: median seconds of the repeats after a first run, and peak memory."""
    import torch

    from DiffeoRegLib.networks.pyramid import PyramidConfig
    from DiffeoRegLib.networks.sitreg import SITReg
    from DiffeoRegLib.networks.sitreg_options import SITRegOptions
    from DiffeoRegLib.report.memory import peak_memory_mb

    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    options, direction = (TRAINING[way], "both") if given.training else WAYS[way]
    network = SITReg(PyramidConfig(**SIZES), SITRegOptions(**options))
    device = torch.device(given.device)
    network.to(device)
    one, other = (torch.rand(1, 1, *given.shape, device=device) for _ in range(2))
    base = peak_memory_mb()
    work = training_step(network, one, other) if given.training else inference(network, one, other, direction)
    seconds = []
    for _ in range(given.repeats + 1):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    kept = seconds[1:] or seconds
    return {
        "way": way, "median": statistics.median(kept), "low": min(kept), "high": max(kept),
        "peak_mb": peak_memory_mb(), "base_mb": base,
        "device_mb": torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else None,
    }  # fmt: skip


def inference(network: Any, one: Any, other: Any, direction: str) -> Any:
    """A call that makes the displacement fields."""
    import torch

    def work() -> None:
        with torch.inference_mode():
            maps = network.eval()(one, other, direction=direction)
            fields = (maps.u12, maps.u21) if direction == "both" else (maps.u12,)
            assert all(bool(field.isfinite().all()) for field in fields)

    return work


def training_step(network: Any, one: Any, other: Any) -> Any:
    """A call that does one whole step of the paper's training."""
    import torch

    from DiffeoRegLib.training.config import LossConfig
    from DiffeoRegLib.training.objective import Batch, Objective

    objective = Objective((LossConfig("lncc-published"), LossConfig("gradient")))
    optimiser = torch.optim.Adam(network.parameters(), 1e-4)

    def work() -> None:
        optimiser.zero_grad(set_to_none=True)
        loss, _ = objective(network(one, other), Batch(one, other))
        loss.backward()
        optimiser.step()

    return work


def main() -> None:
    """Print one line per way; every way in its own process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--shape", type=int, nargs=3, default=(160, 192, 160))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--training", action="store_true", help="measure training steps")
    parser.add_argument("--ways", default="", help="parts of the names of those to measure, comma separated")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.only:
        print(json.dumps(measure(given.only, given)))
        return
    for way in TRAINING if given.training else WAYS:
        if given.ways and not any(part in way for part in given.ways.split(",")):
            continue
        command = [sys.executable, __file__, *sys.argv[1:], "--only", way]
        done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
        if done.returncode:
            print(f"{way}: failed: {done.stderr.strip().splitlines()[-1:]}", flush=True)
            continue
        row = json.loads(done.stdout)
        card = "" if row["device_mb"] is None else f", {row['device_mb']:.0f} MB on the card"
        print(
            f"{way}: median {row['median']:.2f} s ({row['low']:.2f} to {row['high']:.2f}), "
            f"peak {row['peak_mb']:.0f} MB (base {row['base_mb']:.0f} MB){card}",
            flush=True,
        )


if __name__ == "__main__":
    main()
