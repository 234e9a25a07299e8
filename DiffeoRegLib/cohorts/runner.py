"""Rows to workers and back: one row per worker at a time, however the workers are had."""

from __future__ import annotations

import queue
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from DiffeoRegLib.cohorts.attempt import died
from DiffeoRegLib.cohorts.job import Job, Outcome
from DiffeoRegLib.cohorts.store import FAILED, Store
from DiffeoRegLib.errors import ClusterError

TICK_SECONDS = 0.2


@dataclass(frozen=True)
class WorkerDied(Exception):
    """The cluster gave a row up: every worker that took it died.

    times: how often, as far as the cluster counts.
    """

    times: int


Ending = Outcome | WorkerDied | ClusterError
"""What comes back for a row: its outcome, or that its workers died, or that there are none any more."""
Endings = queue.Queue[tuple[str, Ending]]


class Pool(Protocol):
    """Workers that take one row each."""

    def workers(self) -> Sequence[str]:
        """Names of those that are there now; raises ClusterError when their scheduler is lost."""

    def submit(self, job: Job, worker: str, ended: Callable[[Ending], None]) -> None:
        """Hand a row to a worker; `ended` is called from any thread with what came of it."""

    def progress(self) -> dict[str, tuple[float, str]]:
        """Share done and phase of rows at work, by name."""


def _put(ended: Endings, name: str, found: Ending) -> None:
    ended.put((name, found))


@dataclass
class Run:
    """Rows on their way through a pool."""

    pool: Pool
    store: Store
    report: Callable[[float, str], None]
    say: Callable[[str], None]
    patience_seconds: float | None = 60.0
    """How long there may be no worker at all; None = as long as it takes."""
    outcomes: dict[str, Outcome] = field(default_factory=dict)

    def all(self, jobs: Sequence[Job]) -> dict[str, Outcome]:
        """What became of every row, by name.

        Raises ClusterError when the workers are lost; the rows at work are then not finished.
        """
        waiting, busy = deque(jobs), dict[str, str]()
        ended: Endings = queue.Queue()
        seen = time.monotonic()
        while waiting or busy:
            workers = self.pool.workers()
            if workers:
                seen = time.monotonic()
            elif self.patience_seconds is not None and time.monotonic() - seen > self.patience_seconds:
                raise ClusterError(
                    f"The scheduler has had no workers for {self.patience_seconds:.0f} s. Start some first."
                )
            for worker in workers:
                if waiting and worker not in busy.values():
                    job = waiting.popleft()
                    busy[job.name] = worker
                    self.pool.submit(job, worker, partial(_put, ended, job.name))
            self._tell(len(jobs), list(busy))
            try:
                name, found = ended.get(timeout=TICK_SECONDS)
            except queue.Empty:
                continue
            busy.pop(name)
            self._keep(name, found, jobs)
        self._tell(len(jobs), [])
        return self.outcomes

    def _keep(self, name: str, found: Ending, jobs: Sequence[Job]) -> None:
        job = next(job for job in jobs if job.name == name)
        if isinstance(found, WorkerDied):
            outcome = Outcome(name, FAILED, died(found.times))
            # Its workers could not say so themselves.
            self.store.write_status(self.store.status(job).failed(outcome.problem))
        elif isinstance(found, ClusterError):
            raise found
        else:
            outcome = found
        self.outcomes[name] = outcome
        if outcome.state == FAILED:
            self.say(f"Row {job.number}, '{name}', failed: {outcome.problem}")

    def _tell(self, count: int, busy: Sequence[str]) -> None:
        known = self.pool.progress()
        shares = [known.get(name, (0.0, "starting"))[0] for name in busy]
        ended = len(self.outcomes)
        words = ", ".join(f"{name}: {known.get(name, (0.0, 'starting'))[1]}" for name in busy[:2])
        more = f" and {len(busy) - 2} more" if len(busy) > 2 else ""
        message = f"{ended} of {count} rows; {words}{more}" if busy else f"{ended} of {count} rows"
        self.report((ended + sum(shares)) / count, message)
