"""The worker's two threads: one computes the jobs in turn, the other listens, so that Stop is always heard.

Torch is loaded here and only once the listener runs: a program that has gone away is noticed even then.
"""

from __future__ import annotations

import _thread
import argparse
import gc
import os
import platform
import queue
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, Protocol

from DiffeoRegLib import __version__
from DiffeoRegLib.errors import Cancelled, DeviceError, DiffeoRegError, MemoryLimitError, out_of_memory
from DiffeoRegLib.exchange import pack, unpack
from DiffeoRegLib.waiting import choose_waiting
from DiffeoRegLib.worker.channel import Channel

PREFIX = "diffeoreg-"
"""How the names of the folders begin that the worker may remove."""
IDLE_SECONDS = 600.0
NO_TORCH = 3
"""Exit status when PyTorch cannot be loaded."""
OUT_OF_MEMORY = (
    "The memory was not enough for this registration. Close other programs, set a larger working voxel "
    "size or a memory limit, or compute on the CPU."
)


class Step(Protocol):
    """What the engine says about its progress; see methods.base.Progress."""

    @property
    def phase(self) -> str:
        """Name of the phase."""

    @property
    def fraction(self) -> float:
        """Of the whole run, 0..1."""

    @property
    def message(self) -> str:
        """One sentence."""


Work = Callable[[dict[str, Any], Callable[[Step], None]], dict[str, Any]]


class Server:
    """Jobs that wait, the one that runs, and the folders that must not be left behind."""

    def __init__(
        self,
        channel: Channel,
        idle_seconds: float = IDLE_SECONDS,
        interrupt: Callable[[], None] = lambda: None,
    ) -> None:
        self._channel, self._idle_seconds, self._interrupt = channel, idle_seconds, interrupt
        self._current: str | None = None
        self._lock = threading.Lock()
        self._order: queue.SimpleQueue[tuple[str, Path]] = queue.SimpleQueue()
        self._waiting: dict[str, Path] = {}
        self._announced: set[str] = set()
        self._stopped: set[str] = set()
        self._folders: set[Path] = set()

    def listen(self) -> NoReturn:
        """Take in messages until the other side is gone, then end the process, busy or not."""
        for message in self._channel:
            if message.get("quit") is True:
                break
            self._take(message)
        for folder in list(self._folders):
            remove(folder)
        leave(0)

    def _take(self, message: dict[str, Any]) -> None:
        """Do what a message asks for; one of another form is only answered, so that this thread lives on."""
        identity = message.get("id", "")
        kinds = [kind for kind in ("folder", "job", "stop") if kind in message]
        texts = [identity, *(message[kind] for kind in kinds)]
        if len(kinds) != 1 or not all(isinstance(text, str) and "\0" not in text for text in texts):
            wrong = "A message to the worker has the wrong form; it was ignored."
            if identity and isinstance(identity, str):
                self._channel.send("error", id=identity, message=wrong, kind="input")
            else:
                self._channel.send("log", id=None, message=wrong)
        elif kinds == ["folder"]:
            self._announce(identity, Path(message["folder"]))
        elif kinds == ["job"]:
            self._accept(identity, Path(message["job"]))
        else:
            self._stop(message["stop"])

    def work(self, do: Work) -> None:
        """Do the jobs in turn; returns when none has come for a while."""
        while True:
            try:
                identity, folder = self._order.get(timeout=self._idle_seconds)
            except queue.Empty:
                with self._lock:
                    if not self._announced and not self._waiting:
                        return
                continue
            with self._lock:
                if self._waiting.pop(identity, None) is None:
                    continue  # stopped while it waited
            self._do(do, identity, folder)
            _tidy()

    def _announce(self, identity: str, folder: Path) -> None:
        """A folder in which a job is being written; it ends with this process's parent."""
        with self._lock:
            self._announced.add(identity)
            self._folders.add(folder)

    def _accept(self, identity: str, folder: Path) -> None:
        with self._lock:
            self._announced.discard(identity)
            self._stopped.discard(identity)
            self._folders.add(folder)
            self._waiting[identity] = folder
        self._order.put((identity, folder))

    def _stop(self, identity: str) -> None:
        with self._lock:
            self._announced.discard(identity)
            waited = self._waiting.pop(identity, None) is not None
            self._stopped.add(identity)
        if waited:
            self._channel.send("cancelled", id=identity)
        elif identity == self._current:
            self._interrupt()

    def on_interrupt(self, *_: object) -> None:
        """In the computing thread, between any two of its steps: raises Cancelled if its job was stopped."""
        if self._current is not None and self._current in self._stopped:
            raise Cancelled("Cancelled; nothing was changed.")

    def _do(self, do: Work, identity: str, folder: Path) -> None:
        """One job from its folder, its result back into it, one last message."""
        steps = Steps(self._channel, identity, self._stopped)
        try:
            try:
                self._current = identity
                steps.tell("start", 0.0, "reading the images")
                result = do(unpack(folder, "job"), steps)
                steps.check()
                pack(result, folder, "result")
            finally:
                self._current = None
        except Cancelled:
            self._channel.send("cancelled", id=identity)
        except Exception as problem:  # noqa: BLE001 - the outermost door: every error becomes a sentence
            if not isinstance(problem, DiffeoRegError):
                traceback.print_exception(problem)
            message, kind = told(problem)
            self._channel.send("error", id=identity, message=message, kind=kind)
        else:
            self._channel.send("result", id=identity)


