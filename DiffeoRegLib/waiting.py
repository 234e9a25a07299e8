"""How the threads of a run wait for each other: spinning on an idle computer, sleeping on a busy one.

Measured on two cores: spinning is a fifth faster when nothing else runs, and five times slower when
something does, because the spinning thread takes the core its partner needs.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

CHOICES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
BUSY_CORES = 0.5
STATISTICS = Path("/proc/stat")


def choose_waiting(seconds: float = 0.1) -> None:
    """Let OpenMP's threads sleep while they wait, if others use the processor; before torch is loaded.

    Does nothing where the user has decided (one of CHOICES is set) or the system does not tell.
    """
    if any(name in os.environ for name in CHOICES):
        return
    share = busy_share(seconds)
    if share is not None and share * (os.cpu_count() or 1) > BUSY_CORES:
        os.environ["GOMP_SPINCOUNT"] = "0"


def busy_share(seconds: float, statistics: Path = STATISTICS) -> float | None:
    """Share of all cores' time that was in use over the next `seconds`, 0..1; None where it is not known."""
    before = _times(statistics)
    if before is None:
        return None
    time.sleep(seconds)
    after = _times(statistics)
    if after is None or after[1] <= before[1]:
        return None
    return (after[0] - before[0]) / (after[1] - before[1])


def _times(statistics: Path) -> tuple[int, int] | None:
    """Ticks in use and ticks in all since the computer started, from Linux's first line of /proc/stat."""
    if not statistics.is_file():
        return None
    words = statistics.read_text(encoding="utf-8").split("\n", 1)[0].split()
    ticks = [int(word) for word in words[1:9]]
    idle = ticks[3] + ticks[4]
    return sum(ticks) - idle, sum(ticks)
