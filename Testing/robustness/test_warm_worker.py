"""A warm worker that registers again and again takes no more memory than at first."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from DiffeoRegPanel.runner import Runner
from Testing.robustness.profile import times
from Testing.robustness.test_killed import wait_for
from Testing.worker_jobs import registration

RUNS = times(14, most=200)
SETTLED = 6
"""Runs until every cache has what it will keep."""
MOST_GROWTH_MB_PER_RUN = 0.5
KINDS = (
    registration(),
    registration({**registration()["settings"], "method": "affine", "init": "mass"}),
    {"kind": "probe"},
)


def resident_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096 / 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="the memory of a process is read from /proc")
def test_memory_stays_flat(tmp_path):
    runner = Runner(temporary=tmp_path)
    held = []
    try:
        for number in range(RUNS):
            assert wait_for(runner.start(KINDS[number % len(KINDS)])).kind == "result"
            held.append(resident_mb(runner.pid))
        pid = runner.pid
    finally:
        runner.close()
    later = np.array(held[SETTLED:])
    growth = float(np.polyfit(np.arange(len(later)), later, 1)[0])
    sys.stdout.write(f"{RUNS} runs of worker {pid}: {held[0]:.0f} MB, {later[0]:.0f} MB settled, "
                     f"{later[-1]:.0f} MB at the end, {growth:+.3f} MB a run\n")  # fmt: skip
    assert growth < MOST_GROWTH_MB_PER_RUN
    assert later[-1] < later[0] + 20
