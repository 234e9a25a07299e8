"""What a worker of `diffeoreg batch` does: the command `register`, told where to work and what to use."""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from DiffeoRegLib.cohorts.attempt import Made, attempt
from DiffeoRegLib.cohorts.job import Job, Outcome
from DiffeoRegLib.cohorts.store import Store
from DiffeoRegLib.waiting import choose_waiting

MEMORY_SHARE = 0.8
"""Of a worker's main memory, this much may be planned with."""
PROGRESS_SECONDS = 0.5
ONE_ROW = threading.Lock()
"""A worker with several threads still does one row at a time: torch's settings are those of the process."""
Told = Callable[[float, str], None]


class RowConsole:
    """Hands on how far a row is, and keeps what `register` found."""

    def __init__(self, told: Told) -> None:
        self.found: Mapping[str, Any] = {}
        self._told, self._last = told, -PROGRESS_SECONDS

    def progress(self, phase: str, fraction: float, message: str) -> None:
        """Tell it, twice a second at most."""
        if time.monotonic() - self._last >= PROGRESS_SECONDS:
            self._last = time.monotonic()
            self._told(fraction, phase)

    def log(self, message: str) -> None:
        """Remarks are in the row's report."""

    def result(self, text: str, data: Mapping[str, Any]) -> None:
        """Keep the data."""
        self.found = data

    def error(self, message: str, kind: str, exit_code: int) -> None:
        """Errors come as exceptions."""

    def close(self) -> None:
        """Nothing to restore."""


def run_row(root: str, session: str, retries: int, job: Job, places: Mapping[str, int]) -> Outcome:
    """One row, on the worker this is called on.

    root: folder of the cohort.  places: number of every worker among those of its computer, by address.
    """
    from distributed import get_worker

    worker = get_worker()
    topic, place = f"diffeoreg-{session}", places.get(worker.address, 0)

    def told(fraction: float, phase: str) -> None:
        worker.log_event(topic, (job.name, fraction, phase))

    with ONE_ROW, redirect_stdout(sys.stderr):
        choose_waiting()
        from DiffeoRegLib.cli import exit_status, sentence

        def work(job: Job, stage: Path) -> Made:
            values = with_resources(
                job.values, worker.state.nthreads, worker.memory_manager.memory_limit, place
            )
            return registered(values, stage, told)

        return attempt(
            Store(Path(root)), job, session, retries, work, lambda found: sentence(found, exit_status(found))
        )


def with_resources(
    values: Mapping[str, Any], threads: int, memory_bytes: int | None, place: int
) -> dict[str, Any]:
    """The flags of a row with what its worker may use, where they do not say it themselves.

    place: number of the worker among those of its computer: its GPU, where there are several.
    """
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    found = dict(values)
    found["threads"] = values["threads"] or threads
    on_gpu = gpus > 0 and values["device"].startswith(("auto", "cuda"))
    if on_gpu and gpus > 1 and values["device"] in ("auto", "cuda"):
        found["device"] = f"cuda:{place % gpus}"
    if not on_gpu and memory_bytes and values["memory_limit_gb"] is None:
        found["memory_limit_gb"] = MEMORY_SHARE * memory_bytes / 1e9
    return found


def registered(values: Mapping[str, Any], folder: Path, told: Told) -> Made:
    """What `diffeoreg register` with these flags writes to a folder and finds."""
    from DiffeoRegLib.cli import commands
    from DiffeoRegLib.report.memory import reset_peak_memory
    from DiffeoRegLib.report.pair_numbers import numbers_of

    reset_peak_memory()
    console = RowConsole(told)
    commands.register(argparse.Namespace(**{**values, "output": str(folder)}), console)
    report = console.found["report"]
    numbers, labels = numbers_of(report)
    files = {kind: Path(path) for kind, path in console.found["files"].items()}
    device = report["device"] or {}
    facts = {"device": device.get("device"), "threads": device.get("threads"), "notes": report["notes"]}
    return Made(files, numbers, labels, facts)
