"""How alive the panel stays during a registration, and how soon it starts: run by hand on the Qt bench.

    python Testing/benchmarks/panel_latency.py FIXED MOVING [--effort balanced]

A timer of 5 ms runs all the while; what it is late by is how long the application would not have answered.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY)]
os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
TICK_MS = 5
LONG_WAIT_SECONDS = 600.0


class Heart:
    """A timer that writes down when it ticked."""

    def __init__(self, qt: Any) -> None:
        self.times: list[float] = []
        self.timer = qt.QTimer()
        self.timer.connect("timeout()", lambda: self.times.append(time.perf_counter()))
        self.timer.start(TICK_MS)

    def late_ms(self, start: float, stop: float) -> np.ndarray[Any, Any]:
        """Milliseconds by which each tick between two moments came too late."""
        ticks = [start, *[t for t in self.times if start < t < stop], stop]
        return np.clip(1000 * np.diff(ticks) - TICK_MS, 0, None)


def one_run(bench: Any, panel: Any, heart: Heart) -> dict[str, float]:
    """Apply once; seconds and lateness."""
    pressed = time.perf_counter()
    bench.click(panel.ui.applyButton)
    answered = time.perf_counter()
    bench.wait(lambda: panel.ui.progressBar.value > 0, LONG_WAIT_SECONDS, "the first percent")
    begun = time.perf_counter()
    polls: list[tuple[float, float]] = []
    poll = panel.run.poll

    def timed() -> None:
        before = time.perf_counter()
        poll()
        polls.append((time.perf_counter() - before, before))

    panel.run.poll = timed
    bench.wait(lambda: not panel.run.running, LONG_WAIT_SECONDS, "the end")
    ended = time.perf_counter()
    print(f"  {panel.ui.statusLabel.text}")
    late = heart.late_ms(answered, ended)
    nodes = heart.late_ms(pressed, ended).max()
    return {
        "Apply answers, s": answered - pressed,
        "bar leaves 0 %, s": begun - pressed,
        "whole run, s": ended - pressed,
        "late, median ms": float(np.median(late)),
        "late, 99 % ms": float(np.percentile(late, 99)),
        "late, most ms (nodes are made)": float(nodes),
    }


def main() -> int:
    """Two runs, the second with a warm worker."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("fixed")
    parser.add_argument("moving")
    parser.add_argument("--effort", default="balanced")
    parser.add_argument("--preset", default="brain-mr")
    arguments = parser.parse_args()
    from Testing.slicer import conftest  # noqa: F401 - makes qt, ctk and the panel importable
    from Testing.slicer.bench import core
    from Testing.slicer.bench.slicerbench import Bench
    from Testing.slicer.panel_pictures import add_launcher

    with tempfile.TemporaryDirectory() as folder:
        booted = core.boot()
        bench = Bench(booted, Path(folder))
        add_launcher(Path(bench.app.slicerHome))
        panel = bench.load().enter().panel
        volumes = booted.logics["Volumes"]
        panel.ui.fixedSelector.setCurrentNode(volumes.AddArchetypeVolume(arguments.fixed, "fixed", 0))
        panel.ui.movingSelector.setCurrentNode(volumes.AddArchetypeVolume(arguments.moving, "moving", 0))
        panel.parameters.model.preset, panel.parameters.model.effort = arguments.preset, arguments.effort
        heart = Heart(bench.qt)
        for title in ("first Apply", "second Apply"):
            print(title)
            for what, value in one_run(bench, panel, heart).items():
                print(f"  {what:32} {value:8.3f}")
        bench.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
