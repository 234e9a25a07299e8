"""The computation seen from the panel: jobs go in, events come out, and nothing is ever waited for.

Torch lives in a worker process that stays warm between jobs. Volumes travel through private folders; a thread
writes them, another reads the results. Whatever ends the worker or this process, no folder stays behind.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import queue
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from DiffeoRegLib.errors import DiffeoRegError
from DiffeoRegLib.exchange import pack, unpack
from DiffeoRegPanel.folders import new_folder, remove, sweep
from DiffeoRegPanel.process import Message, Worker, words_about

COMMAND = (sys.executable, "-m", "DiffeoRegLib.worker")
PATIENCE_SECONDS = 2.0
"""So long a worker may take to obey; then it is killed."""
MOST_STARTS = 2
LAST = ("result", "error", "cancelled")
NO_MEMORY = "The memory was not enough to read the result. Close other programs, and run again."


@dataclass(frozen=True, eq=False)
class Event:
    """Something that happened in a run.

    kind: progress, log, or the last one: result, error, cancelled.  error_kind: input, memory, device, torch,
    unexpected.  result: the worker's answer, Images in memory.
    """

    kind: str
    message: str = ""
    fraction: float | None = None
    phase: str = ""
    eta_seconds: float | None = None
    error_kind: str | None = None
    result: dict[str, Any] | None = None


CANCELLED = Event("cancelled", "Cancelled; nothing was changed.")


class Run:
    """One job on its way; made by Runner.start.

    finished: the last event has been taken with `poll` or `wait`.
    """

    def __init__(self, runner: Runner, identity: str, folder: Path) -> None:
        self._runner, self.identity, self.folder = runner, identity, folder
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.finished = False
        self.last: Event | None = None
        self.started = self.cancelling = self.ended = False
        self.starts = 0
        self.worker: Worker | None = None
        self.written = threading.Event()

    @property
    def log(self) -> str:
        """What the worker wrote to its error stream lately."""
        return self._runner.log

    def poll(self) -> list[Event]:
        """What has happened since the last call, without waiting."""
        events: list[Event] = []
        with contextlib.suppress(queue.Empty):
            while not self.finished:
                events.append(self._events.get_nowait())
                if events[-1].kind in LAST:
                    self.last, self.finished = events[-1], True
        return events

    def cancel(self) -> None:
        """Stop: politely, then by force; ends with the event `cancelled`."""
        self._runner._cancel(self)

    def wait(
        self,
        poll_seconds: float = 0.02,
        on_event: Callable[[Event], None] | None = None,
        idle: Callable[[], Any] | None = None,
    ) -> Event:
        """The last event; `on_event` sees all of them, `idle` is called in between."""
        while True:
            for event in self.poll():
                if on_event is not None:
                    on_event(event)
            if self.last is not None:
                return self.last
            if idle is not None:
                idle()
            time.sleep(poll_seconds)

    def put(self, event: Event) -> None:
        """Add an event; any thread."""
        self._events.put(event)


class Runner:
    """Starts the worker when it is needed and hands it one job after the other.

    command: of the worker, whole; default: this Python.  temporary: where the folders are made.
    keep_warm_seconds: the worker leaves when it has had nothing to do for so long.
    """

    def __init__(
        self,
        command: Sequence[str] | None = None,
        *,
        temporary: Path | None = None,
        keep_warm_seconds: float = 600.0,
    ) -> None:
        self._command = [*(command or COMMAND), "--idle-seconds", str(keep_warm_seconds)]
        self._temporary = temporary
        self._lock = threading.RLock()
        self._worker: Worker | None = None
        self._runs: dict[str, Run] = {}
        self._numbers = itertools.count(1)
        self._swept = False

    @property
    def state(self) -> str:
        """`stopped`, `starting`, `idle` or `busy`."""
        worker = self._worker
        if worker is None or not worker.alive:
            return "stopped"
        if not worker.ready:
            return "starting"
        return "busy" if self._runs else "idle"

    @property
    def log(self) -> str:
        """What the worker wrote to its error stream lately."""
        return "" if self._worker is None else self._worker.log

    @property
    def pid(self) -> int | None:
        """Number of the worker process, None without one."""
        return None if self._worker is None else self._worker.pid

    def start(self, job: Mapping[str, Any]) -> Run:
        """Hand over a job; jobs that wait are done in turn. Its arrays must not change until it has begun.

        Raises OutputError when no folder can be made or the worker cannot be started.
        """
        folder = new_folder(self._temporary)
        run = Run(self, str(next(self._numbers)), folder)
        try:
            with self._lock:
                self._running_worker()
                self._runs[run.identity] = run
                self._announce(run)
        except DiffeoRegError:
            remove(folder)
            raise
        self._sweep_once()
        threading.Thread(target=self._write, args=(run, job), name="diffeoreg job", daemon=True).start()
        return run

    def close(self) -> None:
        """End the worker, cancel what runs, remove the folders. May be called twice."""
        atexit.unregister(self.close)
        with self._lock:
            runs, worker, self._worker = list(self._runs.values()), self._worker, None
            for run in runs:
                run.cancelling = True
        if worker is not None:
            worker.leave(PATIENCE_SECONDS)
        for run in runs:
            run.written.wait(5 * PATIENCE_SECONDS)
            self._end(run, CANCELLED)

    def _sweep_once(self) -> None:
        """Clear up after crashed sessions, in a thread."""
        if not self._swept:
            self._swept = True
            threading.Thread(
                target=sweep, args=(self._temporary,), name="diffeoreg sweep", daemon=True
            ).start()

    def _running_worker(self) -> Worker:
        """The worker, started if there is none."""
        if self._worker is None or not self._worker.alive:
            self._worker = Worker(self._command, self._receive, self._lost)
            atexit.register(self.close)
        return self._worker

    def _announce(self, run: Run) -> None:
        """Tell the worker of a folder, so that it is removed should this process be killed."""
        run.starts += 1
        self._running_worker().send(folder=str(run.folder), id=run.identity)

    def _write(self, run: Run, job: Mapping[str, Any]) -> None:
        """Write a job's folder and send it off; in its own thread."""
        try:
            pack(job, run.folder, "job")
        except Exception as error:  # noqa: BLE001 - a thread: the error must reach the one who polls
            kind = "input" if isinstance(error, DiffeoRegError) else "unexpected"
            run.written.set()
            self._drop(run)
            text = str(error) if kind == "input" else f"Unexpected {type(error).__name__}: {error}"
            self._end(run, Event("error", text, error_kind=kind))
            return
        with self._lock:
            run.written.set()
            waiting = not run.ended and not run.cancelling
            if waiting:
                self._send(run)
        if not waiting:
            self._end(run, CANCELLED)

    def _send(self, run: Run) -> None:
        """Ask the worker for a written job, one more time if it has left meanwhile."""
        worker = self._worker
        if worker is None or not worker.alive:
            try:
                self._announce(run)
            except DiffeoRegError as error:
                self._end(run, Event("error", str(error), error_kind="unexpected"))
                return
        run.worker = self._running_worker()
        run.worker.send(job=str(run.folder), id=run.identity)

    def _cancel(self, run: Run) -> None:
        with self._lock:
            if run.ended or run.cancelling:
                return
            run.cancelling = True
            self._drop(run)
        timer = threading.Timer(PATIENCE_SECONDS, self._insist, [run, self._worker])
        timer.daemon = True
        timer.start()

    def _drop(self, run: Run) -> None:
        """Tell the worker that a job is not wanted any more."""
        if self._worker is not None:
            self._worker.send(stop=run.identity)

    def _insist(self, run: Run, worker: Worker | None) -> None:
        """Kill a worker that has not obeyed; its end is noticed where its messages are read."""
        if not run.ended and run.written.is_set() and worker is not None and worker.alive:
            worker.kill()

    def _receive(self, worker: Worker, message: Message) -> None:
        """A message from the worker; in its reading thread."""
        kind, run = message.get("event"), self._runs.get(str(message.get("id")))
        if kind == "ready":
            worker.ready = True
        elif kind == "error" and message.get("id") is None:
            worker.complaint = (message.get("message", ""), message.get("kind", "unexpected"))
        elif run is not None:
            self._tell(run, kind, message)

    def _tell(self, run: Run, kind: str | None, message: Message) -> None:
        """A message about one run."""
        text = message.get("message", "")
        if kind == "progress":
            run.started = True
            phase, fraction = message.get("phase", ""), message.get("fraction")
            run.put(Event("progress", text, fraction, phase, message.get("eta_seconds")))
        elif kind == "log":
            run.put(Event("log", text))
        elif kind == "error":
            self._end(run, Event("error", text, error_kind=message.get("kind", "unexpected")))
        elif kind == "cancelled":
            self._end(run, CANCELLED)
        elif kind == "result":
            self._end(run, self._answer(run))

    def _answer(self, run: Run) -> Event:
        """The result of a run, read into memory."""
        if run.cancelling:
            return CANCELLED
        try:
            return Event("result", "finished", 1.0, result=unpack(run.folder, "result"))
        except (DiffeoRegError, MemoryError) as error:
            if isinstance(error, MemoryError):
                return Event("error", NO_MEMORY, error_kind="memory")
            return Event("error", str(error), error_kind="unexpected")

    def _lost(self, worker: Worker, status: int) -> None:
        """The worker has ended: runs it did not begin get a new one, the others an end."""
        with self._lock:
            runs = [run for run in self._runs.values() if run.worker is worker]
        innocent = worker.killed or status == 0
        for run in runs:
            if run.cancelling:
                self._end(run, CANCELLED)
            elif innocent and not run.started and run.starts < MOST_STARTS:
                with self._lock:
                    self._send(run)
            else:
                text, kind = worker.complaint or words_about(status, worker.log)
                self._end(run, Event("error", text, error_kind=kind))

    def _end(self, run: Run, event: Event) -> None:
        """The last event of a run, once, after its folder is gone."""
        with self._lock:
            if run.ended:
                return
            run.ended = True
            self._runs.pop(run.identity, None)
            event = CANCELLED if run.cancelling else event
        remove(run.folder)
        run.put(event)