class Steps:
    """Sends the progress of one job, and stops it where it was asked to."""

    def __init__(self, channel: Channel, identity: str, stopped: set[str]) -> None:
        self._channel, self._identity, self._stopped = channel, identity, stopped
        self._started = time.monotonic()

    def __call__(self, step: Step) -> None:
        self.tell(step.phase, step.fraction, step.message)

    def tell(self, phase: str, fraction: float, message: str) -> None:
        """Event `progress`; raises Cancelled when the job has been stopped."""
        self.check()
        gone = time.monotonic() - self._started
        known = fraction >= 0.03 and gone >= 0.5
        self._channel.send(
            "progress", id=self._identity, phase=phase, fraction=round(fraction, 4), message=message,
            eta_seconds=round(gone * (1 - fraction) / fraction, 1) if known else None,
        )  # fmt: skip

    def check(self) -> None:
        """Raises Cancelled when the job has been stopped."""
        if self._identity in self._stopped:
            raise Cancelled("Cancelled; nothing was changed.")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Serve until the parent leaves, says quit, or has had nothing to do for a while."""
    parser = argparse.ArgumentParser(prog="python -m DiffeoRegLib.worker")
    parser.add_argument("--idle-seconds", type=float, default=IDLE_SECONDS)
    idle_seconds = parser.parse_args(arguments).idle_seconds
    channel = Channel.of_this_process()
    server = Server(channel, idle_seconds, _thread.interrupt_main)
    signal.signal(signal.SIGINT, server.on_interrupt)
    threading.Thread(target=server.listen, name="listener", daemon=True).start()
    choose_waiting()
    problem = torch_problem()
    if problem:
        channel.send("error", id=None, message=problem, kind="torch")
        leave(NO_TORCH)
    channel.send("ready", versions=_versions(), pid=os.getpid())
    engine = _engine()
    _tidy()
    server.work(engine)
    leave(0)


def torch_problem() -> str:
    """Empty when PyTorch loads; otherwise a sentence what is wrong and what to do, the details in the log."""
    try:
        import torch

        torch.zeros(1)
    except Exception as problem:  # noqa: BLE001 - a broken installation fails in any way it likes
        traceback.print_exception(problem)
        if isinstance(problem, ModuleNotFoundError) and problem.name == "torch":
            return (
                f"PyTorch is not installed for {sys.executable}. "
                "Press 'Install PyTorch...' in the Setup box, then start again."
            )
        first = (str(problem).strip().splitlines() or [type(problem).__name__])[0]
        return (
            f"PyTorch is installed but cannot be loaded ({first}). "
            "Uninstall it in the module 'PyTorch Utils', restart Slicer and press 'Install PyTorch...'."
        )
    return ""


def told(problem: BaseException) -> tuple[str, str]:
    """The sentence for an exception, and its kind."""
    text = " ".join(str(problem).split()) or type(problem).__name__
    if isinstance(problem, MemoryLimitError):
        return text, "memory"
    if out_of_memory(problem):
        return OUT_OF_MEMORY, "memory"
    if isinstance(problem, DeviceError):
        return text, "device"
    if isinstance(problem, DiffeoRegError):
        return text, "input"
    if isinstance(problem, ModuleNotFoundError):
        return (
            f"The Python package '{problem.name}' is missing for {sys.executable}. Install it.",
            "unexpected",
        )
    return f"Unexpected {type(problem).__name__}: {text} (the log has the details to report)", "unexpected"


def remove(folder: Path) -> None:
    """A folder of ours gone, though another thread may be writing into it."""
    if not folder.name.startswith(PREFIX):
        return
    for _ in range(20):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.01)


def leave(status: int) -> NoReturn:
    """End the process at once, whatever the other thread does."""
    sys.stderr.flush()
    os._exit(status)


def _engine() -> Work:
    """The door to the engine, loaded before the first job comes; a failure is told with every job."""
    try:
        from DiffeoRegLib.worker import jobs
    except Exception as problem:  # noqa: BLE001 - told with every job
        failure = problem

        def refuse(job: dict[str, Any], steps: Callable[[Step], None]) -> dict[str, Any]:
            raise failure

        return refuse
    return jobs.run


def _tidy() -> None:
    """Give back what a job has held, once its answer is out: others need the memory until the next one."""
    gc.collect()
    gc.freeze()  # what lives now stays: the next collection need not look at all of torch again
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _versions() -> dict[str, str]:
    import torch

    return {"diffeoreg": __version__, "python": platform.python_version(), "torch": str(torch.__version__)}
